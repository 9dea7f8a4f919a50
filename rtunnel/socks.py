"""The server's side of SOCKS 4, 4A and 5: whom a visitor wants to be connected to.

Only CONNECT, and no authentication, as OpenSSH has it for `ssh -R port`. A parser is
fed and says how much it wants, so that nothing beyond the request is read: it belongs
to the stream.

    SOCKS 4      byte 4, byte command, uint16 port, byte[4] address, user, NUL
            4A   address 0.0.0.x, and behind it: host, NUL
    the answer   byte 0, byte 90 or 91, byte[6] (whatever)

    SOCKS 5      byte 5, byte n, byte[n] methods    (RFC 1928, section 3)
    the answer   byte 5, byte method or 255
                 byte 5, byte command, byte 0, byte kind, address, uint16 port
    the answer   byte 5, byte reply, byte 0, byte 1, byte[6] 0    (sections 4 and 6)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Generator
from enum import IntEnum
from typing import Final

from rtunnel.addresses import TcpTarget
from rtunnel.errors import InvalidAddress

# RFC 1928 has one byte for the length of a name; OpenSSH takes users and names of
# SOCKS 4 up to 255 bytes, too.
TEXT_BYTES_MAX: Final = 255

_CONNECT: Final = 1
_NO_AUTHENTICATION: Final = 0
_NO_METHOD: Final = 255
_IPV4, _NAME, _IPV6 = 1, 3, 4
_GRANTED_4, _REJECTED_4 = 90, 91


class Reply(IntEnum):
    """What SOCKS 5 says of a request (RFC 1928, section 6)."""

    GRANTED = 0
    FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TIMED_OUT = 6  # "TTL expired": what clients know for it
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_NOT_SUPPORTED = 8


class SocksError(Exception):
    """A request that is none, or not for us; `answer` is what the visitor is told."""

    def __init__(self, message: str, answer: bytes = b"") -> None:
        super().__init__(message)
        self.answer = answer


class SocksParser:
    """Reads one request from pieces as they come."""

    def __init__(self) -> None:
        self._data = b""
        self._answer = b""
        self._version = 0
        self._target: TcpTarget | None = None
        self._steps = self._read()
        self._need = next(self._steps)

    @property
    def wanted(self) -> int:
        """How many bytes are missing for sure: reading them reads nothing beyond."""
        return 0 if self._target is not None else self._need - len(self._data)

    @property
    def target(self) -> TcpTarget | None:
        """Where the visitor wants to go, once it has said so."""
        return self._target

    def feed(self, data: bytes) -> bytes:
        """Take what came, `wanted` bytes at most; return what to answer now.

        Raises `SocksError`.
        """
        if len(data) > self.wanted:
            raise ValueError("more bytes than were wanted")
        self._data += data
        self._answer = b""
        while self._target is None and len(self._data) >= self._need:
            taken, self._data = self._data[: self._need], self._data[self._need :]
            try:
                self._need = self._steps.send(taken)
            except StopIteration:
                break
        return self._answer

    def answer(self, reply: Reply) -> bytes:
        """Return the last word on the request, in the visitor's version."""
        if self._version == 4:
            return _answer_4(reply)
        return bytes([5, reply, 0, _IPV4]) + bytes(6)

    def _read(self) -> Generator[int, bytes, None]:
        """Yield how much to read next, get just that."""
        start = yield 2
        self._version = start[0]
        if self._version == 4:
            yield from self._read_4(start[1])
        elif self._version == 5:
            yield from self._read_5(start[1])
        else:
            raise SocksError("the visitor does not speak SOCKS")

    def _read_4(self, command: int) -> Generator[int, bytes, None]:
        rest = yield 6
        port = int.from_bytes(rest[:2], "big")
        address = rest[2:]
        yield from _text()
        if command != _CONNECT:
            raise self._refusal(Reply.COMMAND_NOT_SUPPORTED, "only CONNECT is offered")
        if address[:3] == bytes(3) and address[3]:
            host = yield from _text()
            self._finish(self._name(host), port)
        else:
            self._finish(str(ipaddress.IPv4Address(address)), port)

    def _read_5(self, count: int) -> Generator[int, bytes, None]:
        methods = (yield count) if count else b""
        if _NO_AUTHENTICATION not in methods:
            raise SocksError("no password is taken here", bytes([5, _NO_METHOD]))
        self._answer = bytes([5, _NO_AUTHENTICATION])
        version, command, _, kind = yield 4
        if version != 5:
            raise SocksError("the visitor does not speak SOCKS 5")
        if kind == _IPV4:
            host = str(ipaddress.IPv4Address((yield 4)))
        elif kind == _IPV6:
            host = str(ipaddress.IPv6Address((yield 16)))
        elif kind == _NAME:
            (length,) = yield 1
            host = self._name((yield length) if length else b"")
        else:
            raise self._refusal(
                Reply.ADDRESS_NOT_SUPPORTED, f"there is no address of kind {kind}"
            )
        port = int.from_bytes((yield 2), "big")
        if command != _CONNECT:
            raise self._refusal(Reply.COMMAND_NOT_SUPPORTED, "only CONNECT is offered")
        self._finish(host, port)

    def _name(self, text: bytes) -> str:
        try:
            return text.decode("ascii")
        except UnicodeDecodeError:
            raise self._refusal(Reply.FAILURE, f"{text!r} is no host name") from None

    def _finish(self, host: str, port: int) -> None:
        try:
            self._target = TcpTarget(host, port)
        except InvalidAddress as error:
            raise self._refusal(Reply.FAILURE, str(error)) from None

    def _refusal(self, reply: Reply, why: str) -> SocksError:
        return SocksError(why, self.answer(reply))


def _text() -> Generator[int, bytes, bytes]:
    """Read up to a NUL; byte by byte, for what is behind it may be the stream."""
    text = b""
    while (byte := (yield 1)) != b"\0":
        text += byte
        if len(text) > TEXT_BYTES_MAX:
            raise SocksError(
                "a name in the request is too long", _answer_4(Reply.FAILURE)
            )
    return text


def _answer_4(reply: Reply) -> bytes:
    code = _GRANTED_4 if reply is Reply.GRANTED else _REJECTED_4
    return bytes([0, code]) + bytes(6)
