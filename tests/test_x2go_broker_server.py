"""Our broker before a real X2Go server: load, resuming, one-shot keys, real clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rtunnel
from rtunnel.errors import AuthenticationFailed
from tests.support.brokers import BrokerServer, write_settings, write_users
from tests.support.command import ROOT
from tests.support.ports import free_port
from tests.support.sshd import Sshd
from tests.support.x2go import PATIENCE_S, Display, X2goServer, run, wait_until
from x2go_session.broker import key_file, open_broker, profile_for
from x2go_session.broker.server.balance import Load
from x2go_session.broker.server.load import Servers
from x2go_session.broker.server.profiles_file import Host
from x2go_session.broker.server.settings import ServerSettings
from x2go_session.cli import main
from x2go_session.control import Control
from x2go_session.options import SessionOptions
from x2go_session.terminal import Terminal

pytestmark = pytest.mark.timeout(300)

PASSWORD = "s3cret-of-the-broker"
PEM = (
    r"-----BEGIN RSA PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+"
    r"-----END RSA PRIVATE KEY-----\n"
)
# Longer than any test.
KEY_LIFETIME_S = 3600
SHORT_LIFETIME_S = 5
# Debian's client of brokers: what it gets, and the key that it has offered.
PYTHON_X2GO = """
import json, os, sys
import cryptography.hazmat.primitives.serialization
from x2go.backends.profiles.httpbroker import X2GoSessionProfiles
url, user = sys.argv[1:]
profiles = X2GoSessionProfiles(
    broker_url=url, broker_username=user,
    broker_password=os.environ["BROKER_PASSWORD"],
)
assert profiles.broker_simpleauth(user, os.environ["BROKER_PASSWORD"])
found = sorted(profiles.broker_listprofiles())
selected = profiles.broker_selectsession("clock")
# Its own way of writing it fails on Debian 12.
serialization = cryptography.hazmat.primitives.serialization
pem = profiles.broker_my_privkey.key.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.TraditionalOpenSSL,
    serialization.NoEncryption(),
)
with open("key-of-python-x2go", "wb") as file:
    file.write(pem)
print(json.dumps({"profiles": found, "selected": selected}))
"""


class Pool(Sshd):
    """An sshd of the X2Go server: for root, and the user with one-shot keys alone."""

    def __init__(self, folder: Path, server: X2goServer) -> None:
        super().__init__(
            folder,
            f"AllowUsers root {server.user}",
            f"AuthorizedKeysFile {folder}/keys_of_%u .x2go/authorized_keys",
        )
        (folder / "keys_of_root").write_text(self.authorized_keys.read_text())
        self.server = server
        self.user = server.user
        self.dead_port = free_port()

    @property
    def hosts(self) -> str:
        """Two names of servers, of which one is dead."""
        return f"dead (127.0.0.1:{self.dead_port}), here (127.0.0.1:{self.port})"

    @property
    def here(self) -> str:
        """The one that lives."""
        return f"127.0.0.1:{self.port}"

    @property
    def one_shot_keys(self) -> Path:
        """Where the broker puts keys."""
        return self.server.home / ".x2go/authorized_keys"

    def write_keys(self, text: str) -> None:
        """Write the file of one-shot keys, as its user."""
        self.one_shot_keys.parent.mkdir(exist_ok=True)
        self.one_shot_keys.write_text(text)
        for path in (self.one_shot_keys.parent, self.one_shot_keys):
            os.chown(path, self.server.uid, -1)

    def settings(self, **more: Any) -> ServerSettings:
        """How it is asked."""
        return ServerSettings(
            identity_file=str(self.user_key),
            known_hosts=str(self.known_hosts),
            timeout_s=PATIENCE_S * 2,
            **more,
        )

    def log_in(self, key: Path, **more: Any) -> rtunnel.Tunnel:
        """Log in as the user, by this key alone."""
        return rtunnel.connect(
            f"{self.user}@127.0.0.1:{self.port}",
            identity_files=[str(key)],
            known_hosts=str(self.known_hosts),
            config_file="none",
            agent=False,
            **more,
        )


@pytest.fixture(scope="module")
def pool(
    x2go_server: X2goServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("pool"), x2go_server) as server:
        yield server


@pytest.fixture
def settings(pool: Pool, tmp_path: Path) -> Path:
    """The settings of a broker for the pool."""
    write_users(tmp_path, **{pool.user: PASSWORD})
    profiles = (
        "[DEFAULT]\nuser=BROKER_USER\n"
        f"[clock]\nname=A clock\ncommand=xclock\nrootless=true\nhost={pool.hosts}\n"
        "speed=4\nsound=false\nuseexports=false\nprint=false\n"
        f"[by-password]\nname=A clock, too\ncommand=xclock\nhost={pool.hosts}\n"
        "speed=4\nsound=false\nuseexports=false\nprint=false\nrootless=true\n"
        "broker-session-autologin=false\n"
    )
    return write_settings(
        tmp_path,
        profiles,
        f"""
[authentication]
mechanism = "htpasswd"
file = "users"
[servers]
identity_file = "{pool.user_key}"
known_hosts = "{pool.known_hosts}"
timeout_s = 60
autologin = true
key_lifetime_s = {KEY_LIFETIME_S}
""",
    )


@pytest.fixture
def broker(settings: Path) -> Iterator[BrokerServer]:
    with BrokerServer(settings) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_is_left(x2go_server: X2goServer, pool: Pool) -> Iterator[None]:
    x2go_server.end_sessions()
    yield
    x2go_server.end_sessions()
    pool.one_shot_keys.unlink(missing_ok=True)


def start(control: Control, display: Display, root: Path) -> Terminal:
    """Start a session with a clock in it."""
    terminal = Terminal(
        control,
        SessionOptions(command="xclock -update 1", link="lan"),
        sessions_root=root,
        environment={**os.environ, "DISPLAY": display.name},
    )
    terminal.start()
    return terminal


def select(broker: BrokerServer, pool: Pool, **more: str) -> str:
    """Select a session of the pool; return what the broker answers."""
    answer = broker.ask(
        task="selectsession", sid="clock", user=pool.user, password=PASSWORD, **more
    )
    assert answer.status_code == 200, answer.text
    return answer.text.partition("Access granted\n")[2]


def let_keys_be_due(settings: Path) -> None:
    """Let the time of all keys be over, for the brokers."""
    state = sqlite3.connect(settings.with_name("state"), timeout=PATIENCE_S)
    with contextlib.closing(state), state:
        changed = state.execute("UPDATE placed_keys SET due = 0").rowcount
    assert changed == 1


def key_in(text: str, folder: Path) -> Path:
    """Write the private key of an answer to a file."""
    found = re.search(PEM, text)
    assert found is not None, text
    path = folder / "one-shot"
    path.write_text(found[0])
    path.chmod(0o600)
    return path


# What servers are asked.


def test_a_server_tells_its_load_and_its_sessions(
    pool: Pool, control: Control, client_display: Display, tmp_path: Path
) -> None:
    terminal = start(control, client_display, tmp_path)
    servers = Servers(pool.settings())
    here = Host("here", "127.0.0.1", pool.port)
    dead = Host("dead", "127.0.0.1", pool.dead_port)
    try:
        answers = servers.ask([dead, here], probe=True)
        assert list(answers) == [here]
        load = answers[here].load
        assert isinstance(load, Load)
        assert load.processors == os.cpu_count()
        assert load.sessions >= 1
        (own,) = [
            each for each in answers[here].sessions if each.info.user == pool.user
        ]
        assert own.info.name == terminal.session.name
        assert own.line.startswith(f"{own.info.agent_pid}|{own.info.name}|")
        # The connection was lost: another is made.
        pool.kill_sessions()
        assert here in servers.ask([here], probe=True)
    finally:
        servers.close()
        terminal.terminate()


def test_a_broker_may_become_root_by_sudo(pool: Pool, x2go_server: X2goServer) -> None:
    rule = Path("/etc/sudoers.d") / pool.user
    rule.write_text(f"{pool.user} ALL=(root) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    pool.write_keys(pool.authorized_keys.read_text())
    servers = Servers(pool.settings(user=pool.user, sudo=True))
    here = Host("here", "127.0.0.1", pool.port)
    try:
        assert servers.ask([here], probe=True)[here].load is not None
        assert servers.run(here, "id -u").stdout == "0\n"
    finally:
        servers.close()
        rule.unlink()


# Resuming.


def test_a_suspended_session_is_resumed_where_it_is(
    broker: BrokerServer,
    pool: Pool,
    control: Control,
    client_display: Display,
    tmp_path: Path,
) -> None:
    terminal = start(control, client_display, tmp_path / "x2go")
    terminal.suspend()
    listed = broker.ask_json(task="listprofiles", user=pool.user, password=PASSWORD)
    profile = listed["profiles"]["clock"]
    assert (profile["status"], profile["host"]) == ("S", ["here"])
    assert (profile["user"], profile["autologin"]) == (pool.user, True)
    text = select(broker, pool)
    found = re.fullmatch(
        rf"SERVER:127\.0\.0\.1:{pool.port}\n{PEM}SESSION_INFO:(?P<line>.*)\n", text
    )
    assert found is not None, text
    fields = found["line"].split("|")
    assert (fields[1], fields[4]) == (terminal.session.name, "S")
    # Somebody else has no session, and is not shown this one.
    other = broker.ask(
        task="selectsession", sid="clock", user="alice", password="s3cret"
    )
    assert "SESSION_INFO" not in other.text
    # Nor is he by saying that he is this user on the server.
    other = broker.ask(
        task="selectsession",
        sid="clock",
        user="alice",
        password="s3cret",
        login=pool.user,
    )
    assert other.text.splitlines()[-1] == f"SERVER:127.0.0.1:{pool.port}"
    # The cookie of a session opens its windows.
    assert terminal.session.cookie not in broker.log()
    terminal.terminate()


def test_a_session_that_runs_elsewhere_is_suspended_first(
    broker: BrokerServer,
    pool: Pool,
    control: Control,
    client_display: Display,
    tmp_path: Path,
) -> None:
    terminal = start(control, client_display, tmp_path / "x2go")
    text = select(broker, pool)
    line = text.partition("SESSION_INFO:")[2]
    assert line.split("|")[1] == terminal.session.name
    assert line.split("|")[4] == "S"
    assert [info.is_suspended for info in control.sessions()] == [True]


# One-shot keys.


def test_a_one_shot_key_lets_the_user_in_and_is_removed(
    broker: BrokerServer, settings: Path, pool: Pool, tmp_path: Path
) -> None:
    kept = "# without an end of line"
    pool.write_keys(kept)
    key = key_in(select(broker, pool), tmp_path)
    with pool.log_in(key) as tunnel:
        done = rtunnel.run_command(tunnel.transport, "id -un", PATIENCE_S)
        assert done.stdout.decode() == f"{pool.user}\n"
    assert pool.one_shot_keys.stat().st_uid == pool.server.uid
    assert pool.one_shot_keys.stat().st_mode & 0o777 == 0o600
    let_keys_be_due(settings)
    wait_until(lambda: pool.one_shot_keys.read_text() == f"{kept}\n", PATIENCE_S)
    with pytest.raises(AuthenticationFailed):
        pool.log_in(key)
    wait_until(lambda: "key removed" in broker.log(), PATIENCE_S)
    assert "PRIVATE" not in broker.log()


def test_a_key_is_removed_by_another_broker_if_the_first_one_crashes(
    settings: Path, pool: Pool, tmp_path: Path
) -> None:
    with BrokerServer(settings) as first:
        key = key_in(select(first, pool), tmp_path)
        first.kill()
    assert "x2go-broker-" in pool.one_shot_keys.read_text()
    let_keys_be_due(settings)
    with BrokerServer(settings):
        wait_until(lambda: pool.one_shot_keys.read_text() == "", PATIENCE_S)
    with pytest.raises(AuthenticationFailed):
        pool.log_in(key)


def test_a_key_that_nobody_removes_lets_nobody_in_when_its_time_is_over(
    settings: Path, pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lifetime = f"key_lifetime_s = {KEY_LIFETIME_S}"
    assert lifetime in settings.read_text()
    settings.write_text(
        settings.read_text().replace(lifetime, f"key_lifetime_s = {SHORT_LIFETIME_S}")
    )
    with BrokerServer(settings) as broker:
        key = key_in(select(broker, pool), tmp_path)
        broker.kill()

    def refused() -> bool:
        try:
            pool.log_in(key).close()
        except AuthenticationFailed:
            return True
        return False

    wait_until(refused, PATIENCE_S)
    assert 'expiry-time="' in pool.one_shot_keys.read_text()
    let_keys_be_due(settings)
    assert main(["broker", "sweep", "--config", str(settings)]) == 0
    assert capsys.readouterr().out == "removed: 1\n"
    assert pool.one_shot_keys.read_text() == ""


def test_a_key_that_the_client_offers_is_put_without_its_options(
    broker: BrokerServer, pool: Pool, tmp_path: Path
) -> None:
    key = tmp_path / "own"
    run("ssh-keygen", "-q", "-t", "rsa", "-N", "", "-m", "PEM", "-f", str(key))
    kind, blob, _ = key.with_suffix(".pub").read_text().split()
    offer = f"no-X11-forwarding,no-pty,no-user-rc {kind} {blob} me@127.0.0.1"
    answer = broker.ask_json(
        **{"task": "selectsession", "profile-id": "clock"},
        user=pool.user,
        password=PASSWORD,
        pubkey=offer,
    )
    assert answer["selected_session"] == {
        "server": "127.0.0.1",
        "port": str(pool.port),
        "authentication_pubkey": "ACCEPTED",
    }
    (line,) = pool.one_shot_keys.read_text().splitlines()
    assert line.startswith("restrict,port-forwarding,agent-forwarding,expiry-time=")
    assert blob in line
    assert "no-user-rc" not in line
    pool.log_in(key).close()
    # What is no key is not put there.
    evil = f'command="x" {kind} {blob} a\n{kind} {blob} b'
    assert re.search(PEM, select(broker, pool, pubkey=evil))
    assert pool.one_shot_keys.read_text().count(blob) <= 1


def test_no_key_is_written_where_the_user_may_not_write(
    broker: BrokerServer, pool: Pool, tmp_path: Path
) -> None:
    target = tmp_path / "of-root"
    target.write_text("mine\n")
    pool.write_keys("")
    pool.one_shot_keys.unlink()
    pool.one_shot_keys.symlink_to(target)
    text = select(broker, pool)
    assert target.read_text() == "mine\n"
    # A link is exchanged for a file of the user's, or there is no key.
    assert text.startswith(f"SERVER:127.0.0.1:{pool.port}\n")
    # And nobody gets one for root.
    with pytest.raises(AssertionError):
        key_in(
            broker.ask(
                task="selectsession",
                sid="clock",
                user=pool.user,
                password=PASSWORD,
                login="root",
            ).text,
            tmp_path,
        )


# Real clients.


class Pyhoca:
    """Debian's pyhoca-cli, with a home folder of its own."""

    def __init__(self, display: Display, home: Path) -> None:
        self.environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            "HOME": str(home),
            "DISPLAY": display.name,
            "LOGNAME": "somebody",
        }
        ssh = home / ".ssh"
        ssh.mkdir(parents=True)
        (ssh / "config").touch()
        self.log = home / "log"

    def words(self, url: str, *arguments: str) -> list[str]:
        """Return its command line."""
        return ["pyhoca-cli", "--broker-url", url, *arguments]

    def run(self, url: str, *arguments: str) -> str:
        """Run it to its end; return what it printed."""
        done = subprocess.run(
            self.words(url, *arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S * 2,
        )
        return done.stdout


@pytest.fixture
def pyhoca(client_display: Display, tmp_path: Path) -> Pyhoca:
    return Pyhoca(client_display, tmp_path / "home")


def broker_url(broker: BrokerServer, user: str, password: str) -> str:
    return f"http://{user}:{password}@127.0.0.1:{broker.port}/json/"


def test_pyhoca_cli_lists_profiles_of_our_broker(
    broker: BrokerServer, pool: Pool, pyhoca: Pyhoca
) -> None:
    text = pyhoca.run(broker_url(broker, pool.user, PASSWORD), "--list-profiles")
    assert "A clock" in text
    assert "A clock, too" in text
    text = pyhoca.run(broker_url(broker, pool.user, "wrong"), "--list-profiles")
    assert "A clock" not in text


def test_the_broker_client_of_python_x2go_logs_in_by_the_key_that_it_offered(
    broker: BrokerServer, pool: Pool, pyhoca: Pyhoca, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-c", PYTHON_X2GO, broker.url + "/json/", pool.user],
        env={**pyhoca.environment, "BROKER_PASSWORD": PASSWORD},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["profiles"] == ["by-password", "clock"]
    assert said["selected"] == {
        "server": "127.0.0.1",
        "port": str(pool.port),
        "authentication_pubkey": "ACCEPTED",
    }
    key = tmp_path / "key-of-python-x2go"
    key.chmod(0o600)
    pool.log_in(key).close()


def test_pyhoca_cli_starts_a_session_by_our_broker(
    broker: BrokerServer,
    pool: Pool,
    pyhoca: Pyhoca,
    client_display: Display,
    control: Control,
) -> None:
    # With a key of its own: that of Debian 12 fails at the one that it has offered
    # (it copies an object of cryptography, which refuses).
    key = Path(pyhoca.environment["HOME"]) / ".ssh/id_rsa"
    run("ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "", "-f", str(key))
    pool.write_keys(key.with_suffix(".pub").read_text())
    with pyhoca.log.open("w") as log:
        client = subprocess.Popen(
            pyhoca.words(
                broker_url(broker, pool.user, PASSWORD),
                *("-P", "by-password", "--add-to-known-hosts", "-N"),
                *("--terminate-on-ctrl-c", "-d", "--libdebug"),
            ),
            env=pyhoca.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(
            lambda: client.poll() is not None or "xclock" in client_display.windows(),
            PATIENCE_S * 3,
        )
        assert client.poll() is None, pyhoca.log.read_text()[-4000:]
        assert [info.is_running for info in control.sessions()] == [True]
        assert f"server={pool.here}" in broker.log()
    finally:
        if client.poll() is None:
            client.send_signal(signal.SIGINT)
        client.wait(PATIENCE_S * 2)


@pytest.mark.parametrize("form", ["plain", "json"])
def test_our_client_logs_in_to_the_server_by_a_one_shot_key(
    broker: BrokerServer, pool: Pool, form: str
) -> None:
    url = f"{broker.url}/{form}/"
    with open_broker(url, user=pool.user, password=PASSWORD) as client:
        profile = client.list_profiles()["clock"]
        selected = client.select("clock")
        assert selected.key_accepted is (form == "json")
        with key_file(selected) as key:
            chosen = profile_for(profile, selected, key)
            assert (chosen.host, chosen.sshport) == (("127.0.0.1",), pool.port)
            assert key is not None
            pool.log_in(key).close()


def test_an_ssh_login_runs_the_broker(
    settings: Path, pool: Pool, x2go_server: X2goServer
) -> None:
    command = settings.with_name("x2gobroker")
    command.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={ROOT}\n"
        f'exec {sys.executable} -m x2go_session broker ssh --config {settings} "$@"\n'
    )
    command.chmod(0o755)
    rule = Path("/etc/sudoers.d") / pool.user
    rule.write_text(
        f'Defaults:{pool.user} env_keep += "SSH_CONNECTION"\n'
        f"{pool.user} ALL=(root) NOPASSWD: {command}\n"
    )
    rule.chmod(0o440)

    def ask(*words: str) -> str:
        with x2go_server.connect() as tunnel:
            done = rtunnel.run_command(
                tunnel.transport,
                shlex.join(["sudo", "-n", str(command), *words]),
                PATIENCE_S * 2,
            )
        assert done.exit_status == 0, done.stderr
        return done.stdout.decode()

    try:
        text = ask("--user", pool.user, "--task", "listsessions")
        assert re.match(r"AUTHID:\S+\nAccess granted\nSTART_USER_SESSIONS\n", text)
        assert "[clock]\nname=A clock\nhost=dead,here\n" in text
        authid = text.partition("\n")[0].removeprefix("AUTHID:")
        text = ask("--user", pool.user, "--authid", authid, "--task", "selectsession",
                   "--sid", "clock")  # fmt: skip
        assert re.search(rf"granted\nSERVER:127\.0\.0\.1:{pool.port}\n{PEM}", text)
        assert ask("--task", "testcon") == "OK\n"
        program = x2go_server.home / "broker"
        program.write_text(f'#!/bin/sh\nexec sudo -n {command} "$@"\n')
        program.chmod(0o755)
        url = f"ssh://{pool.user}@127.0.0.1:{x2go_server.port}{program}"
        with open_broker(url, ssh=x2go_server.options) as client:
            client.connect()
            assert sorted(client.list_profiles()) == ["by-password", "clock"]
            assert client.select("clock").port == pool.port
        for wrong in (
            ("--user", "alice", "--task", "listsessions"),
            ("--authid", authid, "--task", "listsessions"),
            ("--config", "/dev/null", "--task", "listsessions"),
        ):
            with pytest.raises(AssertionError, match=r"authid|of 'alice'|given once"):
                ask(*wrong)
    finally:
        rule.unlink()
