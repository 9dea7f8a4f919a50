"""What systemd and a service tell each other: sd_notify(3), sd_listen_fds(3).

Both are a few lines of text on a socket and in the environment, specified and stable.
Elsewhere than under systemd, nothing of this does anything.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Final

log = logging.getLogger("rtunnel.cli.systemd")

FIRST_PASSED_FD: Final = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Tells systemd how the service does. Never blocks; any thread."""

    def __init__(self) -> None:
        # Not for the processes that this one starts.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s()

    def ready(self, status: str) -> None:
        """Say that the service is up: as far as it is, by `status`."""
        self._say("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Say in a few words how it does; `systemctl status` shows it."""
        self._say(f"STATUS={text}")

    def reloading(self) -> None:
        """Say that the configuration is read again; `ready` ends that."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """Say that the service is about to end."""
        self._say("STOPPING=1", "STATUS=ending")

    def alive(self) -> None:
        """Say that it works; to be said more often than each `watchdog_s`."""
        if self.watchdog_s is not None:
            self._say("WATCHDOG=1")

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        # A name that begins with @ is none in the file system.
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), address)
        except OSError as error:
            log.debug("systemd was not told: error=%s", error)


def _watchdog_s() -> float | None:
    """Return within which time systemd wants to hear of us; None if it does not."""
    interval = os.environ.pop("WATCHDOG_USEC", "")
    pid = os.environ.pop("WATCHDOG_PID", "")
    if not interval.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(interval) / 1_000_000 or None


def passed_socket() -> socket.socket | None:
    """Return the socket that systemd listens on for this service; None without one.

    It is the first, if a unit passes several; the others are closed.
    """
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or not int(count):
        return None
    for descriptor in range(FIRST_PASSED_FD + 1, FIRST_PASSED_FD + int(count)):
        os.close(descriptor)
    sock = socket.socket(fileno=FIRST_PASSED_FD)
    sock.set_inheritable(False)
    sock.setblocking(True)
    return sock
