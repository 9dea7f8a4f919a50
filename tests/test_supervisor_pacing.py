"""How long a supervisor waits: longer each time, never in step, never too often."""

from __future__ import annotations

import threading

import pytest

from rtunnel.errors import (
    AuthenticationFailed,
    BackendUnavailable,
    ConfigError,
    ConnectError,
    ConnectionLost,
    ForwardingDenied,
    HostKeyChanged,
    HostUnreachable,
    PortInUse,
    RequestTimeout,
)
from rtunnel.supervisor.logins import LOGINS_AT_ONCE, Logins
from rtunnel.supervisor.pacing import Pace, Streak, Trouble, trouble_of
from tests.support.sshd import wait_until

PACE = Pace()
# The penalties of sshd_config(5), PerSourcePenalties: for a login that failed, and
# what an address may owe until it is shut out.
AUTHFAIL_S = 5.0
SHUT_OUT_S = 15.0


def waits(trouble: Trouble, count: int, random: float) -> list[float]:
    streak = Streak()
    return [streak.wait_s(trouble, PACE, lambda: random) for _ in range(count)]


def test_waits_double_up_to_the_longest() -> None:
    assert waits(Trouble.LINK, 8, 1.0) == [1, 2, 4, 8, 16, 32, 60, 60]


def test_half_of_each_wait_is_random() -> None:
    assert waits(Trouble.LINK, 8, 0.0) == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_row_without_an_end_has_no_overflow() -> None:
    assert waits(Trouble.LOGIN, 5000, 1.0)[-1] == PACE.login_max_s


def test_logins_that_fail_never_owe_so_much_that_sshd_shuts_us_out() -> None:
    owed_s = 0.0
    for wait_s in waits(Trouble.LOGIN, 100, 0.0):
        owed_s += AUTHFAIL_S
        assert owed_s < SHUT_OUT_S
        owed_s = max(owed_s - wait_s, 0.0)


def test_another_trouble_begins_another_row() -> None:
    streak = Streak()
    for _ in range(6):
        streak.wait_s(Trouble.LINK, PACE, lambda: 1.0)
    assert streak.wait_s(Trouble.LOGIN, PACE, lambda: 1.0) == PACE.login_first_s
    assert streak.wait_s(Trouble.LINK, PACE, lambda: 1.0) == PACE.first_s


def test_what_worked_ends_a_row() -> None:
    streak = Streak()
    for _ in range(6):
        streak.wait_s(Trouble.LINK, PACE, lambda: 1.0)
    streak.end()
    assert streak.wait_s(Trouble.LINK, PACE, lambda: 1.0) == PACE.first_s


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (HostUnreachable("x"), Trouble.LINK),
        (ConnectionLost("x"), Trouble.LINK),
        (RequestTimeout("x"), Trouble.LINK),
        (OSError("x"), Trouble.LINK),
        (AuthenticationFailed("x"), Trouble.LOGIN),
        (HostKeyChanged("x"), Trouble.LOGIN),
        (ConnectError("no common algorithm"), Trouble.LOGIN),
        (ConfigError("x"), Trouble.LOGIN),
        (BackendUnavailable("x"), Trouble.LOGIN),
        (PortInUse("x"), Trouble.PORT_TAKEN),
        (ForwardingDenied("x"), Trouble.FORWARD_REFUSED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_is_a_kind_of_trouble(error: Exception, trouble: Trouble) -> None:
    assert trouble_of(error) is trouble


def test_no_more_than_a_few_log_in_to_one_server_at_once() -> None:
    logins = Logins()
    running = {"a": 0, "b": 0}
    most = {"a": 0, "b": 0}
    lock = threading.Lock()
    go = threading.Event()

    def log_in(server: str) -> None:
        with logins.turn(server, lambda: False) as has_turn:
            assert has_turn
            with lock:
                running[server] += 1
                most[server] = max(most[server], running[server])
            go.wait(20)
            with lock:
                running[server] -= 1

    threads = [
        threading.Thread(target=log_in, args=(server,)) for server in "a" * 10 + "b" * 2
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: running == {"a": LOGINS_AT_ONCE, "b": 2})
    go.set()
    for thread in threads:
        thread.join(20)
    assert most == {"a": LOGINS_AT_ONCE, "b": 2}


def test_who_gives_up_waits_for_no_turn() -> None:
    logins = Logins()
    given_up = threading.Event()
    turns: list[bool] = []

    def log_in() -> None:
        with logins.turn("a", given_up.is_set) as has_turn:
            turns.append(has_turn)

    with (
        logins.turn("a", lambda: False),
        logins.turn("a", lambda: False),
        logins.turn("a", lambda: False),
        logins.turn("a", lambda: False),
    ):
        thread = threading.Thread(target=log_in)
        thread.start()
        given_up.set()
        logins.wake()
        thread.join(20)
    assert turns == [False]
