"""Runs a command for each visitor: what inetd does, and `socat EXEC:`.

The command's stdin and stdout are the visitor's socket itself, so that nothing stands
between it and the engine. Its stderr is that of this process. It learns of its visitor
by the variables that systemd sets for a socket unit with Accept=yes.

A command whose visitor is gone is told so by its input and output; one that is reset
(by `pause`, `close` or a time limit) gets SIGTERM with all that it started, and a
while later SIGKILL.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Final

from rtunnel.services import ExecService
from rtunnel.ssh.relay import RelayEnd
from rtunnel.tunnel.workers import Workers

if TYPE_CHECKING:
    from rtunnel.tunnel.handlers import Visitor
    from rtunnel.tunnel.visit import Visit

log = logging.getLogger("rtunnel.tunnel.execute")

SHELL: Final = "/bin/sh"
# From SIGTERM to SIGKILL: a short form of systemd's TimeoutStopSec.
KILL_AFTER_S: Final = 5.0


class ExecHandler:
    """Starts the command with each visitor, and waits for it on a thread."""

    def __init__(self, service: ExecService, workers: Workers) -> None:
        self._command = service.command
        self._workers = workers

    def offer(self, visit: Visit) -> None:
        conn = visit.accept_pair()
        if conn is None:
            return
        try:
            self._workers.start(
                f"rtunnel-{visit.visitor.listener.name}",
                lambda: self._serve(visit, conn),
            )
        except RuntimeError as error:
            conn.close()
            visit.fail(error)

    def close(self) -> None:
        """Nothing of its own: the commands end with their connections."""

    def _serve(self, visit: Visit, conn: socket.socket) -> None:
        with conn:
            try:
                process = subprocess.Popen(
                    [SHELL, "-c", self._command],
                    stdin=conn.fileno(),
                    stdout=conn.fileno(),
                    env={**os.environ, **_environment(visit.visitor)},
                    start_new_session=True,
                )
            except OSError as error:
                visit.fail(error)
                return
        running = _Running(process)
        visit.add_end_callback(running.connection_ended)
        status = running.wait()
        log.info("command ended: visit=%s status=%d", visit, status)


class _Running:
    """A command and the processes that it has started: its process group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        # Protected by _lock: while it is held and `_over` is false, the number of the
        # process is nobody else's.
        self._lock = threading.Lock()
        self._over = False
        self._timer: threading.Timer | None = None

    def wait(self) -> int:
        """Wait for the command; return its exit status."""
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._over = True
            timer = self._timer
            status = self._process.wait()
        if timer is not None:
            timer.cancel()
        return status

    def connection_ended(self, end: RelayEnd) -> None:
        """End what is left: nobody reads it any more."""
        with self._lock:
            if self._over:
                return
            self._timer = threading.Timer(KILL_AFTER_S, self._kill)
            self._timer.daemon = True
            self._timer.start()
            self._signal(signal.SIGTERM)

    def _kill(self) -> None:
        with self._lock:
            if not self._over:
                self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _environment(visitor: Visitor) -> dict[str, str]:
    """Return what the command is told: only what an address and a port can be."""
    try:
        address = str(ipaddress.ip_address(visitor.address))
    except ValueError:
        return {"REMOTE_ADDR": "", "REMOTE_PORT": ""}
    return {"REMOTE_ADDR": address, "REMOTE_PORT": str(int(visitor.port))}
