"""`rtunnel run`: keep the tunnels of a configuration file up, as a service does."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from rtunnel.cli import exit_status, logs
from rtunnel.cli.ending import ToldToEnd, told_to_end_by_signals
from rtunnel.cli.exit_status import ExitStatus
from rtunnel.cli.status_command import serve_option
from rtunnel.cli.systemd import Notifier, passed_socket
from rtunnel.errors import ConfigError, RTunnelError

if TYPE_CHECKING:
    from rtunnel.status.model import ProcessStatus
    from rtunnel.supervisor import Supervisor

log = logging.getLogger("rtunnel.supervisor")

# How often systemd is told what changed, if there is no watchdog that wants more.
TELL_S: Final = 1.0
# So often within the time that the watchdog gives.
BEATS: Final = 3
# How often it is looked whether every server was tried, and the end of that: below
# the 90 s that systemd gives a service (DefaultTimeoutStartSec).
STARTING_S: Final = 0.1
STARTED_S: Final = 45.0


@click.command(
    "run",
    short_help="Keep the tunnels of a configuration file up.",
    epilog="\b\n" + exit_status.describe(),
)
@serve_option
@click.option(
    "--watch/--no-watch",
    default=True,
    help="Take the file over when it changes (as always at SIGHUP).",
)
@click.option("-v", "verbosity", count=True, help="Say more; up to -vvv.")
@click.option("-q", "quiet", is_flag=True, help="No warnings, only errors.")
@logs.format_option
@click.argument("file", type=click.Path(path_type=Path))
def run(
    *,
    file: Path,
    status_on: tuple[str, int] | None,
    watch: bool,
    verbosity: int,
    quiet: bool,
    log_format: logs.LogFormat,
) -> ExitStatus:
    """Keep the tunnels of FILE up until SIGINT or SIGTERM.

    Whatever is lost is tried again, after a wait that fits. What happens is logged on
    stderr. SIGHUP, or a change of FILE, takes over what is different in it; a mistake
    leaves all as it is. `rtunnel verify` checks a file beforehand. --status wins over
    that of the file.

    \b
        rtunnel run tunnels.toml
    """
    logs.show(verbosity, quiet, log_format)
    if not quiet and not verbosity:
        log.setLevel(logging.INFO)
    reload_asked = _Later()
    try:
        with told_to_end_by_signals({signal.SIGHUP: reload_asked}):
            _keep(file, status_on, watch, reload_asked)
    except ToldToEnd:
        pass
    return ExitStatus.ENDED


class _Later:
    """A signal's function that is known only later; a signal before is kept."""

    def __init__(self) -> None:
        self._supervisor: Supervisor | None = None
        self._asked = False

    def __call__(self) -> None:
        self._asked = True
        if self._supervisor is not None:
            self._supervisor.reload_soon()

    def goes_to(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        if self._asked:
            supervisor.reload_soon()


def _keep(
    file: Path, status_on: tuple[str, int] | None, watch: bool, reload_asked: _Later
) -> None:
    """Keep the tunnels up; tell systemd about it. Ends by an exception only."""
    from rtunnel.supervisor import Supervisor

    notifier = Notifier()
    supervisor = Supervisor(file, watch=watch)
    reload_asked.goes_to(supervisor)

    def reloaded(error: ConfigError | None) -> None:
        if supervisor.config.status != first.status:
            log.warning("`status` of the file counts from the next start on")
        wrong = f"not taken over: {error}; " if error else ""
        notifier.ready(wrong + supervisor.summary())

    first = supervisor.config
    with _told(supervisor, status_on or first.status_place):
        try:
            supervisor.start()
            beat_s = TELL_S
            if notifier.watchdog_s is not None:
                beat_s = min(beat_s, notifier.watchdog_s / BEATS)
            limit_s = time.monotonic() + STARTED_S
            while not supervisor.wait_settled(STARTING_S):
                notifier.alive()
                if time.monotonic() > limit_s:
                    break  # before systemd takes it for a service that hangs
            said = supervisor.summary()
            log.info("running: %s", said)
            notifier.ready(said)
            supervisor.on_reload = notifier.reloading
            supervisor.on_reloaded = reloaded
            while not supervisor.wait(beat_s):
                if supervisor.is_working:
                    notifier.alive()
                summary = supervisor.summary()
                if summary != said:
                    notifier.status(summary)
                    said = summary
        finally:
            # Now, since who takes too long to close is ended.
            log.info("ending")
            notifier.stopping()
            supervisor.close()


@contextmanager
def _told(supervisor: Supervisor, status_on: tuple[str, int] | None) -> Iterator[None]:
    """Let the process be seen: by `rtunnel status`, over HTTP, on systemd's socket."""
    from rtunnel.status.readiness import SelfTests
    from rtunnel.status.runtime import published
    from rtunnel.status.server import StatusServer

    def source() -> ProcessStatus:
        if not supervisor.is_working:
            raise RTunnelError("a thread of the supervisor has ended: see the log")
        return supervisor.status()

    ready_check = SelfTests(supervisor.tunnels)
    with ExitStack() as stack:
        sock = passed_socket()
        if sock is not None:
            # Perhaps on the very port that the file names.
            status_on = None
            check_private(sock)
            stack.enter_context(
                StatusServer(source, ready_check=ready_check, sock=sock)
            )
            log.info("the status is on the socket that systemd passed")
        server = stack.enter_context(published(source, status_on, ready_check))
        if server is not None:
            log.info("the status is served: url=%s", server.url)
        yield


def check_private(sock: socket.socket) -> None:
    """See that only this machine reaches a socket: the status asks for no password.

    Raises `ConfigError`, and closes the socket.
    """
    if sock.family == socket.AF_UNIX:
        return
    address = str(sock.getsockname()[0])
    if not ipaddress.ip_address(address).is_loopback:
        sock.close()
        raise ConfigError(
            f"the socket that systemd passed listens on {address}: the status is told "
            "on loopback or a Unix socket only, see ListenStream of the socket unit"
        )
