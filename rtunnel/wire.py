"""Data types of SSH on the wire (RFC 4251, section 5): pack them, read them.

What is read came from the peer: a value that does not fit is a `ProtocolError`,
never an `IndexError` or a value made up to fill the gap.
"""

from __future__ import annotations

from rtunnel.errors import ProtocolError


def boolean(value: bool) -> bytes:
    """Pack a boolean."""
    return b"\x01" if value else b"\x00"


def u32(value: int) -> bytes:
    """Pack a uint32."""
    return value.to_bytes(4, "big")


def string(value: bytes | str) -> bytes:
    """Pack a string; text is sent as UTF-8, undecodable bytes as they came."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    return u32(len(value)) + value


class Reader:
    """Read the fields of one payload from front to back."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def boolean(self) -> bool:
        """Read a boolean; any value but 0 is true."""
        return self._take(1) != b"\x00"

    def u32(self) -> int:
        """Read a uint32."""
        return int.from_bytes(self._take(4), "big")

    def string(self) -> bytes:
        """Read a string of bytes."""
        return self._take(self.u32())

    def text(self) -> str:
        """Read a string as UTF-8; undecodable bytes become surrogates."""
        return self.string().decode("utf-8", "surrogateescape")

    def rest(self) -> bytes:
        """Return what has not been read yet."""
        return self._take(len(self._payload) - self._at)

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._payload):
            raise ProtocolError(
                f"the peer sent a message that is cut short: a field of {count} bytes "
                f"begins {len(self._payload) - self._at} bytes before its end"
            )
        field = self._payload[self._at : end]
        self._at = end
        return field
