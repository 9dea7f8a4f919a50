"""The end of a relay: EOF each way, one CLOSE each way, nothing behind it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.halfclose import Action, Half, HalfClose


def test_eof_of_the_peer_ends_one_direction_only() -> None:
    halves = HalfClose()
    assert halves.peer_eof() == Action.SHUTDOWN_SOCKET
    assert (halves.received, halves.sent) == (Half.EOF, Half.OPEN)


def test_eof_of_the_socket_ends_one_direction_only() -> None:
    halves = HalfClose()
    assert halves.local_eof() == Action.SEND_EOF
    assert (halves.received, halves.sent) == (Half.OPEN, Half.EOF)


def test_close_follows_when_the_socket_has_ended_both_ways() -> None:
    halves = HalfClose()
    halves.local_eof()
    halves.peer_eof()
    assert halves.local_end() == Action.SEND_CLOSE
    assert halves.peer_close() == Action.CLOSE_SOCKET | Action.FREE


def test_a_close_without_eof_is_answered_and_what_came_is_delivered() -> None:
    halves = HalfClose()
    assert halves.peer_close() == (
        Action.CLOSE_SOCKET | Action.SEND_CLOSE | Action.FREE
    )


def test_a_reset_sends_close_at_once_and_no_eof() -> None:
    halves = HalfClose()
    assert halves.reset() == Action.SEND_CLOSE | Action.RESET_SOCKET


def test_the_number_is_free_only_when_both_sides_have_closed() -> None:
    halves = HalfClose()
    assert Action.FREE not in halves.local_end()
    assert Action.FREE in halves.peer_close()


def test_a_lost_connection_resets_a_stream_without_eof() -> None:
    assert HalfClose().lost() == Action.RESET_SOCKET


def test_a_lost_connection_delivers_a_stream_that_was_complete() -> None:
    halves = HalfClose()
    halves.peer_eof()
    assert halves.lost() == Action.CLOSE_SOCKET


def test_the_setter_refuses_to_go_back() -> None:
    halves = HalfClose()
    halves.peer_close()
    with pytest.raises(ValueError, match="cannot go from"):
        halves._set(received=Half.EOF)


EVENTS = ("local_eof", "local_end", "reset", "peer_eof", "peer_close", "lost")


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_in_any_order_eof_and_close_are_sent_once_and_nothing_after(
    events: list[str],
) -> None:
    halves = HalfClose()
    sent: list[Action] = []
    freed = 0
    for event in events:
        actions: Action = getattr(halves, event)()
        sent += [a for a in (Action.SEND_EOF, Action.SEND_CLOSE) if a in actions]
        freed += Action.FREE in actions
    assert sent in (
        [],
        [Action.SEND_EOF],
        [Action.SEND_CLOSE],
        [Action.SEND_EOF, Action.SEND_CLOSE],
    )
    assert freed <= 1
