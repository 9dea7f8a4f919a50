"""Packets of the peer while Python opens them (RFC 4253, section 6).

Before the first keys, and with every cipher that the engine does not run. In the place
of paramiko's own reading, which trusts what it reads: it waits for as many bytes as a
length field says (4 GiB, before anybody has logged in), takes a padding that is longer
than its packet, inflates without a limit, and makes up fields that are not there.

Every rule is that of `packets.c`: lengths are checked before anything is waited for,
padding before a payload is cut out, integrity before anything else is looked at.
"""

from __future__ import annotations

import hmac
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

import paramiko
from paramiko.message import Message

from rtunnel.errors import ConnectionLost, DisconnectCode, ProtocolError

# OpenSSH's PACKET_MAX_SIZE, and RT_MAX_PACKET_BYTES of the engine; RFC 4253, section
# 6.1 asks for at least 35000.
PACKET_MAX_BYTES: Final = 256 * 1024
# What a packet may become when it is inflated: no more than it may be without that.
INFLATED_MAX_BYTES: Final = PACKET_MAX_BYTES
MIN_PADDING_BYTES: Final = 4
LENGTH_BYTES: Final = 4
# RFC 5647, section 7.1: the part of the nonce that counts packets.
_NONCE_FIXED_BYTES: Final = 4

Read = Callable[[int, bool], bytes]


class PeerFault(ProtocolError, paramiko.SSHException):
    """The peer broke the protocol. paramiko expects its own class of exception."""


class PeerDead(ConnectionLost, paramiko.SSHException):
    """The peer answers no keepalive."""


class PeerMessage(Message):
    """A message of the peer: a field that is not there is a fault, and no zeros.

    Raises `PeerFault`; else what `paramiko.Message` does.
    """

    def get_bytes(self, n: int) -> bytes:
        """Return the next `n` bytes."""
        data = self.packet.read(n)
        if len(data) < n:
            raise PeerFault(
                f"the peer sent a message that is cut short: a field of {n} bytes "
                f"begins {len(data)} bytes before its end"
            )
        return data

    def get_text(self) -> str:
        """Return the next string as UTF-8."""
        try:
            return self.get_string().decode()
        except UnicodeDecodeError:
            raise PeerFault("the peer sent a text that is not UTF-8") from None


class PacketReader:
    """What opens the packets of one connection. Only for the transport's thread.

    `read` returns so many bytes of the socket, and waits for them; its second argument
    says whether the wait may be given up for a key exchange.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self.sequence = 0  # of the packet to come
        self.key_bytes = self.key_packets = 0  # since the keys in use were set
        self._engine: Any = None
        self._block_bytes = 8
        self._mac: Any = None
        self._mac_bytes = 0
        self._mac_key = b""
        self._etm = False
        self._nonce: bytes | None = None
        self._inflate: Any = None

    def set_cipher(
        self,
        block_engine: Any,
        block_size: int,
        mac_engine: Any,
        mac_size: int,
        mac_key: bytes | bytearray | None,
        etm: bool = False,
        aead: bool = False,
        iv_in: bytes | None = None,
        **later: Any,
    ) -> None:
        """Open with these keys from here on: what paramiko gives to a packetizer."""
        self._engine = block_engine
        self._block_bytes = block_size
        self._mac, self._mac_bytes = mac_engine, mac_size
        self._mac_key = bytes(mac_key or b"")
        self._etm = etm
        self._nonce = iv_in if aead else None
        self.key_bytes = self.key_packets = 0

    def inflate(self) -> None:
        """Inflate what comes from here on, as one stream (RFC 4253, section 6.2)."""
        self._inflate = zlib.decompressobj()

    def next(self) -> tuple[bytes, int]:
        """Wait for a packet; return its payload, 1 byte at least, and its number.

        Raises PeerFault, EOFError, NeedRekeyException.
        """
        if self._nonce is not None:
            body = self._next_aead()
        elif self._etm:
            body = self._next_etm()
        else:
            body = self._next_plain()
        padding = body[0]
        if padding < MIN_PADDING_BYTES or padding + 2 > len(body):
            raise PeerFault("the peer sent bad padding")
        payload = body[1 : len(body) - padding]
        if self._inflate is not None:
            payload = self._inflated(payload)
        sequence = self.sequence
        self.sequence = (sequence + 1) % 2**32
        self.key_bytes += LENGTH_BYTES + len(body) + self._mac_bytes
        self.key_packets += 1
        return payload, sequence

    def _next_aead(self) -> bytes:
        head = self._read(LENGTH_BYTES, True)
        sealed = self._read(self._checked(head, 0) + self._mac_bytes, False)
        assert self._nonce is not None
        try:
            body: bytes = self._engine.decrypt(self._nonce, sealed, head)
        except Exception:  # InvalidTag of a package that only paramiko imports
            raise _bad_mac() from None
        fixed, count = (
            self._nonce[:_NONCE_FIXED_BYTES],
            int.from_bytes(self._nonce[_NONCE_FIXED_BYTES:], "big"),
        )
        self._nonce = fixed + ((count + 1) % 2**64).to_bytes(8, "big")
        return body

    def _next_etm(self) -> bytes:
        head = self._read(LENGTH_BYTES, True)
        sealed = self._read(self._checked(head, 0), False)
        self._check_mac(head + sealed, self._read(self._mac_bytes, False))
        body: bytes = self._engine.update(sealed)
        return body

    def _next_plain(self) -> bytes:
        # The length is sealed, too: the first block says how much follows it.
        first = self._opened(self._read(self._block_bytes, True))
        length = self._checked(first[:LENGTH_BYTES], LENGTH_BYTES)
        left = length + LENGTH_BYTES - self._block_bytes
        body = first[LENGTH_BYTES:] + self._opened(self._read(left, False))
        if self._mac_bytes:
            mac = self._read(self._mac_bytes, False)
            self._check_mac(first[:LENGTH_BYTES] + body, mac)
        return body

    def _opened(self, data: bytes) -> bytes:
        return data if self._engine is None else self._engine.update(data)

    def _checked(self, head: bytes, counted_bytes: int) -> int:
        """Return packet_length; with `counted_bytes` it has to fill the blocks."""
        length = int.from_bytes(head, "big")
        whole = length + counted_bytes
        if (
            whole < max(self._block_bytes, 16 if counted_bytes else 0)
            or length > PACKET_MAX_BYTES
            or whole % self._block_bytes != 0
        ):
            raise PeerFault("the peer sent a bad packet length")
        return length

    def _check_mac(self, data: bytes, mac: bytes) -> None:
        signed = struct.pack(">I", self.sequence) + data
        right = hmac.new(self._mac_key, signed, self._mac).digest()[: self._mac_bytes]
        if not hmac.compare_digest(right, mac):
            raise _bad_mac()

    def _inflated(self, payload: bytes) -> bytes:
        try:
            whole: bytes = self._inflate.decompress(payload, INFLATED_MAX_BYTES + 1)
        except zlib.error:
            whole = b""
        if not whole:
            raise PeerFault(
                "the peer sent a packet that cannot be inflated",
                DisconnectCode.COMPRESSION_ERROR,
            )
        if len(whole) > INFLATED_MAX_BYTES:
            raise PeerFault(
                f"the peer sent a packet that inflates to more than "
                f"{INFLATED_MAX_BYTES} bytes",
                DisconnectCode.COMPRESSION_ERROR,
            )
        return whole


def _bad_mac() -> PeerFault:
    return PeerFault("a packet failed its integrity check", DisconnectCode.MAC_ERROR)
