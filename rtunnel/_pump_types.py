"""What both implementations of the pump share: results, callbacks, limits, checks.

`rtunnel._pump` (compiled) and `rtunnel._pump_py` (the reference) take and return the
same objects, so that a caller need not know which of the two it talks to.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

PollerName: TypeAlias = Literal["auto", "epoll", "poll", "select"]

# A port holds what was fed to it and not written yet. The caller's window bounds that;
# this is the wall behind it: twice the 15 MiB to which a receive window may grow.
PORT_BUFFER_MAX_BYTES: Final = 32 * 1024 * 1024

# Sums of grants stay far from overflow; SSH windows end at 2^32 - 1.
GRANT_MAX_BYTES: Final = 2**48

# Tokens are counted in bytes x nanoseconds in 64 bits (src/pump/bucket.h).
RATE_MAX_BYTES_S: Final = 10**11

# select(2) has no room for more: FD_SETSIZE.
SELECT_MAX_FDS: Final = 1024

log = logging.getLogger("rtunnel.pump")


class Pipes(NamedTuple):
    """One end of a pair that is two descriptors, such as a subprocess's pipes.

    The pair owns both and closes them: hand over `os.dup(process.stdout.fileno())`
    and `os.dup(process.stdin.fileno())`, and close the originals.
    """

    read_fd: int
    write_fd: int


End: TypeAlias = socket.socket | Pipes


class RelayTotals(NamedTuple):
    """Bytes delivered each way by `relay(a, b)`."""

    bytes_ab: int
    bytes_ba: int


class PairEnd(NamedTuple):
    """How a pair ended.

    `error` is None when both directions ended in order. Otherwise it says what broke
    (ECONNABORTED: `reset()` or `Reactor.close()`), and both ends were reset.
    """

    bytes_ab: int
    bytes_ba: int
    error: OSError | None


class PortEvents(Protocol):
    """What a port tells its owner: always on the reactor's thread, never nested.

    None of them may block for long: every other pair and port waits meanwhile. One
    that raises is logged and resets its own port; `on_end` still follows.
    """

    def on_readable(self, data: bytes) -> None:
        """Take bytes read from the socket; never more in sum than was granted."""

    def on_eof(self) -> None:
        """Note that the socket's peer will send no more: once, behind all its data."""

    def on_consumed(self, n: int) -> None:
        """Note that `n` fed bytes left the port.

        They were written to the socket, or discarded because its output is closed:
        either way the sender deserves credit for them.
        """

    def on_end(self, error: OSError | None) -> None:
        """Take leave: the socket is closed, nothing follows.

        `error` is None when both directions ended in order, or after `close()`.
        ECONNABORTED stands for `reset()` and `Reactor.close()`.
        """


def os_error(code: int) -> OSError:
    """Return the OSError subclass that belongs to an errno."""
    return OSError(code, os.strerror(code))


# How an entry ends that was reset by its owner, or with its reactor.
ABORTED: Final = errno.ECONNABORTED


def buffer_full(buffered_bytes: int) -> BufferError:
    return BufferError(
        f"{buffered_bytes} bytes wait for a socket that does not take them, and the"
        f" limit is {PORT_BUFFER_MAX_BYTES}: feed no more than on_consumed gives back"
    )


def fed_after_eof() -> RuntimeError:
    return RuntimeError("bytes were fed after feed_eof()")


def foreign_rate() -> ValueError:
    return ValueError("a rate is kept by the ports of the reactor that made it")


def grant_error(n: int) -> ValueError:
    return ValueError(f"a grant of {n} bytes is out of range (0 to {GRANT_MAX_BYTES})")


def closed_error() -> RuntimeError:
    return RuntimeError("the reactor is closed")


def poller_error(name: object) -> ValueError:
    return ValueError(f"poller is auto, epoll, poll or select; got {name!r}")


def select_error() -> ValueError:
    return ValueError(
        f"select(2) cannot watch descriptors from {SELECT_MAX_FDS} on: use epoll"
    )


def check_rate(rate_bytes_s: int | None) -> int:
    """Return the rate, 0 for none; raise ValueError for one that cannot be kept."""
    if rate_bytes_s is None:
        return 0
    if not 1 <= rate_bytes_s <= RATE_MAX_BYTES_S:
        raise ValueError(
            f"rate_bytes_s must be 1 to {RATE_MAX_BYTES_S}, or None for no limit;"
            f" got {rate_bytes_s}"
        )
    return int(rate_bytes_s)


def check_socket(sock: socket.socket) -> int:
    """Return the descriptor of a socket that the pump can move bytes for.

    Raises TypeError for an ssl.SSLSocket: its descriptor carries records, which the
    pump would pass on as they are. Raises ValueError if it is not a stream, or closed.
    """
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(sock, ssl.SSLSocket):
        raise TypeError(
            "a TLS socket cannot be pumped: bridge it through a socket.socketpair()"
        )
    if not isinstance(sock, socket.socket):
        raise TypeError(f"a socket is needed, not {type(sock).__name__}")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"a stream socket is needed, not {sock.type!r}")
    if sock.fileno() < 0:
        raise ValueError("the socket is closed")
    return sock.fileno()


CheckedEnd: TypeAlias = tuple[int, int, bool]  # read fd, write fd, is a socket


def check_ends(a: End, b: End) -> tuple[CheckedEnd, CheckedEnd]:
    """Return the descriptors of a pair's ends; raise as `check_socket`."""
    end_a, end_b = _check_end(a), _check_end(b)
    if {*end_a[:2]} & {*end_b[:2]}:
        raise ValueError("both ends are the same descriptor: a pair joins two")
    return end_a, end_b


def _check_end(end: End) -> CheckedEnd:
    if not isinstance(end, Pipes):
        fd = check_socket(end)
        return fd, fd, True
    for fd in end:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)):
            raise ValueError(
                f"descriptor {fd} is neither a pipe, a socket nor a terminal: the"
                " pump cannot wait for it"
            )
    if end.read_fd == end.write_fd:
        raise ValueError("Pipes needs two descriptors: os.dup() one of them")
    return end.read_fd, end.write_fd, False


class _Reactor(Protocol):
    def add_pair(
        self,
        a: End,
        b: End,
        on_end: Callable[[PairEnd], None] | None = None,
        rate_bytes_s: int | None = None,
    ) -> object: ...
    def run(self) -> None: ...
    def close(self) -> None: ...


def relay_with(
    reactor: _Reactor, a: End, b: End, rate_bytes_s: int | None
) -> RelayTotals:
    """Relay one pair on this thread; `reactor` is closed afterwards."""
    ends: list[PairEnd] = []

    def on_end(end: PairEnd) -> None:
        ends.append(end)
        reactor.close()

    try:
        reactor.add_pair(a, b, on_end, rate_bytes_s)
        reactor.run()
    finally:
        reactor.close()
    end = ends[0]
    if end.error is not None:
        raise end.error
    return RelayTotals(end.bytes_ab, end.bytes_ba)
