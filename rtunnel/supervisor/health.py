"""Find out whether targets work: a connection, or a page, every few seconds.

All checks run on one asyncio loop, on a thread that starts with the first of them, so
that a limit of time holds whatever a target does with its bytes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final

from rtunnel.addresses import TcpTarget, UnixTarget
from rtunnel.errors import SHORTAGES
from rtunnel.supervisor.config import HealthConfig

log = logging.getLogger("rtunnel.supervisor.health")

JOIN_LIMIT_S: Final = 5.0
# Pages that say "look elsewhere" are pages; from here on they are errors.
FIRST_ERROR_STATUS: Final = 400

# Called with whether the target works, and why it is thought to.
OnHealth = Callable[[bool, str], None]


class Check:
    """One target that is looked at; `cancel` ends it."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def cancel(self) -> None:
        """End it. Never blocks; any thread. `on_health` may be called once more."""
        self._future.cancel()


class HealthChecks:
    """The checks of one supervisor."""

    def __init__(self) -> None:
        # Protected by _lock.
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(
        self, target: TcpTarget | UnixTarget, config: HealthConfig, on_health: OnHealth
    ) -> Check:
        """Look at a target from now on. It is thought to work until it does not.

        `on_health` is called when that changes, on the loop's thread: no waiting.
        """
        return Check(self._run(_watch(target, config, on_health)))

    def close(self) -> None:
        """End all checks and the thread. Waits for them, a few seconds at most."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(JOIN_LIMIT_S)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run_loop,
                    args=(self._loop,),
                    name="rtunnel-health",
                    daemon=True,
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(_cancel_all())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(
    target: TcpTarget | UnixTarget, config: HealthConfig, on_health: OnHealth
) -> None:
    """Look again and again; tell when the verdict changes."""
    healthy = True
    other = 0  # looks in a row that spoke against the verdict
    while True:
        works, reason = await look(target, config)
        log.debug("looked: target=%s works=%s reason=%s", target, works, reason)
        if works is None:  # we could not look
            await asyncio.sleep(config.interval_s)
            continue
        other = other + 1 if works is not healthy else 0
        if other >= (config.failures if healthy else config.successes):
            healthy, other = works, 0
            on_health(healthy, reason)
        await asyncio.sleep(config.interval_s)


async def look(
    target: TcpTarget | UnixTarget, config: HealthConfig
) -> tuple[bool | None, str]:
    """Look at a target once; return whether it works, and why it is thought to.

    None: this process lacks what looking takes, which says nothing about the target.
    """
    probe = _look_tcp(target) if config.check == "tcp" else _look_http(target, config)
    try:
        async with asyncio.timeout(config.timeout_s):
            return await probe
    except TimeoutError:
        return False, f"no answer within {config.timeout_s:g} s"
    except Exception as error:  # whatever it is, it is no answer
        number = error.errno if isinstance(error, OSError) else None
        if _is_shortage(error):
            return None, str(error) or repr(error)
        return False, os.strerror(number) if number else str(error) or repr(error)


def _is_shortage(error: BaseException | None) -> bool:
    # httpx has the error of the system as the cause of its own.
    while error is not None:
        if isinstance(error, OSError) and error.errno in SHORTAGES:
            return True
        error = error.__cause__ or error.__context__
    return False


async def _look_tcp(target: TcpTarget | UnixTarget) -> tuple[bool, str]:
    if isinstance(target, UnixTarget):
        _, writer = await asyncio.open_unix_connection(target.path)
    else:
        _, writer = await asyncio.open_connection(target.host, target.port)
    # Only that it was accepted counts.
    writer.transport.abort()
    return True, "it takes connections"


async def _look_http(
    target: TcpTarget | UnixTarget, config: HealthConfig
) -> tuple[bool, str]:
    import httpx  # heavy, and few need it

    if isinstance(target, UnixTarget):
        place = "localhost"
        transport = httpx.AsyncHTTPTransport(uds=target.path)
    else:
        place = str(target)
        transport = httpx.AsyncHTTPTransport()
    # Proxies of the environment are not asked: the target is near.
    async with (
        httpx.AsyncClient(transport=transport, timeout=None, trust_env=False) as client,
        client.stream("GET", f"http://{place}{config.path}") as response,
    ):
        status = response.status_code
    return status < FIRST_ERROR_STATUS, f"HTTP status {status}"
