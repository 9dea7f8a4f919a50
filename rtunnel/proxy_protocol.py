"""The PROXY protocol: a few bytes before a stream that say whose stream it is.

Written and read as the specification of HAProxy has it (proxy-protocol.txt, sections
2.1 and 2.2). Version 1 is a line of text, version 2 is binary::

    PROXY TCP4 192.0.2.1 198.51.100.7 50000 443\\r\\n

    byte[12]  signature
    byte      version 2 (high half), command: 0 LOCAL, 1 PROXY (low half)
    byte      family: 1 IPv4, 2 IPv6, 3 unix (high half), 1 stream (low half)
    uint16    length of what follows
    ....      source address, destination address, uint16 source port,
              uint16 destination port; then whatever fills the length (TLVs)

A header may say that it knows no addresses: UNKNOWN, UNSPEC, or LOCAL, with which a
load balancer looks whether we live. Then those of the socket count.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Final

from rtunnel.addresses import LAST_PORT
from rtunnel.errors import ProtocolError

Address = tuple[str, int]

VERSIONS: Final = (1, 2)
SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
# Section 2.1: with CRLF, 107 bytes are the longest line there is.
V1_BYTES_MAX: Final = 107
# As nginx: NGX_PROXY_PROTOCOL_MAX_HEADER. The addresses take 216 at most.
V2_BYTES_MAX: Final = 4096

_V1_START: Final = b"PROXY "
_V2_HEAD: Final = struct.Struct("!12sBBH")
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPEC: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_PORTS: Final = struct.Struct("!HH")
_ADDRESS_BYTES: Final = {_TCP4: 4, _TCP6: 16}
_V1_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")

_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header says; without addresses, those of the socket count."""

    version: int
    source: Address | None = None
    destination: Address | None = None


def encode(
    version: int, source: Address | None, destination: Address | None = None
) -> bytes:
    """Return the header for a visitor from `source` who came to `destination`.

    A source that is no IP address with a port is sent as unknown: what a server says
    of its visitors may be anything. A destination like that is sent as `0.0.0.0:0`.
    Raises ValueError if there is no such version.
    """
    if version not in VERSIONS:
        raise ValueError(f"the PROXY protocol has the versions 1 and 2, not {version}")
    known = _read(source)
    if known is None:
        if version == 1:
            return b"PROXY UNKNOWN\r\n"
        return _V2_HEAD.pack(SIGNATURE, _PROXY, _UNSPEC, 0)
    (from_ip, from_port), (to_ip, to_port) = _alike(known, _read(destination))
    if version == 1:
        line = f"PROXY TCP{from_ip.version} {from_ip} {to_ip} {from_port} {to_port}\r\n"
        return line.encode("ascii")
    family = _TCP4 if from_ip.version == 4 else _TCP6
    body = from_ip.packed + to_ip.packed + _PORTS.pack(from_port, to_port)
    return _V2_HEAD.pack(SIGNATURE, _PROXY, family, len(body)) + body


def _read(address: Address | None) -> tuple[_IpAddress, int] | None:
    if address is None or not 0 <= address[1] <= LAST_PORT:
        return None
    try:
        # Which link an address is on means nothing to anybody else.
        return ipaddress.ip_address(address[0].partition("%")[0]), address[1]
    except ValueError:
        return None


def _alike(
    source: tuple[_IpAddress, int], destination: tuple[_IpAddress, int] | None
) -> tuple[tuple[_IpAddress, int], tuple[_IpAddress, int]]:
    """Return both with addresses of one family: a header has room for one only."""
    if destination is None:
        return source, (type(source[0])(0), 0)
    if source[0].version == destination[0].version:
        return source, destination
    return (_as_ipv6(source[0]), source[1]), (_as_ipv6(destination[0]), destination[1])


def _as_ipv6(ip: _IpAddress) -> ipaddress.IPv6Address:
    if ip.version == 6:
        return ipaddress.IPv6Address(ip)
    return ipaddress.IPv6Address(b"\x00" * 10 + b"\xff\xff" + ip.packed)


class ProxyHeaderParser:
    """Reads one header, in pieces as they come.

    Who must not read beyond the header reads `wanted` bytes at most each time. After
    the end, `rest` is what was fed beyond it.
    """

    def __init__(self) -> None:
        self._data = b""
        self.rest = b""
        self._header: ProxyHeader | None = None

    @property
    def wanted(self) -> int:
        """How many bytes are missing for sure: reading them reads nothing beyond."""
        if self._header is not None:
            return 0
        data = self._data
        if data.startswith(_V1_START):
            if len(data) < len(SIGNATURE):
                return len(SIGNATURE) - len(data)
            return 1 if data.endswith(b"\r") else 2
        if len(data) < _V2_HEAD.size:
            # No line is shorter than the signature and its CRLF.
            end = len(SIGNATURE) if len(data) < len(SIGNATURE) else _V2_HEAD.size
            return end - len(data)
        return _V2_HEAD.size + self._v2_length() - len(data)

    def feed(self, data: bytes) -> ProxyHeader | None:
        """Take what came; return the header when it is whole, None before.

        Raises `ProtocolError` if it is no header, or one that makes no sense.
        """
        if self._header is not None:
            raise RuntimeError("the header has been read")
        self._data += data
        if self._data.startswith(_V1_START):
            self._header = self._read_v1()
        elif self._data.startswith(SIGNATURE):
            self._header = self._read_v2()
        elif not _V1_START.startswith(self._data) and not SIGNATURE.startswith(
            self._data
        ):
            raise ProtocolError(
                "the connection does not begin with a PROXY header: is it really a "
                "load balancer that connects, and is it told to send one?"
            )
        return self._header

    def _read_v1(self) -> ProxyHeader | None:
        line, found, rest = self._data[:V1_BYTES_MAX].partition(b"\r\n")
        if not found:
            if len(self._data) >= V1_BYTES_MAX:
                raise ProtocolError("a PROXY header has no end within 107 bytes")
            return None
        self.rest = rest + self._data[V1_BYTES_MAX:]
        try:
            fields = line.decode("ascii").split(" ")
        except UnicodeDecodeError:
            raise _nonsense(line) from None
        if fields[1] == "UNKNOWN":
            return ProxyHeader(1)
        if len(fields) != 6 or fields[1] not in ("TCP4", "TCP6"):
            raise _nonsense(line)
        try:
            source = _v1_address(fields[1], fields[2], fields[4])
            return ProxyHeader(1, source, _v1_address(fields[1], fields[3], fields[5]))
        except ValueError:
            raise _nonsense(line) from None

    def _v2_length(self) -> int:
        return int.from_bytes(self._data[_V2_HEAD.size - 2 : _V2_HEAD.size], "big")

    def _read_v2(self) -> ProxyHeader | None:
        if len(self._data) < _V2_HEAD.size:
            return None
        _, command, family, length = _V2_HEAD.unpack_from(self._data)
        if command not in (_LOCAL, _PROXY):
            raise ProtocolError(f"a PROXY header has the unknown command {command:#x}")
        if _V2_HEAD.size + length > V2_BYTES_MAX:
            raise ProtocolError(f"a PROXY header is said to have {length} bytes more")
        size = _ADDRESS_BYTES.get(family) if command == _PROXY else None
        if size is not None and length < 2 * size + _PORTS.size:
            raise ProtocolError(f"{length} bytes are too few for two addresses")
        end = _V2_HEAD.size + length
        if len(self._data) < end:
            return None
        self.rest = self._data[end:]
        if size is None:
            return ProxyHeader(2)
        body = self._data[_V2_HEAD.size : end]
        ports = _PORTS.unpack_from(body, 2 * size)
        source = str(ipaddress.ip_address(body[:size])), int(ports[0])
        return ProxyHeader(
            2, source, (str(ipaddress.ip_address(body[size : 2 * size])), int(ports[1]))
        )


def _v1_address(family: str, address: str, port: str) -> Address:
    """Read both; raises ValueError."""
    ip = ipaddress.ip_address(address)
    if f"TCP{ip.version}" != family or "%" in address:
        raise ValueError
    if not _V1_PORT.fullmatch(port) or int(port) > LAST_PORT:
        raise ValueError
    return str(ip), int(port)


def _nonsense(line: bytes) -> ProtocolError:
    return ProtocolError(f"cannot understand the PROXY header {line!r}")
