"""Flow control of one channel (RFC 4254, section 5.2): arithmetic, no I/O.

Theory of operation. Each side of a channel tells the other how many bytes it may
send: its window. Data uses it up, CHANNEL_WINDOW_ADJUST (credit) gives it back.

Two rules keep one slow target from hurting anybody else:

* Credit follows *consumption*: bytes are credited when the local socket has taken
  them (or never will), not when they arrived. So a channel buffers one window at
  the most, and a target that does not read stalls only its own visitor.
* The window is *enforced*. A peer that sends more than it was given is forgiven 10 %
  (a server that counts a little differently), then the connection ends. OpenSSH
  draws the same line (channels.c, channel_input_data).

Credit is sent in portions: for every packet would double the packet rate, and only
at the very end would let the pipe run dry. OpenSSH's thresholds are used.
"""

from __future__ import annotations

from typing import Final

from rtunnel.errors import ProtocolError

# RFC 4253, section 6.1: every implementation takes 32768 bytes of payload.
MAX_PACKET_BYTES: Final = 32 * 1024
# OpenSSH: CHAN_TCP_WINDOW_DEFAULT, 64 packets.
RECEIVE_WINDOW_BYTES: Final = 64 * MAX_PACKET_BYTES
# What a limited channel is given: half a second of its rate, so that no more than that
# waits on this side; but enough for credit to come in portions.
LIMITED_WINDOW_S: Final = 0.5
LIMITED_WINDOW_LEAST_BYTES: Final = 4 * MAX_PACKET_BYTES
# OpenSSH: "10% grace before bringing the hammer down".
GRACE_PERCENT: Final = 10
# OpenSSH: channel_check_window.
CREDIT_AFTER_PACKETS: Final = 3
# RFC 4254, section 5.2: the window must not pass 2^32 - 1.
WINDOW_LIMIT_BYTES: Final = 2**32 - 1


def receive_window_bytes(rate_bytes_per_s: int | None) -> int:
    """Return the window of a channel that may have a rate."""
    if rate_bytes_per_s is None:
        return RECEIVE_WINDOW_BYTES
    needed = int(rate_bytes_per_s * LIMITED_WINDOW_S)
    return min(max(needed, LIMITED_WINDOW_LEAST_BYTES), RECEIVE_WINDOW_BYTES)


class ReceiveWindow:
    """What the peer may still send us, and what it is owed."""

    def __init__(
        self,
        size_bytes: int = RECEIVE_WINDOW_BYTES,
        max_packet_bytes: int = MAX_PACKET_BYTES,
    ) -> None:
        self.size_bytes = size_bytes
        self._grace_bytes = size_bytes * GRACE_PERCENT // 100
        self._portion_bytes = CREDIT_AFTER_PACKETS * max_packet_bytes
        self._left_bytes = size_bytes  # below zero: inside the grace
        self._consumed_bytes = 0  # taken by the local side, not yet credited

    @property
    def left_bytes(self) -> int:
        """Bytes that the peer may send before it needs credit."""
        return max(self._left_bytes, 0)

    def charge(self, count: int) -> None:
        """Count bytes that arrived. Raises `ProtocolError` when the grace is over."""
        self._left_bytes -= count
        if self._left_bytes < -self._grace_bytes:
            raise ProtocolError(
                f"the peer sent {-self._left_bytes} bytes more than the channel's "
                f"window of {self.size_bytes} bytes allows"
            )

    def consume(self, count: int) -> int:
        """Count bytes the local side has taken; return the credit to send, or 0."""
        self._consumed_bytes += count
        if (
            self._consumed_bytes > self._portion_bytes
            or self._left_bytes < self.size_bytes // 2
        ):
            credit, self._consumed_bytes = self._consumed_bytes, 0
            self._left_bytes += credit
            return credit
        return 0


class SendWindow:
    """What we may still send to the peer."""

    def __init__(self, size_bytes: int, max_packet_bytes: int) -> None:
        if max_packet_bytes < 1:
            # It would be an endless loop of empty packets (asyncssh fixed one in 2.24).
            raise ProtocolError("the peer wants channel packets of 0 bytes at most")
        self.max_packet_bytes = min(max_packet_bytes, MAX_PACKET_BYTES)
        self.left_bytes = size_bytes

    def adjust(self, count: int) -> None:
        """Add the peer's credit. Raises `ProtocolError` when it passes 2^32 - 1."""
        if self.left_bytes + count > WINDOW_LIMIT_BYTES:
            raise ProtocolError(
                f"the peer's credit of {count} bytes takes its window beyond 2^32 - 1"
            )
        self.left_bytes += count

    def reserve(self, wanted: int) -> int:
        """Take up to `wanted` bytes of the window; return how many, maybe 0."""
        count = min(wanted, self.left_bytes)
        self.left_bytes -= count
        return count

    def packets(self, data: bytes) -> list[bytes]:
        """Cut reserved data into pieces that fit the peer's packets."""
        size = self.max_packet_bytes
        if len(data) <= size:
            return [data]
        return [data[at : at + size] for at in range(0, len(data), size)]
