"""Dialling targets and choosing handlers, without an SSH connection."""

from __future__ import annotations

import errno
import functools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtunnel import Visitor
from rtunnel.addresses import parse_target
from rtunnel.errors import InvalidAddress
from rtunnel.policy import Policy
from rtunnel.tunnel.dialler import Dialler
from rtunnel.tunnel.handlers import (
    AcceptQueue,
    AsyncHandler,
    FunctionHandler,
    TargetHandler,
    Workers,
    make_handler,
)
from tests.support.files import open_files
from tests.support.ports import free_port
from tests.support.tunnels import TIMEOUT_S

# Dialling.


@pytest.fixture
def dialler() -> Iterator[Dialler]:
    made = Dialler()
    yield made
    made.close()
    made.join(TIMEOUT_S)


class Result:
    """What a dial came to."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._result: socket.socket | OSError | None = None

    def __call__(self, result: socket.socket | OSError) -> None:
        assert self._result is None, "a dial has one result"
        self._result = result
        self._done.set()

    def get(self) -> socket.socket | OSError:
        assert self._done.wait(TIMEOUT_S)
        assert self._result is not None
        return self._result

    def socket(self) -> socket.socket:
        result = self.get()
        assert isinstance(result, socket.socket), result
        return result

    def code(self) -> int | None:
        result = self.get()
        assert isinstance(result, OSError)
        return result.errno


def dial(dialler: Dialler, target: str, timeout_s: float = TIMEOUT_S) -> Result:
    result = Result()
    dialler.dial(parse_target(target), timeout_s, result)
    return result


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost"])
def test_a_connected_socket_is_blocking_and_sends_at_once(
    dialler: Dialler, server: socket.socket, host: str
) -> None:
    with dial(dialler, f"{host}:{port_of(server)}").socket() as sock:
        assert sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_refused_connect_is_the_result(dialler: Dialler) -> None:
    port = free_port()
    assert dial(dialler, f"127.0.0.1:{port}").code() == errno.ECONNREFUSED
    assert dial(dialler, f"localhost:{port}").code() == errno.ECONNREFUSED


def test_a_name_that_does_not_exist_is_the_result(dialler: Dialler) -> None:
    assert isinstance(dial(dialler, "no-such-host.invalid:80").get(), socket.gaierror)


def test_a_socket_path_that_does_not_exist_is_the_result(
    dialler: Dialler, tmp_path: Path
) -> None:
    assert dial(dialler, f"unix:{tmp_path}/none").code() == errno.ENOENT


def test_a_full_unix_socket_is_tried_again_until_there_is_room(
    dialler: Dialler, tmp_path: Path
) -> None:
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        first = dial(dialler, f"unix:{path}").socket()
        second = dial(dialler, f"unix:{path}")
        third = dial(dialler, f"unix:{path}", timeout_s=0.1)
        assert third.code() == errno.EAGAIN
        server.accept()[0].close()
        second.socket().close()
        first.close()


def test_a_lookup_that_hangs_delays_no_other_dial(
    dialler: Dialler, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang(*args: Any, **kwargs: Any) -> list[Any]:
        release.wait(TIMEOUT_S)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    hung = [dial(dialler, "slow.example:80", timeout_s=0.1) for _ in range(9)]
    dial(dialler, f"127.0.0.1:{port_of(server)}").socket().close()
    assert {result.code() for result in hung} == {errno.ETIMEDOUT}
    release.set()


def test_the_next_address_is_tried_while_the_first_one_hangs(
    dialler: Dialler, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        places = [full.getsockname(), server.getsockname()]
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda *args, **kwargs: [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places
            ],
        )
        with dial(dialler, "two.example:80").socket() as sock:
            assert sock.getpeername() == server.getsockname()
        for filler in fillers:
            filler.close()


def test_closing_the_dialler_ends_what_is_under_way(tmp_path: Path) -> None:
    dialler = Dialler()
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        first = dial(dialler, f"unix:{path}").socket()
        waiting = dial(dialler, f"unix:{path}")
        dialler.close()
        assert waiting.code() == errno.ECANCELED
        assert dial(dialler, f"unix:{path}").code() == errno.ECANCELED
        dialler.join(TIMEOUT_S)
        first.close()


def test_a_thousand_dials_leave_nothing_behind(
    dialler: Dialler, server: socket.socket
) -> None:
    before = open_files()
    dead = free_port()
    results = [dial(dialler, f"localhost:{dead}") for _ in range(1000)]
    assert {result.code() for result in results} == {errno.ECONNREFUSED}
    after = open_files()
    assert after <= before + 3  # the selector and its wake-up pair


# Choosing a handler.


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close(cancel=True)
    made.join(TIMEOUT_S)


def serve(conn: socket.socket) -> None: ...


def serve_visitor(conn: socket.socket, visitor: object) -> None: ...


async def serve_async(reader: object, writer: object) -> None: ...


async def serve_async_visitor(
    reader: object, writer: object, visitor: object
) -> None: ...


def serve_named(conn: socket.socket, name: str = "web") -> None: ...


def serve_optional(conn: socket.socket, visitor: Visitor | None = None) -> None: ...


async def serve_async_optional(
    reader: object, writer: object, who: Visitor | None = None
) -> None: ...


def serve_evaluated(conn, who=None): ...


serve_evaluated.__annotations__ = {"who": Visitor | None}


class Service:
    def __call__(self, conn: socket.socket) -> None: ...

    def method(self, conn: socket.socket, visitor: object) -> None: ...


class AsyncService:
    async def __call__(self, reader: object, writer: object) -> None: ...


@pytest.mark.parametrize(
    ("to", "kind", "takes_visitor", "name"),
    [
        (serve, FunctionHandler, False, "serve()"),
        (serve_visitor, FunctionHandler, True, "serve_visitor()"),
        (lambda *parts: None, FunctionHandler, True, None),
        (Service(), FunctionHandler, False, "Service()"),
        (Service().method, FunctionHandler, True, "Service.method()"),
        (functools.partial(serve_visitor, visitor=1), FunctionHandler, False, None),
        (serve_async, AsyncHandler, False, "serve_async()"),
        (serve_async_visitor, AsyncHandler, True, "serve_async_visitor()"),
        (AsyncService(), AsyncHandler, False, "AsyncService()"),
        (functools.partial(serve_async), AsyncHandler, False, None),
        (lambda conn, name="web": None, FunctionHandler, False, None),
        (serve_named, FunctionHandler, False, "serve_named()"),
        (serve_optional, FunctionHandler, True, None),
        (serve_async_optional, AsyncHandler, True, None),
        (serve_evaluated, FunctionHandler, True, None),
    ],
)
def test_a_function_is_called_with_what_it_takes(
    workers: Workers, to: Any, kind: type, takes_visitor: bool, name: str | None
) -> None:
    handler, called = make_handler(to, workers, Policy(), 1)
    assert type(handler) is kind
    assert handler._takes_visitor is takes_visitor  # type: ignore[attr-defined]
    assert name in (None, called)


def test_a_function_that_takes_something_else_is_refused_at_once(
    workers: Workers,
) -> None:
    async def needs_four(a: int, b: int, c: int, d: int) -> None: ...

    with pytest.raises(TypeError, match=r"\(conn\) or with \(conn, visitor\)"):
        make_handler(lambda: None, workers, Policy(), 1)
    with pytest.raises(TypeError, match=r"\(reader, writer, visitor\)"):
        make_handler(needs_four, workers, Policy(), 1)


def test_a_target_is_dialled_and_nothing_means_accept(workers: Workers) -> None:
    for target in ("localhost:80", "unix:/run/app.sock", ("::1", 80)):
        assert isinstance(make_handler(target, workers, Policy(), 1)[0], TargetHandler)
    assert isinstance(make_handler(None, workers, Policy(), 1)[0], AcceptQueue)
    with pytest.raises(InvalidAddress):
        make_handler("not a target", workers, Policy(), 1)
