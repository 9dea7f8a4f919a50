"""The asyncio face: against a real sshd, and with the loop never kept waiting."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rtunnel import Tunnel, aio
from rtunnel.errors import ConnectionLost, ListenerClosed, TargetUnreachable
from tests.support.ports import free_port
from tests.support.sshd import Sshd
from tests.support.tunnels import PORT_0, TIMEOUT_S, Target, echo, open_tunnel

Run = Callable[[Callable[[aio.Tunnel], Awaitable[None]]], None]


@pytest.fixture
def run(sshd: Sshd, backend: str) -> Run:
    """Runs a coroutine function on a loop, with a tunnel on each backend."""

    def run_it(test: Callable[[aio.Tunnel], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(60):
                blocking = await asyncio.to_thread(open_tunnel, sshd, backend)
                async with aio.Tunnel(blocking) as tunnel:
                    await test(tunnel)

        asyncio.run(main())

    return run_it


@asynccontextmanager
async def visit(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(port: int, text: bytes) -> bytes:
    async with visit(port) as (reader, writer):
        writer.write(text)
        writer.write_eof()
        return await reader.read()


def connect_options(sshd: Sshd) -> dict[str, Any]:
    return {
        "identity_files": [str(sshd.user_key)],
        "known_hosts": str(sshd.known_hosts),
        "config_file": "none",
        "agent": False,
    }


def destination(sshd: Sshd) -> str:
    return f"{sshd.user}@127.0.0.1:{sshd.port}"


def test_connect_listen_and_iterate(sshd: Sshd) -> None:
    async def main() -> None:
        async with aio.connect(destination(sshd), **connect_options(sshd)) as tunnel:
            listener = await tunnel.listen(PORT_0)
            asking = asyncio.create_task(ask(listener.port, b"you\n"))
            async for visitor in listener:
                assert (visitor.address, visitor.listener) == ("127.0.0.1", listener)
                async with visitor:
                    visitor.writer.write(b"hello " + await visitor.reader.read())
                break
            assert await asking == b"hello you\n"

    asyncio.run(main())


def test_connect_may_be_awaited(sshd: Sshd) -> None:
    async def main() -> None:
        tunnel = await aio.connect(destination(sshd), **connect_options(sshd))
        await tunnel.close()
        await tunnel.wait()

    asyncio.run(main())


def test_many_visitors_at_once_each_get_their_own_answer(run: Run) -> None:
    async def test(tunnel: aio.Tunnel) -> None:
        async with await tunnel.listen(PORT_0) as listener:

            async def serve(visitor: aio.Visitor) -> None:
                async with visitor:
                    visitor.writer.write(b"to " + await visitor.reader.read())

            async def take() -> None:
                async with asyncio.TaskGroup() as group:
                    async for visitor in listener:
                        group.create_task(serve(visitor))

            taking = asyncio.create_task(take())
            texts = [b"%d" % number for number in range(40)]
            answers = await asyncio.gather(*(ask(listener.port, t) for t in texts))
            assert answers == [b"to " + text for text in texts]
        await taking  # the iteration ends with the listener

    run(test)


def test_a_coroutine_handler_runs_on_this_loop(run: Run) -> None:
    async def test(tunnel: aio.Tunnel) -> None:
        threads: set[int] = set()

        async def serve(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            threads.add(threading.get_ident())
            writer.write((await reader.read()).upper())

        listener = await tunnel.listen(PORT_0, serve)
        assert await ask(listener.port, b"hello") == b"HELLO"
        assert threads == {threading.get_ident()}

    run(test)


def test_targets_and_services_are_as_ever(run: Run) -> None:
    async def test(tunnel: aio.Tunnel) -> None:
        with Target(echo) as target:
            to_target = await tunnel.listen(PORT_0, target.spec, max_connections=9)
            to_command = await tunnel.listen(PORT_0, "exec:tr a-z A-Z")
            assert await ask(to_target.port, b"hello") == b"hello"
            assert await ask(to_command.port, b"hello") == b"HELLO"

    run(test)


def test_dial_gives_streams(run: Run) -> None:
    async def test(tunnel: aio.Tunnel) -> None:
        with Target(echo) as target:
            reader, writer = await tunnel.dial(target.spec)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
        with pytest.raises(TargetUnreachable):
            await tunnel.dial(f"127.0.0.1:{free_port()}")

    run(test)


def test_the_loop_goes_on_while_the_server_is_waited_for(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and says nothing
    port = silent.getsockname()[1]

    async def main() -> None:
        options = connect_options(sshd) | {"connect_timeout_s": 20.0}

        async def connect() -> None:
            async with aio.connect(f"me@127.0.0.1:{port}", **options):
                pass

        connecting = asyncio.create_task(connect())
        accepted, _ = await asyncio.to_thread(silent.accept)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not connecting.done()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        accepted.close()  # which ends the attempt on its thread

    with silent:
        asyncio.run(main())


def test_a_listen_that_is_cancelled_leaves_no_listener(run: Run) -> None:
    async def test(tunnel: aio.Tunnel) -> None:
        for _ in range(5):
            listening = asyncio.create_task(tunnel.listen(PORT_0))
            await asyncio.sleep(0)
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await listening).close()
        async with asyncio.timeout(TIMEOUT_S):
            while tunnel.blocking.listeners:
                await asyncio.sleep(0.01)

    run(test)


def test_an_accept_that_is_cancelled_loses_no_visitor(run: Run) -> None:
    async def test(tunnel: aio.Tunnel) -> None:
        listener = await tunnel.listen(PORT_0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await listener.accept()
        async with visit(listener.port), await listener.accept() as visitor:
            assert visitor.address == "127.0.0.1"

    run(test)


def test_accept_is_for_listeners_without_a_handler(run: Run) -> None:
    async def test(tunnel: aio.Tunnel) -> None:
        listener = await tunnel.listen(PORT_0, "exec:true")
        with pytest.raises(RuntimeError, match="go to its handler"):
            await listener.accept()

    run(test)


def test_closing_the_tunnel_ends_iteration_and_waiting(run: Run) -> None:
    async def test(tunnel: aio.Tunnel) -> None:
        listener = await tunnel.listen(PORT_0)

        async def iterate() -> int:
            return len([visitor async for visitor in listener])

        iterating = asyncio.create_task(iterate())
        waiting = asyncio.create_task(tunnel.wait())
        await asyncio.sleep(0)
        await tunnel.close()
        assert await iterating == 0
        await waiting
        with pytest.raises((ListenerClosed, ConnectionLost)):
            await listener.accept()

    run(test)


def test_the_loss_of_the_connection_is_told(tmp_path: Any, backend: str) -> None:
    async def main(sshd: Sshd) -> None:
        blocking = await asyncio.to_thread(open_tunnel, sshd, backend)
        async with aio.Tunnel(blocking) as tunnel:
            listener = await tunnel.listen(PORT_0)
            waiting = asyncio.create_task(tunnel.wait())
            accepting = asyncio.create_task(listener.accept())
            await asyncio.sleep(0)
            sshd.kill_sessions()
            for task in (waiting, accepting):
                with pytest.raises(ConnectionLost):
                    await asyncio.wait_for(task, TIMEOUT_S)

    with Sshd(tmp_path) as sshd:
        asyncio.run(main(sshd))


def test_listen_takes_what_the_other_one_takes() -> None:
    taken = set(inspect.signature(Tunnel.listen).parameters) - {"self", "bind", "to"}
    assert set(aio.ListenOptions.__annotations__) | {"backlog"} == taken


def test_pause_turns_visitors_away_and_resume_takes_them(run: Run) -> None:
    async def test(tunnel: aio.Tunnel) -> None:
        listener = await tunnel.listen(PORT_0, "exec:cat", name="cat")
        listener.pause()
        with contextlib.suppress(OSError):  # it was reset, perhaps in mid-sentence
            assert await ask(listener.port, b"x") == b""
        listener.resume()
        assert await ask(listener.port, b"x") == b"x"
        assert (listener.name, listener.stats().refused) == ("cat", 1)

    run(test)
