"""The supervisor: all servers of a configuration, and how it changes while it runs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from rtunnel.errors import ConfigError
from rtunnel.status.model import CONNECTED, ProcessStatus, now, of_process
from rtunnel.supervisor.config import Config, load
from rtunnel.supervisor.health import HealthChecks
from rtunnel.supervisor.logins import Logins
from rtunnel.supervisor.server import Server
from rtunnel.supervisor.watch import FileWatch
from rtunnel.tunnel import Tunnel

log = logging.getLogger("rtunnel.supervisor")

# How long ports and connections that are not wanted any more have to end, before
# what comes in their place begins. A server that does not answer gets no longer.
END_LIMIT_S: Final = 4.0
# Reloads follow each other no faster, however many signals come.
RELOAD_GAP_S: Final = 0.2
# How often `wait_ready` looks.
LOOK_S: Final = 0.02


class Supervisor:
    """Keeps the tunnels of a configuration up until it is closed.

        with rtunnel.Supervisor("tunnels.toml") as supervisor:
            supervisor.wait_ready(30)
            ...

    Takes the path of a TOML file, which is read again when it changes (unless `watch`
    is False) or `reload` is called; or a `rtunnel.supervisor.Config` made in code,
    which `apply` replaces. The context manager starts and closes it.

    Every method may be called from any thread. Raises `ConfigError` for a file that
    is wrong; what goes wrong later is retried, logged, and told by `status`.
    """

    def __init__(
        self, config: str | os.PathLike[str] | Config, *, watch: bool = True
    ) -> None:
        # Read-only after construction.
        self._path = None if isinstance(config, Config) else Path(config)
        self._started = now()
        self._checks = HealthChecks()
        self._logins = Logins()
        # What it has seen is older than what is read next, so that no change is missed.
        self._watch = (
            FileWatch(self._path, self.reload_soon) if self._path and watch else None
        )
        first = config if isinstance(config, Config) else load(config)
        self._reloader = threading.Thread(
            target=self._reload_when_asked, name="rtunnel-reload", daemon=True
        )
        # Called around each reload: before, and after with its outcome.
        self.on_reload: Callable[[], None] = lambda: None
        self.on_reloaded: Callable[[ConfigError | None], None] = lambda error: None
        # Whoever changes what is kept up holds this, for as long as that takes; with
        # the first, from reading the file on, so that an older content never wins.
        self._reloading = threading.Lock()
        self._applying = threading.Lock()
        # Protected by _lock; nothing is called while it is held.
        self._lock = threading.Lock()
        self._config = first
        self._servers: dict[str, Server] = {}
        self._closing = False
        self._reload_asked = threading.Event()
        self._closes = threading.Event()
        self._ended = threading.Event()

    @property
    def config(self) -> Config:
        """What it keeps up now."""
        return self._config

    def start(self) -> None:
        """Begin. Does not wait for any server: see `wait_settled`, `wait_ready`."""
        self.apply(self._config)
        if self._path is not None:
            self._reloader.start()
        if self._watch is not None:
            self._watch.start()

    def close(self) -> None:
        """Let go of all ports and connections. Waits a few seconds at most."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            servers = list(self._servers.values())
        if self._watch is not None:
            self._watch.close()
        self._closes.set()
        self._reload_asked.set()
        for server in servers:
            server.end()
        _join(servers)
        if self._reloader.ident is not None:
            self._reloader.join(END_LIMIT_S)
        self._checks.close()
        self._ended.set()

    def apply(self, config: Config) -> None:
        """Keep up what this says from now on; touch only what is different.

        A server that is gone, or reached in another way, is let go of; its ports are
        free when those of others are asked for. On a connection that stays, tunnels
        that are the same stay, and so do the visitors in them. Waits for what ends, a
        few seconds at most.
        """
        with self._applying:
            with self._lock:
                if self._closing:
                    return
                old = dict(self._servers)
            going = [
                server
                for name, server in old.items()
                if name not in config.servers
                or not config.servers[name].connects_like(server.config)
            ]
            for server in going:
                log.info("let go of: server=%s", server.name)
                server.end()
            # Ports move from one server of the file to another only in this order.
            staying = {
                name: server for name, server in old.items() if server not in going
            }
            for name, server in staying.items():
                server.apply(config.servers[name])
            _join(going)
            new = {
                name: Server(name, wanted, self._checks, self._logins, self._hurry)
                for name, wanted in config.servers.items()
                if name not in staying
            }
            with self._lock:
                self._config = config
                self._servers = {
                    name: staying.get(name) or new[name] for name in config.servers
                }
                closing = self._closing
            if not closing:
                for server in new.values():
                    server.start()

    def reload(self) -> None:
        """Read the file again, and apply it. Raises `ConfigError`: all stays as it is.

        What waits for its next try is tried soon. Waits as `apply` does.
        """
        if self._path is None:
            raise ConfigError("there is no file to read again: use apply()")
        with self._reloading:
            config = load(self._path)
            if config == self._config:
                log.info("nothing has changed: file=%s", self._path)
            else:
                self.apply(config)
                log.info(
                    "taken over: file=%s servers=%d tunnels=%d",
                    self._path,
                    len(config.servers),
                    config.tunnel_count,
                )
        self._hurry()

    def reload_soon(self) -> None:
        """Have another thread reload; a mistake in the file is logged. Never blocks."""
        self._reload_asked.set()

    def status(self) -> ProcessStatus:
        """Return what is true now. Never blocks."""
        with self._lock:
            servers = list(self._servers.values())
        return of_process(
            "run", self._started, tuple(server.info() for server in servers)
        )

    def tunnels(self) -> list[tuple[str, Tunnel]]:
        """Return the tunnels that stand, with the names of their servers."""
        with self._lock:
            servers = list(self._servers.values())
        standing = [(server.name, server.tunnel) for server in servers]
        return [(name, tunnel) for name, tunnel in standing if tunnel is not None]

    def summary(self) -> str:
        """Return the status in a few words, as `3 of 4 tunnels listen`."""
        status = self.status()
        rows = [row for each in status.connections for row in each.listeners]
        down = [
            each.name for each in status.connections if each.state != CONNECTED
        ]  # fmt: skip
        listening = sum(row.state == "listening" for row in rows)
        text = f"{listening} of {len(rows)} tunnels listen"
        return f"{text}; not connected: {', '.join(down)}" if down else text

    @property
    def is_working(self) -> bool:
        """Whether every thread is there that should be; for a watchdog."""
        with self._lock:
            servers = list(self._servers.values())
        if self._closing:
            return True
        reloads = self._reloader.ident is None or self._reloader.is_alive()
        return reloads and all(server.is_working for server in servers)

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until all that should listen does; False after the time or the end."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.status().ready:
            if deadline_s is not None and time.monotonic() >= deadline_s:
                return False
            if self._ended.wait(LOOK_S):
                return False
        return True

    def wait_settled(self, timeout_s: float | None = None) -> bool:
        """Wait until each server was tried once, with whatever result."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            servers = list(self._servers.values())
        for server in servers:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if not server.settled.wait(None if left_s is None else max(left_s, 0.0)):
                return False
        return True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is closed; False after the time."""
        return self._ended.wait(timeout_s)

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hurry(self) -> None:
        """Have everything tried soon that waits. Never blocks; any thread."""
        with self._lock:
            servers = list(self._servers.values())
        for server in servers:
            server.hurry()

    def _reload_when_asked(self) -> None:
        while True:
            self._reload_asked.wait()
            self._reload_asked.clear()
            if self._closing:
                return
            self.on_reload()
            error: ConfigError | None = None
            try:
                self.reload()
            except ConfigError as wrong:
                error = wrong
                for line in str(wrong).splitlines():
                    log.error("not taken over: %s", line)
            except Exception:
                log.exception("not taken over: file=%s", self._path)
            self.on_reloaded(error)
            self._closes.wait(RELOAD_GAP_S)


def _join(servers: list[Server]) -> None:
    deadline_s = time.monotonic() + END_LIMIT_S
    for server in servers:
        if not server.join(max(deadline_s - time.monotonic(), 0.0)):
            log.info("left to end by itself: server=%s", server.name)
