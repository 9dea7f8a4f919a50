"""SOCKS, byte by byte: requests of all versions, and those that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.addresses import TcpTarget
from rtunnel.socks import TEXT_BYTES_MAX, Reply, SocksError, SocksParser

GREETING = b"\5\1\0"
CHOSEN = b"\5\0"


def feed(parser: SocksParser, data: bytes) -> tuple[bytes, bytes]:
    """Feed as a socket would; return the answers, and what was not wanted."""
    answers = b""
    while data and parser.target is None:
        count = parser.wanted
        assert count > 0
        answers += parser.feed(data[:count])
        data = data[count:]
    return answers, data


@pytest.mark.parametrize(
    ("request_bytes", "target", "answers"),
    [
        (b"\4\1\0\x50\x7f\0\0\1\0", TcpTarget("127.0.0.1", 80), b""),
        (b"\4\1\0\x50\x7f\0\0\1me\0", TcpTarget("127.0.0.1", 80), b""),
        (b"\4\1\x1f\x90\0\0\0\1me\0web\0", TcpTarget("web", 8080), b""),
        (GREETING + b"\5\1\0\1\x7f\0\0\1\0\x50", TcpTarget("127.0.0.1", 80), CHOSEN),
        (GREETING + b"\5\1\0\3\3web\0\x50", TcpTarget("web", 80), CHOSEN),
        (b"\5\2\2\0\5\1\0\3\3web\0\x50", TcpTarget("web", 80), CHOSEN),
        (
            GREETING + b"\5\1\0\4" + bytes(15) + b"\1\0\x50",
            TcpTarget("::1", 80),
            CHOSEN,
        ),
    ],
)
def test_a_request_is_read_and_nothing_behind_it(
    request_bytes: bytes, target: TcpTarget, answers: bytes
) -> None:
    parser = SocksParser()
    assert feed(parser, request_bytes + b"stream") == (answers, b"stream")
    assert parser.target == target
    assert parser.wanted == 0


@pytest.mark.parametrize(
    ("request_bytes", "says", "answer"),
    [
        (b"GE", "does not speak SOCKS", b""),
        (b"\4\2\0\x50\x7f\0\0\1\0", "only CONNECT", b"\0\x5b" + bytes(6)),
        (b"\4\1\0\0\x7f\0\0\1\0", "from 1 to 65535", b"\0\x5b" + bytes(6)),
        (b"\4\1\0\x50\0\0\0\1\0a b\0", "not a host name", b"\0\x5b" + bytes(6)),
        (b"\4\1\0\x50\0\0\0\1" + b"x" * 300, "too long", b"\0\x5b" + bytes(6)),
        (b"\5\1\2", "no password", b"\5\xff"),
        (b"\5\0", "no password", b"\5\xff"),
        (GREETING + b"\4\1\0\1", "does not speak SOCKS 5", b""),
        (
            GREETING + b"\5\2\0\1\x7f\0\0\1\0\x50",
            "only CONNECT",
            b"\5\7\0\1" + bytes(6),
        ),
        (GREETING + b"\5\1\0\2", "no address of kind 2", b"\5\x08\0\1" + bytes(6)),
        (GREETING + b"\5\1\0\3\0\0\x50", "host is empty", b"\5\1\0\1" + bytes(6)),
        (
            GREETING + b"\5\1\0\3\2\xff\xff\0\x50",
            "no host name",
            b"\5\1\0\1" + bytes(6),
        ),
    ],
)
def test_a_bad_request_is_refused_in_its_version(
    request_bytes: bytes, says: str, answer: bytes
) -> None:
    with pytest.raises(SocksError, match=says) as caught:
        feed(SocksParser(), request_bytes)
    assert caught.value.answer == answer


def test_the_last_word_is_in_the_version_of_the_request() -> None:
    four, five = SocksParser(), SocksParser()
    feed(four, b"\4\1\0\x50\x7f\0\0\1\0")
    feed(five, GREETING + b"\5\1\0\1\x7f\0\0\1\0\x50")
    assert four.answer(Reply.GRANTED) == b"\0\x5a" + bytes(6)
    assert four.answer(Reply.REFUSED) == b"\0\x5b" + bytes(6)
    assert five.answer(Reply.GRANTED) == b"\5\0\0\1" + bytes(6)
    assert five.answer(Reply.REFUSED) == b"\5\5\0\1" + bytes(6)


@given(st.binary(min_size=1, max_size=2 * TEXT_BYTES_MAX))
def test_any_bytes_are_a_request_or_refused_never_anything_else(data: bytes) -> None:
    parser = SocksParser()
    try:
        _, rest = feed(parser, data)
    except SocksError:
        return
    assert parser.target is not None or (rest == b"" and parser.wanted > 0)
