"""Move bytes between sockets at C speed: `relay` for two, `Reactor` for thousands.

    totals = rtunnel.pump.relay(a, b)        # blocks until both directions ended

    reactor = rtunnel.pump.Reactor()
    threading.Thread(target=reactor.run).start()
    reactor.add_pair(a, b, on_end=print)     # splice(2) where the kernel can
    port = reactor.add_port(sock, events)    # a socket whose other end is memory

There are two implementations with one contract (tests/test_pump_contract.py): the
compiled `rtunnel._pump`, which is what this module exports, and `rtunnel._pump_py`,
the reference. On CPython a missing compiled module is an ImportError, not a slow path
taken in silence; other interpreters get the reference.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from rtunnel._pump_types import (
    End,
    PairEnd,
    Pipes,
    PollerName,
    PortEvents,
    RelayTotals,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from rtunnel._pump import Pair, Port, Reactor, relay

__all__ = [
    "Pair",
    "PairEnd",
    "Pipes",
    "Port",
    "PortEvents",
    "PumpModule",
    "Reactor",
    "RelayTotals",
    "implementation",
    "relay",
]

ImplementationName: TypeAlias = Literal["pump", "python"]

_MODULES = {"pump": "rtunnel._pump", "python": "rtunnel._pump_py"}


class PortLike(Protocol):
    """What `add_port` returns, whichever implementation made it."""

    @property
    def bytes_in(self) -> int:
        """Bytes read from the socket."""

    @property
    def bytes_out(self) -> int:
        """Bytes written to the socket; what was discarded is not counted."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes fed that the socket has not taken yet."""

    def grant(self, n: int) -> None:
        """Allow `n` more bytes to be read from the socket; a port starts with 0."""

    def feed(self, data: bytes) -> None:
        """Queue bytes for the socket, written at once when nothing is queued."""

    def feed_eof(self) -> None:
        """End the output: shutdown(SHUT_WR) behind what was fed, once."""

    def reset(self) -> None:
        """Drop what is buffered and reset the socket: its peer sees ECONNRESET."""

    def close(self) -> None:
        """Write what was fed, then close the socket in order; reading stops."""


class PairLike(Protocol):
    """What `add_pair` returns, whichever implementation made it."""

    @property
    def bytes_ab(self) -> int:
        """Bytes delivered from a to b."""

    @property
    def bytes_ba(self) -> int:
        """Bytes delivered from b to a."""

    def reset(self) -> None:
        """Drop what is buffered and reset both ends: the peers see ECONNRESET."""


class ReactorLike(Protocol):
    """A `Reactor` of either implementation."""

    @property
    def poller(self) -> str:
        """The name of the poller in use: "epoll", "poll" or "select"."""

    def add_pair(
        self,
        a: End,
        b: End,
        on_end: Callable[[PairEnd], None] | None = None,
        rate_bytes_s: int | None = None,
    ) -> PairLike:
        """Join two ends: each one's bytes, end of stream and reset go to the other."""

    def add_rate(self, rate_bytes_s: int) -> Any:
        """Return a rate for ports of this reactor, which keep it together."""

    def add_port(self, sock: socket, events: PortEvents, rate: Any = None) -> PortLike:
        """Join a socket to memory: `feed` writes, `events` tell what was read."""

    def run(self) -> None:
        """Move bytes and make callbacks on this thread until `close()`."""

    def close(self) -> None:
        """Reset what is left, and end `run()`; `on_end` of each is still called."""


class PumpModule(Protocol):
    """A module that implements the pump."""

    # A method, not an attribute: a class called is a function that makes reactors.
    def Reactor(self, poller: PollerName = "auto") -> ReactorLike:
        """Make a reactor."""

    def relay(self, a: End, b: End, *, rate_bytes_s: int | None = None) -> RelayTotals:
        """Move bytes between two ends until both directions have ended."""


def implementation(name: ImplementationName) -> PumpModule:
    """Return the module that implements the pump: "pump" is compiled, "python" not.

    Raises ValueError for another name, and ImportError where the compiled module is
    missing although this interpreter could have it.
    """
    if name not in _MODULES:
        raise ValueError(f"the pump is 'pump' or 'python', not {name!r}")
    try:
        module: PumpModule = importlib.import_module(_MODULES[name])
    except ImportError as exc:
        if sys.implementation.name != "cpython":
            return implementation("python")
        raise ImportError(
            "the compiled module rtunnel._pump cannot be loaded. Install a wheel, or"
            " build it where the sources are: `pip install .` (in a checkout:"
            " `pip install -e .`). It needs a C compiler and the Python headers"
            " (Debian: apt-get install gcc python3-dev)."
        ) from exc
    return module


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `implementation("python")` works without it.
    if name in ("Pair", "Port", "Reactor", "relay"):
        return getattr(implementation("pump"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
