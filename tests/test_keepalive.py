"""When a peer is asked for a sign of life, and when it is given up."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rtunnel.ssh.inbound import PeerDead
from rtunnel.ssh.keepalive import ANSWER_GRACE_S, LOOK_S, Keepalive, Verdict
from rtunnel.ssh.packetizer import EnginePacketizer

INTERVALS_S = st.floats(0.1, 20)
COUNTS = st.integers(1, 5)


def live(
    interval_s: float, count_max: int, arrivals_s: list[float], limit_s: float
) -> tuple[float | None, list[float]]:
    """Ask as the transport does, while bytes arrive; return the end and the asking."""
    keepalive = Keepalive(interval_s, count_max, 0.0)
    now_s, asked_s = 0.0, []
    while now_s < limit_s:
        heard = sum(arrival_s <= now_s for arrival_s in arrivals_s)
        verdict = keepalive.judge(now_s, heard)
        if verdict is Verdict.DEAD:
            return now_s, asked_s
        if verdict is Verdict.ASK:
            asked_s.append(now_s)
        wait_s = keepalive.next_s(now_s)
        assert wait_s > 0 or verdict is not Verdict.WAIT, "it would spin"
        now_s += wait_s + 0.001
    return None, asked_s


@given(INTERVALS_S, COUNTS, st.floats(0, 30), st.floats(0.01, 5))
def test_a_peer_that_falls_silent_is_dead_within_interval_times_count_and_a_second(
    interval_s: float, count_max: int, silent_from_s: float, gap_s: float
) -> None:
    assume(gap_s < interval_s)  # else it was silent before
    arrivals_s = [at * gap_s for at in range(int(silent_from_s / gap_s) + 1)]
    last_s = arrivals_s[-1]
    dead_s, asked_s = live(interval_s, count_max, arrivals_s, 1000.0)
    assert dead_s is not None
    # An answer may take a second, however short the interval.
    limit_s = max(interval_s * count_max, interval_s + ANSWER_GRACE_S)
    assert limit_s <= dead_s - last_s + 0.01
    assert dead_s - last_s <= limit_s + LOOK_S + 0.1
    assert asked_s
    assert dead_s - asked_s[-1] <= max(interval_s, ANSWER_GRACE_S) + 0.1


@given(INTERVALS_S, COUNTS, st.floats(0, 0.9))
def test_a_peer_that_answers_within_a_second_lives(
    interval_s: float, count_max: int, answer_s: float
) -> None:
    keepalive = Keepalive(interval_s, count_max, 0.0)
    now_s, heard = 0.0, 0
    answers_s: list[float] = []
    while now_s < 20 * interval_s:
        heard += sum(due_s <= now_s for due_s in answers_s)
        answers_s = [due_s for due_s in answers_s if due_s > now_s]
        verdict = keepalive.judge(now_s, heard)
        assert verdict is not Verdict.DEAD
        if verdict is Verdict.ASK:
            answers_s.append(now_s + answer_s)
        now_s = min([now_s + keepalive.next_s(now_s) + 0.001, *answers_s])


def test_who_talks_is_not_asked() -> None:
    assert live(1.0, 3, [at / 10 for at in range(1000)], 99.0) == (None, [])


@pytest.mark.parametrize(("interval_s", "count_max"), [(0, 3), (-1, 3), (1, 0)])
def test_limits_that_make_no_sense_are_refused(
    interval_s: float, count_max: int
) -> None:
    with pytest.raises(ValueError, match="interval above 0"):
        Keepalive(interval_s, count_max, 0.0)


def test_who_was_stopped_gives_the_peer_time_to_answer() -> None:
    keepalive = Keepalive(1.0, 3, 0.0, heard_bytes=7)
    assert keepalive.judge(1.0, 7) is Verdict.ASK
    woken_s = now_s = 31.0
    assert keepalive.judge(now_s, 7) is Verdict.ASK  # and not DEAD
    while keepalive.judge(now_s, 7) is not Verdict.DEAD:
        now_s += keepalive.next_s(now_s) + 0.001
    assert ANSWER_GRACE_S <= now_s - woken_s <= keepalive.limit_s + LOOK_S


class FullSocket:
    """A socket that takes nothing, for as long as its waits are."""

    def __init__(self, *waits_s: float) -> None:
        self.waits_s = list(waits_s)

    def send(self, data: bytes) -> int:
        if not self.waits_s:
            return len(data)
        time.sleep(self.waits_s.pop(0))
        raise TimeoutError


def write_to(sock: FullSocket) -> None:
    """Write as the connection does, with a peer that may be silent for 1.1 s."""
    packetizer = EnginePacketizer(sock)
    packetizer.watch_peer(Keepalive(0.1, 2, 0.0), lambda: None)
    packetizer.write_all(b"a packet")


def test_who_was_stopped_while_it_wrote_gives_the_peer_time_to_read() -> None:
    write_to(FullSocket(1.3))


def test_a_peer_that_takes_nothing_for_as_long_as_it_may_be_silent_is_dead() -> None:
    with pytest.raises(PeerDead, match=r"taken nothing for 1\.1 s"):
        write_to(FullSocket(*[0.1] * 100))
