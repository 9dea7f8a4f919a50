"""Prove that a listener listens: visit it through the server, as a visitor would.

Theory of operation. The server is asked to connect to its own port, by a channel of
ours; what it accepts there comes back to us as an open of the listener's forward. The
target is not to be bothered with that. So the listener's opens are held for the few
round trips of the test, and the one that is ours is answered here. An open does not
say who made it: but if exactly one came that may be ours, it is, since ours is on its
way before the server confirms its connection. If there are more, all of them go to the
listener, and its target sees one connection that ends at once, without a byte.

Held opens are decided nowhere else, so that a visitor is at most delayed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
import time
from enum import Enum
from typing import TYPE_CHECKING, Final

from rtunnel.addresses import LOOPBACK, Target, TcpTarget, UnixBind, UnixTarget
from rtunnel.errors import (
    ChannelOpenError,
    ConnectionLost,
    OpenFailureCode,
    RequestTimeout,
    TargetUnreachable,
)
from rtunnel.ssh.arrivals import ChannelOpen, OnOpen

if TYPE_CHECKING:
    from rtunnel.tunnel.listener import Listener

log = logging.getLogger("rtunnel.tunnel.selftest")

# Round trips after which a server that accepts in its one loop has told of it.
ROUND_TRIPS: Final = 2
# And one that accepts on another thread.
GRACE_S: Final = 1.0
# Addresses that stand for all of a machine's.
_ALL: Final = {"", "*", "0.0.0.0", "::"}
_LOOPBACKS: Final = ("127.0.0.1", "::1")


class Outcome(Enum):
    """What the test of a listener has shown."""

    LISTENING = "listening"
    SILENT = "silent"  # nobody listens, or what comes there does not come here
    NOT_ALLOWED = "not allowed"  # the server makes no connections for us


class _Holder:
    """Holds the opens of one listener that may be ours."""

    def __init__(self, pass_on: OnOpen) -> None:
        self._pass_on = pass_on
        # Protected by _changed; nothing is called while it is held.
        self._changed = threading.Condition()
        self._place: str | None = None
        self._held: list[ChannelOpen] = []
        self._released = False

    def expect(self, place: str) -> None:
        """Hold from now on what may come from a connection to this address."""
        with self._changed:
            self._place = place

    def offer(self, pending: ChannelOpen) -> None:
        """Take an open of the forward. On the transport's thread."""
        with self._changed:
            if not self._released and self._may_be_ours(pending.origin[0]):
                self._held.append(pending)
                self._changed.notify_all()
                return
        self._pass_on(pending)

    def _may_be_ours(self, origin: str) -> bool:
        if origin in ("", self._place):
            return True  # a socket path has no origin
        try:
            return ipaddress.ip_address(origin.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def wait(self, timeout_s: float) -> bool:
        """Wait until one is held."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._held), timeout_s)

    def release(self, *, ours_came: bool) -> None:
        """Answer ours, if it came and is the only one; pass on the others."""
        with self._changed:
            self._released = True
            held, self._held = self._held, []
        if ours_came and len(held) == 1:
            _answer(held[0])
        else:
            for pending in held:
                self._pass_on(pending)


def self_test(listener: Listener, timeout_s: float) -> Outcome:
    """Visit a listener through its server. Blocks; not for the transport's thread.

    Its handler and its target notice nothing, and nothing is counted. Other visitors
    are delayed meanwhile. Raises `ConnectionLost`, `RequestTimeout`.
    """
    connection = listener.tunnel.connection
    holder = _Holder(listener.offer)
    connection.divert(listener.forward, holder.offer)
    outcome = Outcome.SILENT
    deadline = time.monotonic() + timeout_s
    try:
        for target in _places(listener):
            holder.expect(target.host if isinstance(target, TcpTarget) else "")
            outcome = _visit(listener, holder, target, deadline)
            if outcome is not Outcome.SILENT:
                break
    finally:
        connection.divert(listener.forward, listener.offer)
        holder.release(ours_came=outcome is Outcome.LISTENING)
    log.debug("self-test: listener=%s outcome=%s", listener.name, outcome.value)
    return outcome


def _visit(
    listener: Listener, holder: _Holder, target: Target, deadline: float
) -> Outcome:
    def left_s() -> float:
        return max(0.0, deadline - time.monotonic())

    try:
        visitor = listener.tunnel.dial(target, left_s())
    except TargetUnreachable:
        return Outcome.SILENT
    except ChannelOpenError as error:
        if error.code == OpenFailureCode.RESOURCE_SHORTAGE:
            return Outcome.SILENT
        return Outcome.NOT_ALLOWED
    with visitor:
        for _ in range(ROUND_TRIPS):
            answered = threading.Event()
            listener.tunnel.connection.ping(answered.set)
            if not answered.wait(left_s()):
                if (lost := listener.tunnel.connection.end) is not None:
                    raise lost
                raise RequestTimeout("the server does not answer")
        came = holder.wait(min(GRACE_S, left_s()))
    return Outcome.LISTENING if came else Outcome.SILENT


def _places(listener: Listener) -> list[Target]:
    """Return where a visitor on the server would find the listener."""
    bind = listener.bind
    if isinstance(bind, UnixBind):
        return [UnixTarget(bind.path)]
    # With GatewayPorts, a server may listen on other addresses than it was asked to.
    own = [] if bind.address in (*_ALL, LOOPBACK) else [bind.address]
    return [
        TcpTarget(host, listener.port) for host in dict.fromkeys((*own, *_LOOPBACKS))
    ]


def _answer(pending: ChannelOpen) -> None:
    """Confirm a channel, and end it at once."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with contextlib.suppress(ConnectionLost):
        pending.accept(ours)
