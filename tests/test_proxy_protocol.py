"""Headers of the PROXY protocol: what is written, what is read, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.errors import ProtocolError
from rtunnel.proxy_protocol import (
    SIGNATURE,
    V2_BYTES_MAX,
    Address,
    ProxyHeader,
    ProxyHeaderParser,
    encode,
)

IPV4 = ("192.0.2.1", 50000)
IPV6 = ("2001:db8::1", 50001)
HERE4 = ("198.51.100.7", 443)
HERE6 = ("2001:db8::7", 8443)

ports = st.integers(0, 65535)
ipv4 = st.tuples(st.ip_addresses(v=4).map(str), ports)
ipv6 = st.tuples(st.ip_addresses(v=6).map(str), ports)
pairs = st.one_of(st.tuples(ipv4, ipv4), st.tuples(ipv6, ipv6))


def read(data: bytes) -> ProxyHeader:
    parser = ProxyHeaderParser()
    header = parser.feed(data)
    assert header is not None
    assert parser.rest == b""
    return header


def test_version_1_is_a_line_of_text() -> None:
    line = b"PROXY TCP4 192.0.2.1 198.51.100.7 50000 443\r\n"
    assert encode(1, IPV4, HERE4) == line
    line = b"PROXY TCP6 2001:db8::1 2001:db8::7 50001 8443\r\n"
    assert encode(1, IPV6, HERE6) == line


def test_version_2_is_binary() -> None:
    assert encode(2, IPV4, HERE4) == (
        b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
        b"\x21\x11\x00\x0c"
        b"\xc0\x00\x02\x01\xc6\x33\x64\x07\xc3\x50\x01\xbb"
    )
    assert encode(2, IPV6, HERE6)[12:16] == b"\x21\x21\x00\x24"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "source", [None, ("localhost", 1), ("", 0), ("192.0.2.1", 65536)]
)
def test_a_visitor_without_a_usable_address_is_unknown(
    version: int, source: Address | None
) -> None:
    assert read(encode(version, source, HERE4)) == ProxyHeader(version)


@pytest.mark.parametrize("version", [1, 2])
def test_addresses_of_two_families_are_both_written_as_ipv6(version: int) -> None:
    header = read(encode(version, IPV4, HERE6))
    assert header.destination == HERE6
    assert header.source == ("::ffff:192.0.2.1", 50000) or header.source == (
        "::ffff:c000:201",
        50000,
    )


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("destination", [None, ("localhost", 80)])
def test_a_destination_without_an_address_is_the_one_of_nobody(
    version: int, destination: Address | None
) -> None:
    assert read(encode(version, IPV4, destination)).destination == ("0.0.0.0", 0)
    assert read(encode(version, IPV6, destination)).destination == ("::", 0)


def test_there_is_no_version_3() -> None:
    with pytest.raises(ValueError, match="not 3"):
        encode(3, IPV4, HERE4)


@given(st.sampled_from([1, 2]), pairs, st.binary(max_size=40))
def test_what_is_written_is_read_byte_by_byte_with_what_follows_left_over(
    version: int, addresses: tuple[Address, Address], rest: bytes
) -> None:
    source, destination = addresses
    data = encode(version, source, destination)
    parser = ProxyHeaderParser()
    for at in range(len(data) - 1):
        assert parser.feed(data[at : at + 1]) is None
    header = parser.feed(data[-1:] + rest)
    assert header == ProxyHeader(version, source, destination)
    assert parser.rest == rest


@given(st.sampled_from([1, 2]), st.one_of(st.none(), pairs))
def test_reading_what_is_wanted_reads_nothing_beyond_the_header(
    version: int, addresses: tuple[Address, Address] | None
) -> None:
    source, destination = addresses or (None, None)
    stream = encode(version, source, destination) + b"SSH-2.0-client\r\n"
    parser = ProxyHeaderParser()
    header = None
    while header is None:
        count = parser.wanted
        assert count > 0
        header = parser.feed(stream[:count])
        stream = stream[count:]
    assert parser.wanted == 0
    assert parser.rest == b""
    assert stream == b"SSH-2.0-client\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
        SIGNATURE + b"\x20\x00\x00\x00",
        SIGNATURE + b"\x20\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x00\x00\x03abc",
        SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
        SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12),
    ],
)
def test_a_header_may_say_that_it_knows_nothing(line: bytes) -> None:
    assert read(line).source is None


def test_what_fills_the_length_of_version_2_is_passed_over() -> None:
    data = bytearray(encode(2, IPV4, HERE4) + b"\x03\x00\x04abcd")
    data[15] += 7
    assert read(bytes(data)) == ProxyHeader(2, IPV4, HERE4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not begin with a PROXY header"),
        (b"PROXI", "does not begin with a PROXY header"),
        (b"\r\n\r\nx", "does not begin with a PROXY header"),
        (b"PROXY " + b"x" * 101, "no end within 107 bytes"),
        (b"PROXY \r\n", "cannot understand"),
        (b"PROXY TCP4\r\n", "cannot understand"),
        (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", "cannot understand"),
        (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", "cannot understand"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "cannot understand"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", "cannot understand"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "cannot understand"),
        (b"PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n", "cannot understand"),
        (b"PROXY TCP4 localhost 1.2.3.4 1 2\r\n", "cannot understand"),
        (b"PROXY TCP6 fe80::1%1 fe80::2 1 2\r\n", "cannot understand"),
        (b"PROXY TCP4 1.2.3.\xb2 1.2.3.4 1 2\r\n", "cannot understand"),
        (SIGNATURE + b"\x11\x11\x00\x0c", "unknown command 0x11"),
        (SIGNATURE + b"\x22\x11\x00\x0c", "unknown command 0x22"),
        (SIGNATURE + b"\x21\x11\x00\x0b", "11 bytes are too few"),
        (SIGNATURE + b"\x21\x21\x00\x0c", "12 bytes are too few"),
        (SIGNATURE + b"\x21\x11\xff\xff", "65535 bytes more"),
        (SIGNATURE + b"\x20\x00" + V2_BYTES_MAX.to_bytes(2, "big"), "4096 bytes more"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        ProxyHeaderParser().feed(data)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", SIGNATURE]))
def test_no_bytes_at_all_break_the_parser(data: bytes, start: bytes) -> None:
    parser = ProxyHeaderParser()
    try:
        if parser.feed(start + data) is None:
            assert parser.wanted > 0
    except ProtocolError:
        pass
