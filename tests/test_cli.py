"""`rtunnel open`, as a process, against a real sshd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rtunnel import errors
from rtunnel.cli import exit_status
from rtunnel.cli.exit_status import ExitStatus
from tests.support.command import ROOT, Command, open_arguments
from tests.support.ports import free_port, listens
from tests.support.sshd import Sshd, wait_until

ENDING = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def target() -> Iterator[int]:
    """The port of a TCP server that sends back what it gets, in capitals."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve_capitals, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def serve_capitals(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        # Who ends the tunnel resets the connections in it.
        with connection, suppress(ConnectionResetError):
            data = b""
            while chunk := connection.recv(65536):
                data += chunk
            connection.sendall(data.upper())


def exchange(visitor: socket.socket, data: bytes) -> bytes:
    """Send everything and EOF; return everything that comes back."""
    with visitor:
        visitor.settimeout(30)
        visitor.sendall(data)
        visitor.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := visitor.recv(65536):
            answer += chunk
        return answer


def visit(port: int, data: bytes = b"hello") -> bytes:
    return exchange(socket.create_connection(("127.0.0.1", port), 30), data)


def is_turned_away(port: int) -> bool:
    """Return whether a visitor is closed, cleanly or not, without a byte."""
    with socket.create_connection(("127.0.0.1", port), 30) as visitor:
        try:
            return visitor.recv(1) == b""
        except ConnectionResetError:
            return True


@contextmanager
def opened(
    sshd: Sshd,
    *arguments: str,
    key: Path | None = None,
    known_hosts: Path | None = None,
    terminal: int | None = None,
    **environment: str,
) -> Iterator[Command]:
    """`rtunnel open` with what reaches the server, and these arguments."""
    flags = open_arguments(sshd, *arguments, key=key, known_hosts=known_hosts)
    with Command(
        *flags, f"{sshd.user}@127.0.0.1", terminal=terminal, **environment
    ) as command:
        yield command


def ends_with(status: ExitStatus, command: Command) -> str:
    """Wait for the end; return the one line on stderr, which must be all there is."""
    assert command.status() == status, command.errors()
    assert command.line() == ""
    (line,) = command.errors().splitlines()
    assert line.startswith("rtunnel: ")
    return line


# -- what it prints and moves ----------------------------------------------------------


def test_open_says_where_it_listens_and_takes_visitors_to_the_target(
    sshd: Sshd, target: int
) -> None:
    port = free_port()
    with opened(sshd, "-R", f"{port}:localhost:{target}") as command:
        assert command.line() == (
            f"listening on 127.0.0.1:{port} -> localhost:{target}"
        )
        assert visit(port) == b"HELLO"
        assert visit(port, b"x" * 3_000_000) == b"X" * 3_000_000


def test_port_0_is_printed_as_the_port_that_the_server_chose(
    sshd: Sshd, target: int
) -> None:
    with opened(sshd, "-R", f"0:localhost:{target}") as command:
        assert visit(command.port()) == b"HELLO"


def test_several_forwards_are_printed_in_their_order(sshd: Sshd, target: int) -> None:
    ports = [free_port(), free_port(), free_port()]
    forwards = [word for p in ports for word in ("-R", f"{p}:localhost:{target}")]
    with opened(sshd, *forwards) as command:
        assert [command.port() for _ in ports] == ports
        assert [visit(port) for port in ports] == [b"HELLO"] * 3


def test_unix_sockets_serve_at_both_ends(sshd: Sshd, tmp_path: Path) -> None:
    here, there = tmp_path / "here.sock", tmp_path / "there.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(here))
        server.listen()
        thread = threading.Thread(target=serve_capitals, args=(server,), daemon=True)
        thread.start()
        with opened(sshd, "-R", f"{there}:{here}") as command:
            assert command.line() == (
                f"listening on 127.0.0.1:unix:{there} -> unix:{here}"
            )
            visitor = socket.socket(socket.AF_UNIX)
            visitor.connect(str(there))
            assert exchange(visitor, b"hello") == b"HELLO"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_dead_target_is_told_and_the_tunnel_stays(sshd: Sshd, target: int) -> None:
    dead = free_port()
    with opened(
        sshd, "-R", f"0:localhost:{dead}", "-R", f"0:localhost:{target}"
    ) as command:
        dead_port, live_port = command.port(), command.port()
        assert is_turned_away(dead_port)
        told = f"cannot connect to localhost:{dead}: Connection refused"
        wait_until(lambda: told in command.errors())
        assert visit(live_port) == b"HELLO"
        command.send(signal.SIGTERM)
        assert command.status() == ExitStatus.ENDED


# -- how it ends -----------------------------------------------------------------------


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_it_with_status_0_and_releases_every_port(
    sshd: Sshd, target: int, number: signal.Signals
) -> None:
    spec = f"0:localhost:{target}"
    with opened(sshd, "-R", spec, "-R", spec) as command:
        ports = [command.port(), command.port()]
        with socket.create_connection(("127.0.0.1", ports[0]), 30) as visitor:
            visitor.sendall(b"still talking")
            command.send(number)
            assert command.status() == ExitStatus.ENDED
        assert command.errors() == ""
        wait_until(lambda: not any(map(listens, ports)))


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_it_while_it_connects(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        with Command("open", "-p", port, "-R", "0:localhost:1", "127.0.0.1") as command:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(4) == b"SSH-"
                command.send(number)
                assert command.status() == ExitStatus.ENDED
            assert command.errors() == ""


# Another thread takes the signal, so nothing wakes the main thread out of its lock: as
# when a signal comes just before that sleeps.
UNWOKEN = """
import signal, threading
from rtunnel.cli.ending import ToldToEnd, told_to_end_by_signals

other = threading.Thread(target=threading.Event().wait, daemon=True)
other.start()
try:
    with told_to_end_by_signals():
        arguments = (other.ident, signal.SIGTERM)
        threading.Timer(0.2, signal.pthread_kill, arguments).start()
        threading.Event().wait()
except ToldToEnd:
    print("told to end")
"""


def test_a_signal_that_wakes_nobody_is_not_lost() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNWOKEN], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "told to end\n"), done.stderr


def test_a_server_that_stopped_answering_does_not_keep_it(tmp_path: Path) -> None:
    with Sshd(tmp_path) as frozen, opened(frozen, "-R", "0:localhost:1") as command:
        command.port()
        frozen.freeze_sessions()
        command.send(signal.SIGTERM)
        assert command.status() == ExitStatus.ENDED


def test_a_job_in_the_background_of_a_script_still_obeys_sigint(sshd: Sshd) -> None:
    """A shell without job control starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with opened(sshd, "-R", "0:localhost:1") as command:
            command.port()
            command.send(signal.SIGINT)
            assert command.status() == ExitStatus.ENDED
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_lost_connection_has_its_own_status(tmp_path: Path) -> None:
    with Sshd(tmp_path) as server, opened(server, "-R", "0:localhost:1") as command:
        command.port()
        server.kill_sessions()
        line = ends_with(ExitStatus.CONNECTION_LOST, command)
        assert "connection to 127.0.0.1 was lost" in line


def test_a_reader_that_closes_stdout_does_not_bring_a_traceback(sshd: Sshd) -> None:
    with opened(sshd, "-R", "0:localhost:1") as command:
        assert command.process.stdout is not None
        command.process.stdout.close()
        assert command.status() == ExitStatus.UNEXPECTED
        assert "Traceback" not in command.errors()


# -- why it does not begin -------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["open", "host"],
        ["open", "-R", "8080:localhost:3000"],
        ["open", "-R", "8080:3000", "host"],
        ["open", "-R", "70000:localhost:1", "host"],
        ["open", "-p", "0", "-R", "0:localhost:1", "host"],
        ["open", "--nonsense", "host"],
        ["opne"],
        ["demo", "--megabytes", "0"],
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_help(
    arguments: list[str],
) -> None:
    with Command(*arguments) as command:
        assert "--help')" in ends_with(ExitStatus.USAGE, command)


def test_a_port_that_nobody_serves_is_a_failed_connection(sshd: Sshd) -> None:
    with opened(sshd, "-R", "0:localhost:1", "-p", str(free_port())) as command:
        assert "refused" in ends_with(ExitStatus.CONNECTION_FAILED, command)


def test_a_name_that_does_not_exist_is_a_failed_connection() -> None:
    name = "no-such-host.invalid"
    with Command("open", "-F", "none", "-R", "0:localhost:1", name) as command:
        assert name in ends_with(ExitStatus.CONNECTION_FAILED, command)


def make_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)],
        check=True,
    )
    return path


def test_a_key_that_the_server_does_not_know_is_an_authentication_error(
    sshd: Sshd, tmp_path: Path
) -> None:
    stranger = make_key(tmp_path / "stranger")
    with opened(sshd, "-R", "0:localhost:1", key=stranger) as command:
        assert "publickey" in ends_with(ExitStatus.AUTHENTICATION, command)


def test_an_unknown_host_key_is_refused_where_nobody_can_be_asked(
    sshd: Sshd, tmp_path: Path
) -> None:
    empty = tmp_path / "known_hosts"
    with opened(sshd, "-R", "0:localhost:1", known_hosts=empty) as command:
        assert "SHA256:" in ends_with(ExitStatus.HOST_KEY, command)


def test_a_changed_host_key_is_refused_with_file_and_line(
    sshd: Sshd, tmp_path: Path
) -> None:
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {other}")
    with opened(sshd, "-R", "0:localhost:1", known_hosts=known_hosts) as command:
        line = ends_with(ExitStatus.HOST_KEY, command)
    assert f"{known_hosts} line 1" in line
    assert "SHA256:" in line


def test_a_forward_that_is_refused_leaves_none_of_the_others(
    sshd: Sshd, target: int
) -> None:
    first = free_port()
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        # With the address: at "localhost" sshd is content with [::1] alone.
        refused = f"127.0.0.1:{taken}:localhost:1"
        with opened(
            sshd, "-R", f"{first}:localhost:{target}", "-R", refused
        ) as command:
            assert str(taken) in ends_with(ExitStatus.FORWARD_REFUSED, command)
    wait_until(lambda: not listens(first))


def test_a_server_without_forwarding_refuses_the_forward(tmp_path: Path) -> None:
    with (
        Sshd(tmp_path, "AllowTcpForwarding no") as server,
        opened(server, "-R", f"{free_port()}:localhost:1") as command,
    ):
        line = ends_with(ExitStatus.FORWARD_REFUSED, command)
        assert "AllowTcpForwarding" in line


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-o", "ConectTimeout=3"], "ConnectTimeout"),
        (["-o", "ConnectTimeout=soon"], "soon"),
        (["-o", "RemoteForward=8080 localhost:1"], "RemoteForward"),
    ],
)
def test_a_wrong_option_is_a_configuration_error_that_names_it(
    sshd: Sshd, flags: list[str], named: str
) -> None:
    with opened(sshd, *flags, "-R", "0:localhost:1") as command:
        assert named in ends_with(ExitStatus.CONFIGURATION, command)


def test_a_missing_configuration_file_is_a_configuration_error() -> None:
    missing = "/nowhere/ssh_config"
    with Command("open", "-F", missing, "-R", "0:localhost:1", "host") as command:
        assert missing in ends_with(ExitStatus.CONFIGURATION, command)


def test_a_backend_that_cannot_run_is_an_error_and_not_another_backend(
    sshd: Sshd,
) -> None:
    with opened(sshd, "-R", "0:localhost:1", RTUNNEL_BACKEND="warp") as command:
        assert "warp" in ends_with(ExitStatus.BACKEND, command)
    with opened(sshd, "-C", "-R", "0:localhost:1", RTUNNEL_BACKEND="engine") as command:
        assert "compression" in ends_with(ExitStatus.BACKEND, command)


def test_every_error_has_a_status_and_every_status_a_meaning() -> None:
    assert set(exit_status.MEANING) == set(ExitStatus)
    unlikely = {
        *(errors.RTunnelError, errors.RequestRefused, errors.ListenerClosed),
        *(errors.ChannelOpenError, errors.TargetUnreachable),
    }
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.RTunnelError):
            arguments = (1,) if issubclass(value, errors.ChannelOpenError) else ()
            status = exit_status.status_of(value("text", *arguments))
            assert (status is ExitStatus.UNEXPECTED) == (value in unlikely)


def test_a_traceback_is_shown_with_vv_only(sshd: Sshd) -> None:
    flags = ("-R", "0:localhost:1", "-p", str(free_port()))
    for verbosity, shown in (("-v", False), ("-vv", True)):
        with opened(sshd, *flags, verbosity) as command:
            assert command.status() == ExitStatus.CONNECTION_FAILED
            assert ("Traceback" in command.errors()) is shown


# -- the flags of ssh(1) ---------------------------------------------------------------


def test_an_alias_of_a_configuration_file_is_connected_and_printed(
    sshd: Sshd, tmp_path: Path, target: int
) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host web-1\n  HostName 127.0.0.1\n  Port {sshd.port}\n"
        f"  User {sshd.user}\n  IdentityFile {sshd.user_key}\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {sshd.known_hosts}\n"
    )
    port = free_port()
    spec = f"{port}:localhost:{target}"
    with Command("open", "-F", str(config), "-R", spec, "web-1") as command:
        assert command.line() == f"listening on web-1:{port} -> localhost:{target}"
        assert visit(port) == b"HELLO"


@pytest.mark.parametrize(
    "flags",
    [
        ["-N"],
        ["-NTnxa"],
        ["-4"],
        ["-C"],
        ["-c", "aes256-ctr", "-m", "hmac-sha2-256"],
        ["-b", "127.0.0.1"],
        ["-o", "Ciphers aes256-gcm@openssh.com", "-o", "BatchMode=yes"],
    ],
    ids=" ".join,
)
def test_a_flag_of_ssh_is_taken(sshd: Sshd, target: int, flags: list[str]) -> None:
    with opened(sshd, *flags, "-R", f"0:localhost:{target}") as command:
        assert visit(command.port()) == b"HELLO"
        assert command.errors() == ""


def test_flags_may_follow_the_destination(sshd: Sshd, target: int) -> None:
    arguments = open_arguments(sshd, "127.0.0.1", "-l", sshd.user)
    with Command(*arguments, "-R", f"0:localhost:{target}") as command:
        assert visit(command.port()) == b"HELLO"


def test_an_ipv4_server_is_not_reached_by_ipv6(sshd: Sshd) -> None:
    with opened(sshd, "-6", "-R", "0:localhost:1") as command:
        ends_with(ExitStatus.CONNECTION_FAILED, command)


def test_a_jump_host_is_on_the_way(sshd: Sshd, tmp_path: Path, target: int) -> None:
    config = tmp_path / "ssh_config"
    common = (
        f"  HostName 127.0.0.1\n  User {sshd.user}\n  IdentityFile {sshd.user_key}\n"
        "  IdentitiesOnly yes\n"
    )
    with Sshd(tmp_path / "jump") as jump:
        public = sshd.user_key.with_suffix(".pub").read_text()
        (tmp_path / "jump" / "authorized_keys").write_text(public)
        config.write_text(
            f"Host jump\n{common}  Port {jump.port}\n"
            f"  UserKnownHostsFile {jump.known_hosts}\n"
            f"Host inner\n{common}  Port {sshd.port}\n"
            f"  UserKnownHostsFile {sshd.known_hosts}\n"
        )
        spec = f"0:localhost:{target}"
        with Command(
            "open", "-F", str(config), "-J", "jump", "-R", spec, "inner"
        ) as command:
            port = command.port()
            assert jump.sessions() != []
            assert visit(port) == b"HELLO"


def test_v_says_which_backend_runs(sshd: Sshd) -> None:
    with opened(sshd, "-v", "-R", "0:localhost:1", RTUNNEL_BACKEND="python") as command:
        command.port()
        assert "python" in command.errors()


def test_q_says_nothing_of_a_dead_target(sshd: Sshd) -> None:
    with opened(sshd, "-q", "-R", f"0:localhost:{free_port()}") as command:
        assert is_turned_away(command.port())
        command.send(signal.SIGTERM)
        assert command.status() == ExitStatus.ENDED
        assert command.errors() == ""


# -- questions -------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A new terminal: the end that a user has, and the end for a process."""
    user, process = os.openpty()
    yield user, process
    os.close(user)
    os.close(process)


def read_until(terminal: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        seen += os.read(terminal, 4096)
    return seen


@pytest.fixture
def locked_key(sshd: Sshd, tmp_path: Path) -> Path:
    """The user's key, behind the passphrase "open sesame"."""
    key = tmp_path / "locked"
    key.write_bytes(sshd.user_key.read_bytes())
    key.chmod(0o600)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", "open sesame", "-f", str(key)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return key


def test_a_passphrase_is_asked_on_the_terminal_and_not_shown(
    sshd: Sshd, locked_key: Path, terminal: tuple[int, int]
) -> None:
    user, process = terminal
    with opened(
        sshd, "-R", "0:localhost:1", key=locked_key, terminal=process
    ) as command:
        assert str(locked_key).encode() in read_until(user, b": ")
        os.write(user, b"open sesame\n")
        command.port()
    os.write(process, b"END")
    assert b"sesame" not in read_until(user, b"END")


def test_batch_mode_asks_nothing(
    sshd: Sshd, locked_key: Path, terminal: tuple[int, int]
) -> None:
    flags = ("-o", "BatchMode=yes", "-R", "0:localhost:1")
    with opened(sshd, *flags, key=locked_key, terminal=terminal[1]) as command:
        ends_with(ExitStatus.AUTHENTICATION, command)


def test_nothing_is_asked_where_there_is_no_terminal(
    sshd: Sshd, locked_key: Path
) -> None:
    with opened(sshd, "-R", "0:localhost:1", key=locked_key) as command:
        ends_with(ExitStatus.AUTHENTICATION, command)


def test_an_unknown_host_key_is_shown_and_kept_when_the_user_says_yes(
    sshd: Sshd, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    user, process = terminal
    known_hosts = tmp_path / "known_hosts"
    with opened(
        sshd, "-R", "0:localhost:1", known_hosts=known_hosts, terminal=process
    ) as command:
        assert b"SHA256:" in read_until(user, b"(yes/no)? ")
        os.write(user, b"yes\n")
        command.port()
    assert f"[127.0.0.1]:{sshd.port}" in known_hosts.read_text()
