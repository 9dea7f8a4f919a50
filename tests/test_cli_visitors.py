"""`rtunnel open` with services, and with rules for visitors, as a process."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from rtunnel.cli.exit_status import ExitStatus
from tests.support.command import ROOT, Command, open_arguments
from tests.support.curl import PROXY_ERROR, curl
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    Target,
    background,
    echo,
    read_all,
    read_end,
    read_exactly,
    say,
    send_and_end,
    visit,
)


@contextmanager
def opened(sshd: Sshd, *arguments: str, **environment: str) -> Iterator[Command]:
    """`rtunnel open` with what reaches the server, and these arguments."""
    flags = open_arguments(sshd, *arguments)
    with Command(*flags, f"{sshd.user}@127.0.0.1", **environment) as command:
        yield command


@pytest.fixture
def target() -> Iterator[Target]:
    with Target(echo) as opened_target:
        yield opened_target


def talk(port: int, text: bytes = b"hello") -> bytes | None:
    """Return the answer; None from who turns visitors away in mid-sentence."""
    with visit(port) as sock:
        try:
            send_and_end(sock, text)
            return read_all(sock)
        except OSError:
            return None


def test_a_port_alone_is_a_socks_proxy_for_any_program(sshd: Sshd) -> None:
    """ssh itself goes through it, to the very server, by socat."""
    with opened(sshd, "-R", "0") as command:
        line = command.line()
        assert line.endswith(" -> socks"), (line, command.errors())
        proxy_port = int(line.split()[2].rpartition(":")[2])
        proxy = f"socat - SOCKS4A:127.0.0.1:%h:%p,socksport={proxy_port}"
        done = subprocess.run(
            [
                *("ssh", "-F", "none", "-p", str(sshd.port), "-i", str(sshd.user_key)),
                *("-o", f"UserKnownHostsFile={sshd.known_hosts}"),
                *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
                *("-o", f"ProxyCommand={proxy}"),
                *(f"{sshd.user}@127.0.0.1", "echo through the proxy"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout == "through the proxy\n", done.stderr


def test_what_a_socks_proxy_may_reach_is_said_by_flags(sshd: Sshd) -> None:
    with (
        Target(say(b"HTTP/1.0 200 OK\r\n\r\nallowed")) as first,
        Target(say(b"HTTP/1.0 200 OK\r\n\r\nalso allowed")) as second,
        Target(say(b"HTTP/1.0 200 OK\r\n\r\nforbidden")) as third,
        opened(
            sshd,
            *("-R", "0:socks", "--permit-open", first.spec),
            *("--permit-open", f"*:{second.port}"),
        ) as command,
    ):
        proxy = ("--socks5-hostname", f"127.0.0.1:{command.port()}")
        # The targets do not read the request, which may reset the answer's end.
        for target in (first, second):
            curl(*proxy, f"http://{target.spec}/")
            assert target.accepted == 1
        assert curl(*proxy, f"http://{third.spec}/").status == PROXY_ERROR
        assert third.accepted == 0


def test_what_ssh_config_permits_holds_where_no_flag_says_it(sshd: Sshd) -> None:
    with (
        Target(echo) as target,
        opened(sshd, "-R", "0", "-o", "PermitRemoteOpen=none") as command,
    ):
        proxy = ("--socks5-hostname", f"127.0.0.1:{command.port()}")
        assert curl(*proxy, f"http://{target.spec}/").status == PROXY_ERROR
        assert target.accepted == 0
    with opened(sshd, "-R", "0", "-o", "PermitRemoteOpen=db") as command:
        assert command.status() == ExitStatus.CONFIGURATION
        assert "PermitRemoteOpen" in command.errors()


def test_folders_and_commands_are_served(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("a page")
    with opened(
        sshd, "-R", f"0:folder:{tmp_path}", "-R", "0:exec:tr a-z A-Z | rev"
    ) as command:
        folder_line, command_line = command.line(), command.line()
        assert folder_line.endswith(f" -> folder:{tmp_path}"), command.errors()
        assert command_line.endswith(" -> exec:tr a-z A-Z | rev")
        ports = [
            int(line.split()[2].rpartition(":")[2])
            for line in (folder_line, command_line)
        ]
        assert curl(f"http://127.0.0.1:{ports[0]}/page.txt").body == b"a page"
        assert talk(ports[1], b"hello\n") == b"OLLEH\n"


APP = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"an application"})
"""


def test_an_application_is_served(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "served_app.py").write_text(APP)
    path = f"{ROOT}:{tmp_path}"
    with opened(sshd, "-R", "0:app:served_app:app", PYTHONPATH=path) as command:
        url = f"http://127.0.0.1:{command.port()}/"
        assert curl(url).body == b"an application"
        command.send(signal.SIGTERM)
        assert command.status() == ExitStatus.ENDED
        assert command.errors() == ""


def test_visitors_are_limited_by_flags(sshd: Sshd, target: Target) -> None:
    with (
        opened(
            sshd,
            *("-R", f"0:{target.spec}", "--max-connections", "1", "--rate", "1M"),
            *("--allow", "127.0.0.0/8", "--deny", "192.0.2.1"),
            *("--connect-timeout", "5", "--priority", "interactive"),
        ) as command,
        ExitStack() as stack,
    ):
        port = command.port()
        data = bytes(100_000)
        first = stack.enter_context(visit(port))
        first.sendall(b"x")
        assert read_exactly(first, 1) == b"x"
        assert talk(port) in (b"", None)  # one too many
        with background(send_and_end, first, data):
            assert read_all(first) == data
        first.close()
        wait_until(lambda: talk(port) == b"hello")


def test_visitors_that_are_denied_are_turned_away(sshd: Sshd, target: Target) -> None:
    with opened(sshd, "-R", f"0:{target.spec}", "--deny", "127.0.0.1") as command:
        assert talk(command.port()) in (b"", None)
        assert target.accepted == 0


def test_idle_connections_end_and_the_log_says_so(sshd: Sshd, target: Target) -> None:
    with opened(
        sshd, "-v", "-R", f"0:{target.spec}", "--idle-timeout", "0.2"
    ) as command:
        with visit(command.port()) as sock:
            assert read_end(sock) in (b"", None)
        wait_until(lambda: "reason=idle" in command.errors())
        assert "connection opened" in command.errors()


def test_a_target_is_told_who_the_visitor_is(sshd: Sshd, target: Target) -> None:
    with (
        opened(sshd, "-R", f"0:{target.spec}", "--proxy-protocol", "1") as command,
        visit(command.port()) as sock,
    ):
        own_port = sock.getsockname()[1]
        send_and_end(sock, b"hello")
        header, _, rest = read_all(sock).partition(b"\r\n")
        assert header.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 %d " % own_port)
        assert rest == b"hello"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-R", "0:a:1", "--rate", "fast"], "'fast' is no rate"),
        (["-R", "0:a:1", "--rate", "0"], "'0' is no rate"),
        (["-R", "0:a:1", "--allow", "here"], "expected an address, or a network"),
        (["-R", "0:a:1", "--permit-open", "b:1"], "--permit-open is for a SOCKS"),
        (["-R", "0", "--permit-open", "b"], "expected host:port"),
        (["-R", "0", "--proxy-protocol", "1"], "--proxy-protocol is for a target"),
        (["-R", "0:a:1", "--max-connections", "0"], "--max-connections"),
        (["-R", "/s:a:1", "--deny", "192.0.2.1"], "have no address"),
        (["-R", "8080:3000"], "expected 8080:localhost:3000"),
        (["-R", "0:app:module"], "expected app:module:attribute"),
    ],
)
def test_a_rule_that_makes_no_sense_is_a_usage_error(
    arguments: list[str], says: str
) -> None:
    with Command("open", "-F", "none", *arguments, "host.invalid") as command:
        assert command.status() == ExitStatus.USAGE
        assert says in command.errors()


def test_a_service_that_cannot_run_ends_the_command(sshd: Sshd) -> None:
    with opened(sshd, "-R", "0:folder:/nowhere") as command:
        assert command.status() == ExitStatus.CONFIGURATION
        assert "cannot serve the folder '/nowhere'" in command.errors()
