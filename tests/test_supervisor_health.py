"""A target that does not work has its port paused, until it is back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rtunnel import Supervisor
from rtunnel.addresses import TcpTarget, UnixTarget
from rtunnel.supervisor.config import HealthConfig
from rtunnel.supervisor.health import HealthChecks, look
from tests.support.ports import free_port
from tests.support.sshd import Sshd, wait_until
from tests.support.supervising import (
    PATIENCE_S,
    TomlFile,
    info,
    row,
    server_table,
    wait_ready,
    wait_reconnected,
)
from tests.support.tunnels import (
    TIMEOUT_S,
    Target,
    echo,
    read_end,
    read_exactly,
    say,
    visit,
)

QUICK = {"interval_s": 0.05, "failures": 2, "successes": 2}


@pytest.fixture
def file(tmp_path: Path) -> TomlFile:
    return TomlFile(tmp_path / "tunnels.toml")


class Page:
    """A web server whose page has the status that the test says."""

    def __init__(self) -> None:
        page = self
        self.status = 200
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page.asked.append(self.path)
                self.send_response(page.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TIMEOUT_S)


@pytest.fixture
def page() -> Iterator[Page]:
    with contextlib.closing(Page()) as server:
        yield server


def one_look(target: TcpTarget | UnixTarget, **config: Any) -> tuple[bool, str]:
    return asyncio.run(look(target, HealthConfig(**config)))


# One look.


def test_a_target_that_takes_connections_works() -> None:
    with Target(say(b"")) as target:
        assert one_look(TcpTarget("localhost", target.port))[0]


def test_a_target_that_refuses_does_not_work() -> None:
    works, reason = one_look(TcpTarget("127.0.0.1", free_port()))
    assert (works, reason) == (False, "Connection refused")


def test_a_unix_socket_is_looked_at_too(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert not one_look(UnixTarget(str(path)))[0]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        assert one_look(UnixTarget(str(path)))[0]


@pytest.mark.parametrize(
    ("status", "works"), [(200, True), (204, True), (302, True), (404, False)]
)
def test_a_page_works_by_its_status(page: Page, status: int, works: bool) -> None:
    page.status = status
    target = TcpTarget("127.0.0.1", page.port)
    assert one_look(target, check="http", path="/up?a=b") == (
        works,
        f"HTTP status {status}",
    )
    assert page.asked == ["/up?a=b"]


def test_what_is_no_web_server_has_no_page() -> None:
    with Target(say(b"SSH-2.0-no\r\n")) as target:
        works, _ = one_look(TcpTarget("127.0.0.1", target.port), check="http")
    assert not works


def test_a_page_that_comes_in_drops_is_none_within_the_time() -> None:
    ending = threading.Event()

    def drip(conn: socket.socket) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not ending.wait(0.02):
            conn.sendall(b"x")

    with Target(drip) as target:
        began = time.monotonic()
        assert one_look(
            TcpTarget("127.0.0.1", target.port), check="http", timeout_s=0.5
        ) == (False, "no answer within 0.5 s")
        assert time.monotonic() - began >= 0.5
        ending.set()


# Again and again.


def test_only_failures_in_a_row_make_a_target_unwell(page: Page) -> None:
    told: list[tuple[bool, str]] = []
    checks = HealthChecks()
    config = HealthConfig(check="http", interval_s=0.02, failures=3, successes=2)
    checks.start(
        TcpTarget("127.0.0.1", page.port), config, lambda *verdict: told.append(verdict)
    )
    try:
        wait_until(lambda: len(page.asked) > 5)
        assert told == []
        page.status = 503
        wait_until(lambda: told, PATIENCE_S)
        page.status = 200
        wait_until(lambda: len(told) == 2, PATIENCE_S)
        assert told == [(False, "HTTP status 503"), (True, "HTTP status 200")]
    finally:
        checks.close()


def test_a_check_that_is_cancelled_looks_no_more(page: Page) -> None:
    checks = HealthChecks()
    config = HealthConfig(check="http", interval_s=0.02)
    target = TcpTarget("127.0.0.1", page.port)
    check = checks.start(target, config, lambda *verdict: None)
    try:
        wait_until(lambda: page.asked)
        check.cancel()
        other: list[object] = []
        checks.start(
            TcpTarget("127.0.0.1", free_port()),
            HealthConfig(interval_s=0.02),
            lambda *verdict: other.append(verdict),
        )
        # The loop has gone on.
        wait_until(lambda: other, PATIENCE_S)
        seen = len(page.asked)
        time.sleep(0.2)
        # The last one may have been on its way.
        assert len(page.asked) <= seen + 1
    finally:
        checks.close()


# With tunnels.


def test_a_target_that_comes_and_goes_has_its_port_paused_and_resumed(
    sshd: Sshd, file: TomlFile
) -> None:
    port = free_port()
    with Target(echo) as well:
        target = Target(echo)
        spec = {"listen": port, "to": target.spec, "health": QUICK}
        other = free_port()
        file.write(
            a=server_table(
                sshd,
                tunnels={"sick": spec, "well": {"listen": other, "to": well.spec}},
            )
        )
        with Supervisor(file.path) as supervisor:
            wait_ready(supervisor)
            for _ in range(3):
                with visit(other) as untouched:
                    untouched.sendall(b"before")
                    assert read_exactly(untouched, 6) == b"before"
                    target.close()
                    wait_until(
                        lambda: row(supervisor, "sick").state == "paused", PATIENCE_S
                    )
                    assert not supervisor.status().ready
                    # The port is ours, and its visitors are turned away at once.
                    with visit(port) as sock:
                        assert not read_end(sock)
                    target = Target(echo, target.port)
                    wait_ready(supervisor)
                    with visit(port) as sock:
                        sock.sendall(b"back")
                        assert read_exactly(sock, 4) == b"back"
                    untouched.sendall(b"after")
                    assert read_exactly(untouched, 5) == b"after"
            assert info(supervisor).reconnects == 0
        target.close()


def test_a_port_is_paused_on_the_next_connection_as_on_the_last(
    tmp_path: Path, file: TomlFile
) -> None:
    table = {"listen": free_port(), "to": f"127.0.0.1:{free_port()}", "health": QUICK}
    with Sshd(tmp_path / "sshd") as sshd:
        file.write(a=server_table(sshd, tunnels={"sick": table}))
        with Supervisor(file.path) as supervisor:
            wait_until(lambda: row_state(supervisor) == "paused", PATIENCE_S)
            sshd.kill_sessions()
            wait_until(lambda: info(supervisor).reconnects == 1, PATIENCE_S)
            wait_until(lambda: row_state(supervisor) == "paused", PATIENCE_S)
            assert row(supervisor, "sick").last_error == "Connection refused"


def row_state(supervisor: Supervisor) -> str:
    return row(supervisor, "sick").state


def test_another_way_of_checking_leaves_the_visitors_alone(
    sshd: Sshd, file: TomlFile, page: Page
) -> None:
    port = free_port()
    with Target(echo) as target:
        tunnel = {"listen": port, "to": target.spec, "health": QUICK}
        file.write(a=server_table(sshd, tunnels={"sick": tunnel}))
        with Supervisor(file.path, watch=False) as supervisor:
            wait_ready(supervisor)
            with visit(port) as sock:
                # No page is there: the port is paused, which resets its visitors.
                tunnel["health"] = {"interval_s": 0.1}
                file.write(a=server_table(sshd, tunnels={"sick": tunnel}))
                supervisor.reload()
                del tunnel["health"]
                file.write(a=server_table(sshd, tunnels={"sick": tunnel}))
                supervisor.reload()
                sock.sendall(b"still there")
                assert read_exactly(sock, 11) == b"still there"
            tunnel["health"] = QUICK | {"check": "http"}
            file.write(a=server_table(sshd, tunnels={"sick": tunnel}))
            supervisor.reload()
            wait_until(lambda: row_state(supervisor) == "paused", PATIENCE_S)
            # Without a check, nobody says that it is not well.
            del tunnel["health"]
            file.write(a=server_table(sshd, tunnels={"sick": tunnel}))
            supervisor.reload()
            wait_ready(supervisor)
            assert row(supervisor, "sick").connections_total == 1


def test_a_page_decides_for_its_port(sshd: Sshd, file: TomlFile, page: Page) -> None:
    port = free_port()
    health = QUICK | {"check": "http", "path": "/healthz"}
    tunnel = {"listen": port, "to": f"127.0.0.1:{page.port}", "health": health}
    file.write(a=server_table(sshd, tunnels={"sick": tunnel}))
    with Supervisor(file.path) as supervisor:
        wait_ready(supervisor)
        page.status = 500
        wait_until(lambda: row_state(supervisor) == "paused", PATIENCE_S)
        assert row(supervisor, "sick").last_error == "HTTP status 500"
        page.status = 200
        wait_ready(supervisor)
        assert set(page.asked) == {"/healthz"}


def test_checks_go_on_while_the_server_is_down(
    tmp_path: Path, file: TomlFile, page: Page
) -> None:
    health = QUICK | {"check": "http"}
    port = free_port()
    tunnel = {"listen": port, "to": f"127.0.0.1:{page.port}", "health": health}
    with Sshd(tmp_path / "sshd") as sshd:
        file.write(a=server_table(sshd, tunnels={"sick": tunnel}))
        with Supervisor(file.path) as supervisor:
            wait_ready(supervisor)
            sshd.stop()
            wait_until(lambda: info(supervisor).state != "connected", PATIENCE_S)
            seen = len(page.asked)
            wait_until(lambda: len(page.asked) > seen + 3, PATIENCE_S)
            sshd.start()
            wait_reconnected(supervisor, 1)
            assert ask_page(port).startswith(b"HTTP/1.0 200")


def ask_page(port: int) -> bytes:
    with visit(port) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return read_end(sock) or b""
