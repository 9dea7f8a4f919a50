"""Flow control: windows are enforced, credited on consumption, and never stall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.errors import ProtocolError
from rtunnel.window import (
    MAX_PACKET_BYTES,
    RECEIVE_WINDOW_BYTES,
    WINDOW_LIMIT_BYTES,
    ReceiveWindow,
    SendWindow,
)


def test_no_credit_before_something_was_consumed() -> None:
    window = ReceiveWindow()
    window.charge(RECEIVE_WINDOW_BYTES)
    assert window.left_bytes == 0
    assert window.consume(0) == 0


def test_credit_comes_in_portions_of_more_than_three_packets() -> None:
    window = ReceiveWindow()
    window.charge(10 * MAX_PACKET_BYTES)
    credits = [window.consume(MAX_PACKET_BYTES) for _ in range(10)]
    portion = 4 * MAX_PACKET_BYTES
    assert credits == [0, 0, 0, portion, 0, 0, 0, portion, 0, 0]


def test_below_half_every_consumed_byte_is_credited_at_once() -> None:
    window = ReceiveWindow()
    window.charge(RECEIVE_WINDOW_BYTES * 3 // 4)
    assert window.consume(1) == 1


def test_ten_percent_over_the_window_is_forgiven_and_one_byte_more_is_not() -> None:
    window = ReceiveWindow(size_bytes=1000)
    window.charge(1100)
    with pytest.raises(ProtocolError, match="101 bytes more"):
        window.charge(1)


@given(st.lists(st.integers(1, MAX_PACKET_BYTES), max_size=300))
def test_a_peer_that_keeps_to_its_window_never_stalls(packets: list[int]) -> None:
    window = ReceiveWindow(size_bytes=4 * MAX_PACKET_BYTES)
    allowed = 4 * MAX_PACKET_BYTES
    for size in packets:
        assert allowed >= size, "everything was consumed, and still no credit came"
        window.charge(size)
        allowed -= size
        allowed += window.consume(size)
        assert allowed == window.left_bytes


def test_no_more_is_reserved_than_the_peer_allows() -> None:
    window = SendWindow(100, 32)
    assert window.reserve(60) == 60
    assert window.reserve(60) == 40
    assert window.reserve(60) == 0
    window.adjust(5)
    assert window.reserve(60) == 5


def test_credit_beyond_2_to_the_32_is_a_protocol_error() -> None:
    window = SendWindow(1, 32)
    window.adjust(WINDOW_LIMIT_BYTES - 1)
    with pytest.raises(ProtocolError):
        window.adjust(1)


def test_packets_of_no_bytes_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        SendWindow(100, 0)


@given(st.binary(min_size=1, max_size=1000), st.integers(1, 100))
def test_data_is_cut_into_packets_the_peer_takes(data: bytes, limit: int) -> None:
    packets = SendWindow(0, limit).packets(data)
    assert b"".join(packets) == data
    assert all(0 < len(packet) <= limit for packet in packets)


def test_a_peer_that_takes_huge_packets_gets_those_everybody_takes() -> None:
    assert SendWindow(0, 2**32 - 1).max_packet_bytes == MAX_PACKET_BYTES
