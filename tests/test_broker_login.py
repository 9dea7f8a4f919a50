"""Who is let in to a broker: passwords, authids, and limits against guessing."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rtunnel.errors import ConfigError
from tests.support.x2go import run
from x2go_session.broker.server.attempts import Attempts
from x2go_session.broker.server.authentication.htpasswd import HtpasswdAuthenticator
from x2go_session.broker.server.authentication.none import NoAuthenticator
from x2go_session.broker.server.authentication.pam import PamAuthenticator
from x2go_session.broker.server.cookies import Cookies, is_preset
from x2go_session.broker.server.errors import (
    LoginRefused,
    PasswordNotChanged,
    TooManyFailures,
)
from x2go_session.broker.server.login import Credentials, Logins
from x2go_session.broker.server.state import State, open_state

HERE, THERE = "192.0.2.1", "192.0.2.2"


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = open_state(f"sqlite:{tmp_path / 'state'}")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    """A file of htpasswd: alice by MD5, bob by SHA-512, and one in plain text."""
    path = tmp_path / "users"
    hashed = run("openssl", "passwd", "-6", "b0b")
    path.write_text(f"bob:{hashed.strip()}\nmallory:plain\n")
    alice = run("openssl", "passwd", "-apr1", "s3cret")
    path.write_text(path.read_text() + f"alice:{alice.strip()}\n")
    return path


def make(
    state: State,
    clock: Clock,
    passwords: Path | None,
    *,
    preset: str | None = None,
    rotate: bool = True,
    bind_address: bool = True,
) -> Logins:
    return Logins(
        HtpasswdAuthenticator(passwords) if passwords else NoAuthenticator(),
        Cookies(
            state, lifetime_s=100, rotate=rotate, bind_address=bind_address, clock=clock
        ),
        Attempts(state, per_user="3/minute", per_address="6/minute", clock=clock),
        preset,
    )


def by_password(user: str, password: str, address: str = HERE) -> Credentials:
    return Credentials(user, address, password=password)


def by_authid(user: str, authid: str | None, address: str = HERE) -> Credentials:
    assert authid is not None
    return Credentials(user, address, authid=authid)


# Authids.


def test_a_password_gives_an_authid_and_that_another_one(
    state: State, clock: Clock, passwords: Path
) -> None:
    logins = make(state, clock, passwords)
    first = logins.admit(by_password("alice", "s3cret"))
    second = logins.admit(by_authid("alice", first))
    assert first != second
    with pytest.raises(LoginRefused, match="used before"):
        logins.admit(by_authid("alice", first))
    assert logins.admit(by_authid("alice", second))


def test_a_wrong_authid_is_not_made_good_by_a_password(
    state: State, clock: Clock, passwords: Path
) -> None:
    logins = make(state, clock, passwords)
    with pytest.raises(LoginRefused, match="unknown"):
        logins.admit(Credentials("alice", HERE, "s3cret", "no-such-authid"))


def test_an_authid_is_good_for_its_user_address_and_time(
    state: State, clock: Clock, passwords: Path
) -> None:
    logins = make(state, clock, passwords)
    for given, after_s in (
        (("bob", HERE), 0.0),
        (("alice", THERE), 0.0),
        (("alice", HERE), 100.0),
    ):
        authid = logins.admit(by_password("alice", "s3cret"))
        clock.now += after_s
        with pytest.raises(LoginRefused):
            logins.admit(by_authid(given[0], authid, given[1]))
        # And used up.
        with pytest.raises(LoginRefused, match="used before"):
            logins.admit(by_authid("alice", authid))
        clock.now += 60


def test_the_time_of_an_authid_counts_from_the_password(
    state: State, clock: Clock, passwords: Path
) -> None:
    logins = make(state, clock, passwords)
    authid = logins.admit(by_password("alice", "s3cret"))
    for _ in range(9):
        clock.now += 11
        authid = logins.admit(by_authid("alice", authid))
    clock.now += 2
    with pytest.raises(LoginRefused, match="too old"):
        logins.admit(by_authid("alice", authid))


def test_an_authid_may_be_good_at_other_addresses_and_more_than_once(
    state: State, clock: Clock, passwords: Path
) -> None:
    logins = make(state, clock, passwords, rotate=False, bind_address=False)
    authid = logins.admit(by_password("alice", "s3cret"))
    assert logins.admit(by_authid("alice", authid, THERE)) == authid
    assert logins.admit(by_authid("alice", authid)) == authid


def test_a_preset_authid_must_be_there_beside_the_password(
    state: State, clock: Clock, passwords: Path
) -> None:
    logins = make(state, clock, passwords, preset="of-all-clients")
    with pytest.raises(LoginRefused, match="missing"):
        logins.admit(by_password("alice", "s3cret"))
    with pytest.raises(LoginRefused, match="wrong user"):
        logins.admit(Credentials("alice", HERE, "wrong", "of-all-clients"))
    first = logins.admit(Credentials("alice", HERE, "s3cret", "of-all-clients"))
    assert logins.admit(by_authid("alice", first))
    assert is_preset("of-all-clients", "of-all-clients")
    assert not is_preset("of-all-client", "of-all-clients")


def test_no_authentication_lets_everybody_in_without_authids(
    state: State, clock: Clock
) -> None:
    assert make(state, clock, None).admit(by_password("anybody", "")) is None
    logins = make(state, clock, None, preset="of-all-clients")
    with pytest.raises(LoginRefused, match="missing"):
        logins.admit(by_password("anybody", ""))
    assert logins.admit(by_authid("anybody", "of-all-clients")) == "of-all-clients"


def test_the_state_has_no_authid_in_it(
    state: State, clock: Clock, passwords: Path, tmp_path: Path
) -> None:
    authid = make(state, clock, passwords).admit(by_password("alice", "s3cret"))
    assert authid is not None
    written = b"".join(path.read_bytes() for path in tmp_path.glob("state*"))
    assert b"alice" in written
    assert authid.encode() not in written


# Limits.


def test_guesses_of_a_user_are_limited_wherever_they_come_from(
    state: State, clock: Clock, passwords: Path
) -> None:
    logins = make(state, clock, passwords)
    for number in range(3):
        with pytest.raises(LoginRefused, match="wrong"):
            logins.admit(by_password("alice", "wrong", f"192.0.2.{number}"))
    with pytest.raises(TooManyFailures) as raised:
        logins.admit(by_password("alice", "s3cret"))
    assert 0 < raised.value.wait_s <= 60
    assert logins.admit(by_password("bob", "b0b"))
    clock.now += 61
    assert logins.admit(by_password("alice", "s3cret"))


def test_guesses_from_an_address_are_limited_whomever_they_are_for(
    state: State, clock: Clock, passwords: Path
) -> None:
    logins = make(state, clock, passwords)
    for number in range(6):
        with pytest.raises(LoginRefused, match="wrong"):
            logins.admit(by_password(f"user{number}", "wrong"))
    with pytest.raises(TooManyFailures):
        logins.admit(by_password("alice", "s3cret"))
    assert logins.admit(by_password("alice", "s3cret", THERE))


def test_who_is_right_is_never_limited(
    state: State, clock: Clock, passwords: Path
) -> None:
    logins = make(state, clock, passwords)
    authid = logins.admit(by_password("alice", "s3cret"))
    for _ in range(20):
        authid = logins.admit(by_authid("alice", authid))


def test_of_guesses_that_come_at_once_no_more_are_looked_at_than_allowed(
    postgres: object, clock: Clock
) -> None:
    # As one broker of several: counters are in the state that they share.
    looked_at = []

    class Slow(NoAuthenticator):
        asks_password = True

        def verify(self, user: str, password: str) -> bool:
            looked_at.append(password)
            everybody.wait(30)
            return False

    everybody = threading.Event()
    states = [open_state(postgres.database())]  # type: ignore[attr-defined]
    logins = Logins(
        Slow(),
        Cookies(states[0], lifetime_s=100, clock=clock),
        Attempts(states[0], per_user="3/minute", per_address="99/minute", clock=clock),
    )
    refused = []

    def guess(number: int) -> None:
        try:
            logins.admit(by_password("alice", str(number)))
        except TooManyFailures:
            refused.append(number)
        except LoginRefused:
            pass

    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(guess, number) for number in range(12)]
        while len(refused) < 9:
            assert not all(future.done() for future in futures)
        everybody.set()
    assert len(looked_at) == 3
    states[0].close()


def test_the_log_tells_who_was_refused_and_no_secret(
    state: State,
    clock: Clock,
    passwords: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    logins = make(state, clock, passwords)
    with pytest.raises(LoginRefused):
        logins.admit(by_password("alice\nforged: line", "my-wrong-password"))
    with pytest.raises(LoginRefused):
        logins.admit(by_authid("alice", "my-wrong-authid"))
    authid = logins.admit(by_password("alice", "s3cret"))
    logins.change_password(by_password("alice", "s3cret"), "my-new-password")
    assert "refused: user='alice\\nforged: line' address=192.0.2.1" in caplog.text
    for secret in ("my-wrong", "s3cret", "my-new", str(authid)):
        assert secret not in caplog.text
    assert "s3cret" not in repr(by_password("alice", "s3cret"))


# Where passwords are.


def test_htpasswd_verifies_hashes_and_no_plain_text(passwords: Path) -> None:
    users = HtpasswdAuthenticator(passwords)
    assert users.verify("alice", "s3cret")
    assert users.verify("bob", "b0b")
    for user, password in (
        ("alice", "b0b"),
        ("alice", ""),
        ("nobody", "s3cret"),
        ("mallory", "plain"),
        ("alice", "x" * 5000),
        ("alice", "s3cret\0"),
        ("alice:x", "s3cret"),
    ):
        assert not users.verify(user, password)


def test_htpasswd_changes_a_password_and_authids_are_worthless_then(
    state: State, clock: Clock, passwords: Path
) -> None:
    passwords.chmod(0o640)
    logins = make(state, clock, passwords)
    authid = logins.admit(by_password("alice", "s3cret"))
    with pytest.raises(LoginRefused):
        logins.change_password(by_password("alice", "wrong"), "new")
    with pytest.raises(LoginRefused):  # an authid is not enough
        logins.change_password(by_authid("alice", authid), "new")
    with pytest.raises(PasswordNotChanged, match="72 bytes"):
        logins.change_password(by_password("alice", "s3cret"), "x" * 73)
    logins.change_password(by_password("alice", "s3cret"), "new")
    with pytest.raises(LoginRefused, match="unknown"):
        logins.admit(by_authid("alice", authid, THERE))
    users = HtpasswdAuthenticator(passwords)
    assert users.verify("alice", "new")
    assert users.verify("bob", "b0b")
    assert passwords.stat().st_mode & 0o777 == 0o640


def test_htpasswd_sees_what_another_program_has_changed(passwords: Path) -> None:
    users = HtpasswdAuthenticator(passwords)
    other = HtpasswdAuthenticator(passwords)
    other.change_password("alice", "new")
    assert users.verify("alice", "new")
    passwords.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        users.verify("alice", "new")


def test_pam_verifies_users_of_the_system(tmp_path: Path) -> None:
    user = f"x2gp{threading.get_native_id()}"
    service = Path("/etc/pam.d") / user
    run(
        "useradd",
        "--no-create-home",
        "--password",
        run("openssl", "passwd", "-6", "s3cret").strip(),
        user,
    )
    try:
        service.write_text("auth required pam_unix.so nodelay\n"
                           "account required pam_unix.so\n")  # fmt: skip
        users = PamAuthenticator(service.name)
        assert users.verify(user, "s3cret")
        assert not users.verify(user, "wrong")
        assert not users.verify(user, "")
        assert not users.verify(f"{user}x", "s3cret")
        with pytest.raises(PasswordNotChanged, match="passwd"):
            users.change_password(user, "new")
        # The password is right, and the account is not.
        run("chage", "--expiredate", "2001-01-01", user)
        assert not users.verify(user, "s3cret")
    finally:
        service.unlink(missing_ok=True)
        subprocess.run(["userdel", user], check=True, capture_output=True)
