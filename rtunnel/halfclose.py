"""How a relay ends (RFC 4254, section 5.3): EOF each way, then CLOSE each way.

Theory of operation, after OpenSSH's nchan.c. A channel has two halves: what we send
and what the peer sends. Each goes

    OPEN ----> EOF ----> CLOSED          and may skip EOF.

*Events* (the local socket said EOF, the peer sent CLOSE, ...) move the halves and
return the *actions* to carry out. Actions never move a half. What holds:

* EOF ends one half only: the other direction goes on for as long as it likes.
* Each of EOF and CLOSE is sent once. Nothing follows our CLOSE: sshd drops the whole
  connection over a second CLOSE, and over data behind it.
* The peer's CLOSE is answered at once, whatever the local socket still has to take:
  its rest is delivered without the channel.
* A local reset, or a local socket that ended, becomes CLOSE at once.
* The channel's number is free (`Action.FREE`) when both halves are CLOSED, not
  before: until then the peer may still name it.
"""

from __future__ import annotations

from enum import Enum, Flag, auto
from typing import Final


class Half(Enum):
    """One direction of a channel."""

    OPEN = "open"
    EOF = "eof"
    CLOSED = "closed"


class Action(Flag):
    """What the owner of the channel has to do now, in this order."""

    NONE = 0
    SEND_EOF = auto()
    SEND_CLOSE = auto()
    # Pass the EOF on: shutdown(SHUT_WR) behind the bytes that are still queued.
    SHUTDOWN_SOCKET = auto()
    # Write what is queued, then close the local socket in an orderly manner.
    CLOSE_SOCKET = auto()
    RESET_SOCKET = auto()
    # Forget the channel's number.
    FREE = auto()


_TABLE: Final = {
    Half.OPEN: frozenset({Half.EOF, Half.CLOSED}),
    Half.EOF: frozenset({Half.CLOSED}),
    Half.CLOSED: frozenset[Half](),
}


class HalfClose:
    """The two halves of one channel. Not locked: the owner serialises the events."""

    __slots__ = ("_received", "_sent")

    def __init__(self) -> None:
        self._sent = Half.OPEN
        self._received = Half.OPEN

    @property
    def sent(self) -> Half:
        """How far we have ended our half."""
        return self._sent

    @property
    def received(self) -> Half:
        """How far the peer has ended its half."""
        return self._received

    def _set(self, *, sent: Half | None = None, received: Half | None = None) -> None:
        for name, old, new in (
            ("sent", self._sent, sent),
            ("received", self._received, received),
        ):
            if new is not None and new not in _TABLE[old]:
                raise ValueError(f"a channel cannot go from {name} {old} to {new}")
        self._sent = sent or self._sent
        self._received = received or self._received

    # Events of the local socket, and of its owner.

    def local_eof(self) -> Action:
        """The local side will send no more; it may still read."""
        if self._sent is not Half.OPEN:
            return Action.NONE
        self._set(sent=Half.EOF)
        return Action.SEND_EOF

    def local_end(self) -> Action:
        """The local socket is gone: both directions done, or broken."""
        if self._sent is Half.CLOSED:
            return Action.NONE
        self._set(sent=Half.CLOSED)
        return Action.SEND_CLOSE | self._free()

    def reset(self) -> Action:
        """The owner wants the relay gone now."""
        return self.local_end() | Action.RESET_SOCKET

    def lost(self) -> Action:
        """The connection ended; nothing can be sent any more.

        Bytes that the peer declared complete by EOF are still delivered. Without EOF
        the local side must not take a cut stream for a whole one: it gets a reset.
        """
        if self._sent is not Half.CLOSED:
            self._set(sent=Half.CLOSED)
        if self._received is Half.OPEN:
            return Action.RESET_SOCKET
        return Action.CLOSE_SOCKET

    # Events of the channel.

    def peer_eof(self) -> Action:
        """CHANNEL_EOF arrived. A second one changes nothing."""
        if self._received is not Half.OPEN:
            return Action.NONE
        self._set(received=Half.EOF)
        return Action.SHUTDOWN_SOCKET

    def peer_close(self) -> Action:
        """CHANNEL_CLOSE arrived: answer it, deliver what came before it."""
        if self._received is Half.CLOSED:
            return Action.NONE
        self._set(received=Half.CLOSED)
        actions = Action.CLOSE_SOCKET
        if self._sent is not Half.CLOSED:
            self._set(sent=Half.CLOSED)
            actions |= Action.SEND_CLOSE
        return actions | self._free()

    def _free(self) -> Action:
        both = self._sent is Half.CLOSED and self._received is Half.CLOSED
        return Action.FREE if both else Action.NONE
