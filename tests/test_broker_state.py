"""What brokers remember: in SQLite and a real PostgreSQL, alone and against others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.command import ROOT
from tests.support.postgres import Postgres
from x2go_session.broker.server.cookies import Cookies
from x2go_session.broker.server.errors import LoginRefused, StateError
from x2go_session.broker.server.state import (
    PlacedKey,
    State,
    StoredCookie,
    open_state,
)

NOW = 1_800_000_000.0
RACERS = 24
# Another process, which takes as many of the cookies as it can get.
TAKER = """
import sys
from x2go_session.broker.server.state import open_state
state = open_state(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for digest in sys.argv[2:]:
    if state.take_cookie(digest) is not None:
        print(digest)
state.close()
"""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a state is: in each database."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'state.sqlite'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def state(url: str) -> Iterator[State]:
    """An empty state."""
    opened = open_state(url)
    yield opened
    opened.close()


def cookie(digest: str, user: str = "alice") -> StoredCookie:
    return StoredCookie(digest, user, "192.0.2.1", NOW, NOW + 100)


def test_a_cookie_is_taken_once(state: State) -> None:
    state.add_cookie(cookie("a"))
    assert state.find_cookie("a") == cookie("a")
    assert state.take_cookie("a") == cookie("a")
    assert state.take_cookie("a") is None


def test_of_many_threads_that_take_a_cookie_one_gets_it(state: State) -> None:
    for number in range(10):
        state.add_cookie(cookie(str(number)))
        with ThreadPoolExecutor(RACERS) as pool:
            taken = list(pool.map(state.take_cookie, [str(number)] * RACERS))
        assert sum(each is not None for each in taken) == 1


def test_of_several_processes_that_take_cookies_each_cookie_goes_to_one(
    state: State, url: str
) -> None:
    digests = [f"digest-{number}" for number in range(60)]
    for digest in digests:
        state.add_cookie(cookie(digest))
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, url, *digests],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for taker in takers:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "ready\n"
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    taken = [line for t in takers for line in t.communicate(timeout=60)[0].split()]
    assert sorted(taken) == sorted(digests)


def test_racing_requests_with_one_cookie_log_in_once(url: str) -> None:
    # Two brokers, as on two machines: each with a state of its own on the database.
    states = [open_state(url) for _ in range(2)]
    brokers = [Cookies(each, lifetime_s=60) for each in states]
    authid = brokers[0].issue("alice", "192.0.2.1")

    def log_in(number: int) -> str | None:
        try:
            return brokers[number % 2].exchange(authid, "alice", "192.0.2.1")
        except LoginRefused:
            return None

    with ThreadPoolExecutor(RACERS) as pool:
        found = [each for each in pool.map(log_in, range(RACERS)) if each]
    assert len(found) == 1
    # And the next one is good at the other broker.
    assert brokers[1].exchange(found[0], "alice", "192.0.2.1") != found[0]
    for each in states:
        each.close()


def test_a_counter_counts_each_of_many_at_once_and_begins_anew(state: State) -> None:
    with ThreadPoolExecutor(RACERS) as pool:
        counts = list(pool.map(lambda _: state.count("x", 1, 60, NOW), range(RACERS)))
    assert sorted(counts) == list(range(1, RACERS + 1))
    assert state.count("x", -1, 60, NOW + 59) == RACERS - 1
    assert state.counter("x", NOW + 59) == (RACERS - 1, NOW + 60)
    assert state.count("x", 1, 60, NOW + 60) == 1
    state.forget_counter("x")
    assert state.counter("x", NOW + 60) == (0, NOW + 60)


def test_of_several_choices_for_a_user_the_first_one_counts(state: State) -> None:
    def choose(number: int) -> str:
        return state.choose("alice", "office", f"srv-{number}", NOW, 60)

    with ThreadPoolExecutor(RACERS) as pool:
        assert len(set(pool.map(choose, range(RACERS)))) == 1
    first = choose(99)
    assert state.chosen(NOW - 1) == {first: 1}
    state.unchoose("alice", "office", ["srv-98", first])
    assert choose(98) == "srv-98"
    assert state.choose("alice", "office", "srv-97", NOW + 61, 60) == "srv-97"


def test_a_key_that_is_due_is_claimed_by_one_broker_until_it_has_had_its_time(
    state: State,
) -> None:
    key = PlacedKey("id-1", "srv:22", "alice", "%h/keys", NOW, NOW + 60)
    state.add_key(key)
    assert state.claim_keys(NOW + 59, 30) == []
    with ThreadPoolExecutor(RACERS) as pool:
        claims = list(pool.map(lambda _: state.claim_keys(NOW + 60, 30), range(RACERS)))
    assert sum(map(len, claims)) == 1
    assert [each.identity for each in state.claim_keys(NOW + 90, 30)] == ["id-1"]
    state.forget_key("id-1")
    assert state.keys() == []


def test_what_is_old_is_forgotten_and_the_rest_stays(state: State) -> None:
    state.add_cookie(cookie("old"))
    state.add_cookie(StoredCookie("new", "alice", "", NOW, NOW + 500))
    state.count("old", 1, 100, NOW)
    state.choose("alice", "office", "srv", NOW, 60)
    state.tidy(NOW + 200, 60)
    assert state.find_cookie("old") is None
    assert state.find_cookie("new") is not None
    assert state.chosen(0) == {}
    state.forget_cookies("alice")
    assert state.find_cookie("new") is None


def test_a_state_outlives_its_broker(url: str) -> None:
    first = open_state(url)
    first.add_cookie(cookie("a"))
    first.close()
    second = open_state(url)
    assert second.take_cookie("a") is not None
    second.close()


def test_a_restarted_postgres_is_found_again(postgres: Postgres) -> None:
    state = open_state(postgres.database())
    state.add_cookie(cookie("a"))
    postgres.stop()
    with pytest.raises(StateError, match="PostgreSQL"):
        state.take_cookie("a")
    postgres.start()
    assert state.take_cookie("a") is not None
    state.close()


def test_a_database_that_is_not_there_is_said_without_its_password(
    tmp_path: Path,
) -> None:
    with pytest.raises(StateError, match="PostgreSQL") as raised:
        open_state(f"postgresql://me:s3cret@/x?host={tmp_path}")
    assert "s3cret" not in str(raised.value)
    with pytest.raises(StateError, match="unable to open"):
        open_state(f"sqlite:{tmp_path}/no/such/folder/state")


def test_the_file_of_a_state_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    open_state(f"sqlite:{path}").close()
    assert path.stat().st_mode & 0o777 == 0o600
