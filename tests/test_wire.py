"""SSH data types: what is packed is read back, what is cut short is an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.errors import ProtocolError
from rtunnel.wire import Reader, boolean, string, u32


@given(st.integers(0, 2**32 - 1), st.binary(), st.booleans(), st.binary())
def test_what_is_packed_is_read_back(
    number: int, data: bytes, flag: bool, rest: bytes
) -> None:
    fields = Reader(u32(number) + string(data) + boolean(flag) + rest)
    assert fields.u32() == number
    assert fields.string() == data
    assert fields.boolean() == flag
    assert fields.rest() == rest


@given(st.binary())
def test_text_survives_whatever_bytes_it_has(data: bytes) -> None:
    assert string(Reader(string(data)).text()) == string(data)


@given(st.binary(max_size=40), st.data())
def test_a_message_that_is_cut_short_is_a_protocol_error(
    data: bytes, draw: st.DataObject
) -> None:
    whole = string(data)
    cut = draw.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ProtocolError, match="cut short"):
        Reader(whole[:cut]).string()
