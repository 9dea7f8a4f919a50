"""Logins: keys, certificates, agents, passwords, questions, and their combinations."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import paramiko
import pytest

from rtunnel.errors import AuthenticationFailed
from rtunnel.ssh.connect import open_transport
from rtunnel.ssh.options import InteractiveQuestion
from tests.support.login_server import LoginServer
from tests.support.sshd import Sshd, wait_until


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, so that nobody's own keys and agent take part."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


def keygen(*arguments: str) -> None:
    subprocess.run(["ssh-keygen", "-q", *arguments], check=True, capture_output=True)


def make_key(
    path: Path, kind: str = "ed25519", passphrase: str = "", *more: str
) -> Path:
    keygen("-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path), *more)
    return path


def blob(path: Path) -> bytes:
    return paramiko.pkey.PublicBlob.from_file(f"{path}.pub").key_blob


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An sshd that takes many keys, and the certificates of one authority."""
    folder = tmp_path_factory.mktemp("auth")
    authority = make_key(folder / "authority")
    with Sshd(folder / "sshd", f"TrustedUserCAKeys {authority}.pub") as sshd:
        yield sshd


@pytest.fixture
def authority(server: Sshd) -> Path:
    return server.folder.parent / "authority"


@pytest.fixture
def authorize(server: Sshd) -> Iterator[Callable[[Path], Path]]:
    """Let keys in, for one test."""
    path = server.folder / "authorized_keys"
    before = path.read_text()

    def add(key: Path) -> Path:
        with path.open("a") as file:
            file.write(Path(f"{key}.pub").read_text())
        return key

    yield add
    path.write_text(before)


class SshAgent:
    """A real ssh-agent of our own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            ["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it listens before it says so

    def add(self, *arguments: str) -> None:
        environment = {**os.environ, "SSH_AUTH_SOCK": str(self.path)}
        subprocess.run(
            ["ssh-add", "-q", *arguments], check=True, env=environment,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=10)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[SshAgent]:
    agent = SshAgent(tmp_path / "agent.sock")
    yield agent
    agent.stop()


def login(server: Sshd, **options: object) -> str:
    """Log in to sshd; return the line of its log that says how."""
    start = len(server.log.read_text().splitlines())
    options = {"config_file": "none", "known_hosts": server.known_hosts, **options}
    transport = open_transport(f"{server.user}@127.0.0.1:{server.port}", **options)
    try:
        assert transport.is_authenticated()
        assert transport.get_username() == server.user
    finally:
        transport.close()
    found: list[str] = []

    def logged() -> bool:
        lines = server.log.read_text().splitlines()[start:]
        found.extend(line for line in lines if "Accepted publickey for" in line)
        return bool(found)

    wait_until(logged)
    return found[0]


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("passphrase", ["", "a secret"])
@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
def test_a_key_of_every_kind_and_format_logs_in(
    server: Sshd,
    authorize: Callable[[Path], Path],
    tmp_path: Path,
    kind: str,
    passphrase: str,
    form: str,
) -> None:
    key = make_key(tmp_path / "key", kind, passphrase, "-m", form)
    authorize(key)
    assert "Accepted publickey" in login(
        server, identity_files=[key], passphrase=passphrase or None
    )


def test_the_default_key_files_are_tried(
    server: Sshd, authorize: Callable[[Path], Path], home: Path
) -> None:
    authorize(make_key(home / ".ssh/id_ecdsa", "ecdsa"))
    make_key(home / ".ssh/id_ed25519")
    assert "ECDSA" in login(server)


def test_a_passphrase_is_asked_until_it_is_right(
    server: Sshd, authorize: Callable[[Path], Path], tmp_path: Path
) -> None:
    key = authorize(make_key(tmp_path / "key", "ed25519", "right"))
    answers = iter(["wrong", "right"])
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return next(answers)

    login(server, identity_files=[key], passphrase=ask)
    assert asked == [f"Enter passphrase for key '{key}': "] * 2


def test_no_passphrase_is_asked_for_a_key_that_the_server_refuses(
    server: Sshd, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "locked", "ed25519", "secret")

    def ask(prompt: str) -> str:
        raise AssertionError("asked in vain")

    login(server, identity_files=[key, server.user_key], passphrase=ask)


@pytest.mark.parametrize("passphrase", [None, "wrong", lambda prompt: None])
def test_a_key_that_stays_locked_is_reported(
    server: Sshd,
    authorize: Callable[[Path], Path],
    tmp_path: Path,
    passphrase: object,
) -> None:
    key = authorize(make_key(tmp_path / "key", "ed25519", "right"))
    with pytest.raises(AuthenticationFailed, match=f"Not used: {key}.*passphrase"):
        login(server, identity_files=[key], passphrase=passphrase)


def test_nobody_is_asked_in_batch_mode(
    server: Sshd, authorize: Callable[[Path], Path], tmp_path: Path
) -> None:
    key = authorize(make_key(tmp_path / "key", "ed25519", "right"))
    with pytest.raises(AuthenticationFailed, match="encrypted, and no passphrase"):
        login(
            server,
            identity_files=[key],
            passphrase=lambda prompt: "right",
            ssh_options=["BatchMode=yes"],
        )


def test_a_key_that_others_can_read_is_not_used(server: Sshd, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(server.user_key.read_bytes())
    key.chmod(0o644)
    with pytest.raises(AuthenticationFailed, match=f"chmod 600 {key}"):
        login(server, identity_files=[key])


def test_the_error_lists_what_was_tried_and_what_would_help(
    server: Sshd, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "stranger")
    with pytest.raises(AuthenticationFailed) as caught:
        login(server, identity_files=[key, tmp_path / "absent"])
    text = str(caught.value)
    assert f"{server.user}@127.0.0.1:{server.port} did not let us in" in text
    assert f"Tried: publickey {key} (ssh-ed25519 SHA256:" in text
    assert f"{tmp_path}/absent: there is no such file" in text
    assert "The server accepts: publickey" in text
    assert "authorized_keys" in text


def test_without_any_key_the_error_says_how_to_name_one(server: Sshd) -> None:
    with pytest.raises(
        AuthenticationFailed, match=r"Tried: nothing.*-i, identity_files"
    ):
        login(server)


def test_too_many_keys_end_the_connection_and_the_error_says_so(
    server: Sshd, tmp_path: Path
) -> None:
    keys = [make_key(tmp_path / f"key{i}") for i in range(8)]
    with pytest.raises(AuthenticationFailed, match=r"MaxAuthTries.*IdentitiesOnly"):
        login(server, identity_files=[*keys, server.user_key])


def test_a_certificate_beside_the_key_is_shown_before_the_key(
    server: Sshd, authority: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key")
    keygen("-s", str(authority), "-I", "me", "-n", server.user, f"{key}.pub")
    assert "ED25519-CERT" in login(server, identity_files=[key])


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_certificate_may_be_named(
    server: Sshd, authority: Path, tmp_path: Path, kind: str
) -> None:
    key = make_key(tmp_path / "key", kind)
    keygen("-s", str(authority), "-I", "me", "-n", server.user, f"{key}.pub")
    named = (tmp_path / "key-cert.pub").rename(tmp_path / "other.pub")
    assert f"{kind.upper()}-CERT" in login(
        server, identity_files=[key], certificate_files=[named]
    )


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_key_of_the_agent_logs_in(
    server: Sshd,
    authorize: Callable[[Path], Path],
    agent: SshAgent,
    tmp_path: Path,
    kind: str,
) -> None:
    key = authorize(make_key(tmp_path / "key", kind))
    agent.add(str(key))
    assert "Accepted publickey" in login(server, agent=agent.path)


def test_a_certificate_of_the_agent_logs_in(
    server: Sshd, authority: Path, agent: SshAgent, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key", "rsa")
    keygen("-s", str(authority), "-I", "me", "-n", server.user, f"{key}.pub")
    agent.add(str(key))
    assert "RSA-CERT" in login(server, agent=agent.path)


def test_a_public_file_names_a_key_of_the_agent(
    server: Sshd, authorize: Callable[[Path], Path], agent: SshAgent, tmp_path: Path
) -> None:
    for i in range(7):  # more than the server would wait for
        agent.add(str(make_key(tmp_path / f"other{i}")))
    key = authorize(make_key(tmp_path / "key"))
    agent.add(str(key))
    key.unlink()
    login(server, agent=agent.path, identity_files=[f"{key}.pub"])


def test_identities_only_leaves_the_agents_other_keys_out(
    server: Sshd, authorize: Callable[[Path], Path], agent: SshAgent, tmp_path: Path
) -> None:
    agent.add(str(authorize(make_key(tmp_path / "key"))))
    other = make_key(tmp_path / "other")
    options = {"agent": agent.path, "identity_files": [other]}
    login(server, **options)
    with pytest.raises(AuthenticationFailed) as caught:
        login(server, ssh_options=["IdentitiesOnly=yes"], **options)
    assert "agent key" not in str(caught.value)


def test_an_agent_that_is_gone_does_not_matter(server: Sshd, tmp_path: Path) -> None:
    login(server, agent=tmp_path / "gone", identity_files=[server.user_key])


def test_an_agent_that_talks_nonsense_does_not_matter(
    server: Sshd, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent"))
        listener.listen()
        listener.settimeout(10)

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(100)
                sock.sendall(b"\xff\xff\xff\xff nonsense")

        thread = threading.Thread(target=answer)
        thread.start()
        login(server, agent=tmp_path / "agent", identity_files=[server.user_key])
        thread.join()


def test_two_keys_may_be_wanted(
    tmp_path: Path, authorize: Callable[[Path], Path]
) -> None:
    with Sshd(tmp_path / "s", "AuthenticationMethods publickey,publickey") as server:
        second = make_key(tmp_path / "second")
        with (server.folder / "authorized_keys").open("a") as file:
            file.write(Path(f"{second}.pub").read_text())
        login(server, identity_files=[server.user_key, second])
        with pytest.raises(AuthenticationFailed, match="accepted and wants more"):
            login(server, identity_files=[server.user_key])


# Passwords and questions: a scripted server.


def enter(server: LoginServer, host_key: Path, **options: object) -> None:
    known = host_key.with_name("known")
    text = Path(f"{host_key}.pub").read_text()
    known.write_text(f"[127.0.0.1]:{server.port} {text}")
    options = {"config_file": "none", "known_hosts": known, **options}
    open_transport(f"me@127.0.0.1:{server.port}", **options).close()


@pytest.fixture
def host_key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "host")


def test_a_password_logs_in(host_key: Path) -> None:
    with LoginServer(host_key) as server:
        enter(server, host_key, password="right")
        assert server.tried == ["password"]


def test_a_wrong_password_is_tried_once_and_never_shown(
    host_key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with LoginServer(host_key) as server:
        with pytest.raises(AuthenticationFailed) as caught:
            enter(server, host_key, password="hunter2")
        assert server.tried == ["password"]
    assert "Tried: password" in str(caught.value)
    assert "hunter2" not in str(caught.value) + caplog.text


def test_a_person_is_asked_for_the_password_as_often_as_ssh_asks(
    host_key: Path,
) -> None:
    asked: list[str] = []
    with LoginServer(host_key) as server:
        with pytest.raises(AuthenticationFailed):
            enter(server, host_key, password=lambda text: asked.append(text) or "no")
        assert asked == ["me@127.0.0.1's password: "] * 3
        asked.clear()
        with pytest.raises(AuthenticationFailed):
            enter(server, host_key, password=lambda text: asked.append(text))
        assert len(asked) == 1


def test_a_password_answers_the_only_question(host_key: Path) -> None:
    questions = [[("Password: ", False, "right")], []]
    steps = ["keyboard-interactive"]
    with LoginServer(host_key, steps=steps, questions=questions) as server:
        enter(server, host_key, password="right")


@pytest.mark.parametrize(
    "questions",
    [
        [[("Password: ", False, "right"), ("Code: ", False, "1")]],
        [[("Your name: ", True, "right")]],
        [[("Password: ", False, "right")], [("New password: ", False, "right")]],
    ],
)
def test_a_password_answers_no_other_question(
    host_key: Path, questions: Sequence[Sequence[tuple[str, bool, str]]]
) -> None:
    steps = ["keyboard-interactive,password"]
    with LoginServer(host_key, steps=steps, questions=questions) as server:
        enter(server, host_key, password="right")
        assert server.tried == ["password"]


def test_questions_are_asked_on_the_callers_thread(host_key: Path) -> None:
    rounds = [[("Name: ", True, "a"), ("Code: ", False, "1")], [("More: ", True, "b")]]
    asked: list[InteractiveQuestion] = []
    answers = iter([["a", "1"], ["b"]])

    def answer(question: InteractiveQuestion) -> list[str]:
        assert threading.current_thread() is threading.main_thread()
        asked.append(question)
        return next(answers)

    steps = ["keyboard-interactive"]
    with LoginServer(host_key, steps=steps, questions=rounds) as server:
        enter(server, host_key, interactive=answer)
    first = asked[0]
    assert (first.user, first.host, first.title) == ("me", "127.0.0.1", "Title")
    assert first.prompts == (("Name: ", True), ("Code: ", False))


def test_key_then_password_are_two_steps_of_one_login(
    host_key: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key")
    steps = ["publickey", "password"]
    with LoginServer(host_key, steps=steps, keys=[blob(key)]) as server:
        enter(server, host_key, identity_files=[key], password="right")
        assert server.tried == ["publickey", "password"]


def test_methods_that_are_switched_off_are_not_tried(host_key: Path) -> None:
    with LoginServer(host_key) as server:
        with pytest.raises(AuthenticationFailed, match="None of these is in use here"):
            enter(
                server,
                host_key,
                password="right",
                ssh_options={"PasswordAuthentication": "no"},
            )
        assert server.tried == []


def test_a_server_that_hangs_up_in_the_middle_is_reported(host_key: Path) -> None:
    with (
        LoginServer(host_key, hang_up_after=1) as server,
        pytest.raises(AuthenticationFailed, match="closed the connection"),
    ):
        enter(server, host_key, password="wrong")
