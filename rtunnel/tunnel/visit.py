"""One visitor of a listener: from the open of the channel to the end of the relay."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rtunnel.errors import ConnectionLost, OpenFailureCode
from rtunnel.ssh.arrivals import ChannelOpen
from rtunnel.ssh.relay import Relay, RelayEnd
from rtunnel.tunnel.handlers import Visitor

if TYPE_CHECKING:
    from rtunnel.tunnel.listener import Listener

log = logging.getLogger("rtunnel.tunnel.visit")

# The number of a connection in the log: one of its own in this process.
_numbers = itertools.count(1)


class Visit:
    """Decided once by its handler: accepted or refused. May be aborted at any time.

    Every method may be called from any thread, and never blocks.
    """

    def __init__(self, listener: Listener, pending: ChannelOpen) -> None:
        self.visitor = Visitor(*pending.origin, listener)
        self.number = next(_numbers)
        self.since_s = time.monotonic()
        self._listener = listener
        self._pending = pending
        # Protected by _lock; nothing is called while it is held.
        self._lock = threading.Lock()
        self._decided = False
        self._aborted: str | None = None
        self._relay: Relay | None = None
        self._end: RelayEnd | None = None
        self._end_callbacks: list[Callable[[RelayEnd], object]] = []
        # Of the thread that looks for idle ones.
        self._moved_bytes = -1
        self._moved_at_s = 0.0

    def __str__(self) -> str:
        relay = self._relay
        return f"{self._listener.name}/{'-' if relay is None else relay.local_id}"

    @property
    def aborted(self) -> bool:
        """Whether this side broke it off: by pause, close, or a failed handler."""
        return self._aborted is not None

    @property
    def aborted_because(self) -> str | None:
        """Why this side broke it off, in a word for the log; None if it did not."""
        return self._aborted

    @property
    def relay(self) -> Relay | None:
        """The relay, once the visit was accepted."""
        return self._relay

    def accept(self, sock: socket.socket) -> bool:
        """Confirm the channel and pump; False (and `sock` closed) if it is too late."""
        if not self._decide():
            sock.close()
            return False
        self._listener.note_accepted(self)
        try:
            relay = self._pending.accept(
                sock, self._on_end, self._listener.priority, self._listener.limit
            )
        except ConnectionLost as lost:
            self._on_end(RelayEnd(0, 0, "lost", str(lost)))
            return False
        with self._lock:
            self._relay = relay
            aborted = self.aborted
        if aborted:
            relay.reset()
        self._listener.note_connected(self)
        return True

    def accept_pair(self) -> socket.socket | None:
        """Accept with one end of a new socketpair; return the other one.

        None if it is too late, or there are no descriptors left: refused then.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self.refuse(OpenFailureCode.RESOURCE_SHORTAGE, str(error), is_error=True)
            return None
        if self.accept(ours):
            return theirs
        theirs.close()
        return None

    def refuse(
        self, code: OpenFailureCode, reason: str, *, is_error: bool = False
    ) -> None:
        """Reject the channel; the reason goes to the server and into the stats."""
        if self._decide():
            self._listener.note_refused(self, reason, is_error)
            self._pending.reject(code, reason)

    def fail(self, error: BaseException) -> None:
        """The handler failed: log it, count it, reset the connection.

        A handler that fails because its connection was aborted is not counted.
        """
        if self.aborted:
            log.debug("handler ended after a reset: visit=%s error=%s", self, error)
            return
        log.error("handler failed: visit=%s", self, exc_info=error)
        self._listener.note_error(f"{type(error).__name__}: {error}")
        self._reset("failed")

    def note_failure(self, reason: str) -> None:
        """Count and log that a connection cannot be served; its end is the caller's."""
        if not self.aborted:
            log.warning("visit=%s cannot be served: reason=%s", self, reason)
            self._listener.note_error(reason)

    def break_off(self, error: OSError) -> None:
        """Reset the connection: what served it was. That is no error of ours."""
        log.debug("visit=%s is reset: error=%s", self, error)
        self._reset("reset")

    def abort(self, why: str) -> None:
        """Break it off: reject what is undecided, reset what is live."""
        self.refuse(OpenFailureCode.ADMINISTRATIVELY_PROHIBITED, "not listening")
        self._reset(why)

    def add_end_callback(self, callback: Callable[[RelayEnd], object]) -> None:
        """Have `callback` called once when the connection is over: at once if it is.

        On a thread that must not be kept.
        """
        with self._lock:
            end = self._end
            if end is None:
                self._end_callbacks.append(callback)
        if end is not None:
            callback(end)

    def has_been_idle_for(self, now_s: float) -> float:
        """Return since when no byte moved, as far as was looked. One thread only."""
        relay = self._relay
        if relay is None:
            return 0.0
        moved_bytes = relay.bytes_in + relay.bytes_out
        if moved_bytes != self._moved_bytes:
            self._moved_bytes, self._moved_at_s = moved_bytes, now_s
        return now_s - self._moved_at_s

    def _decide(self) -> bool:
        with self._lock:
            decided, self._decided = self._decided, True
        return not decided

    def _reset(self, why: str) -> None:
        with self._lock:
            self._aborted = self._aborted or why
            relay = self._relay
        if relay is not None:
            relay.reset()

    def _on_end(self, end: RelayEnd) -> None:
        with self._lock:
            self._end = end
            callbacks, self._end_callbacks = self._end_callbacks, []
        self._listener.note_ended(self, end)
        for callback in callbacks:
            callback(end)
