"""The broker: profiles of a user, and the server where a session runs."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rtunnel.errors import ConfigError
from x2go_session.broker.answers import ALL_DOWN, NO_SERVER, SelectedSession
from x2go_session.broker.server import balance, keys
from x2go_session.broker.server.attempts import Attempts
from x2go_session.broker.server.authentication import Authenticator, open_authenticator
from x2go_session.broker.server.cookies import Cookies
from x2go_session.broker.server.errors import ServerError
from x2go_session.broker.server.keys import OneShotKeys
from x2go_session.broker.server.load import Answer, Servers, ServerSession
from x2go_session.broker.server.login import Logins
from x2go_session.broker.server.profiles_file import (
    BROKER_USER,
    Host,
    Profile,
    read_profiles,
)
from x2go_session.broker.server.settings import BrokerSettings
from x2go_session.broker.server.state import State, open_state
from x2go_session.options import DESKTOP_COMMANDS
from x2go_session.profiles.values import Value
from x2go_session.session import SessionType

log = logging.getLogger("x2go_session.broker")

# How long a choice holds, and counts as a session that is not seen yet: as long as an
# agent waits for its client, x2gostartagent.
CHOICE_LASTS_S: Final = 60.0
# How long a session that is shown elsewhere may take to be suspended, and how often it
# is looked at.
SUSPEND_TIMEOUT_S: Final = 15.0
SUSPEND_PAUSE_S: Final = 0.5
# What clients of x2gobroker are told of the key, before there is one.
KEY_TO_COME: Final = "<will-be-exchanged-during-session-selection>"


class Broker:
    """Decides for all front ends. Any thread; calls block. Raises `StateError`."""

    def __init__(
        self,
        settings: BrokerSettings,
        state: State,
        *,
        clock: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.state = state
        self._clock = clock
        self._chance = chance or random.SystemRandom()
        self._profiles = _ProfilesOnDisk(Path(settings.profiles))
        authenticator = open_authenticator(settings.authentication)
        self.logins = _logins(settings, state, authenticator, clock)
        self.servers = Servers(settings.servers)
        lifetime_s = settings.servers.key_lifetime_s if settings.servers else 0.0
        self.keys = OneShotKeys(state, self.servers, lifetime_s, clock)
        self._check()

    def close(self) -> None:
        """Close the connections to servers, and the state."""
        self.servers.close()
        self.state.close()

    def number_of_profiles(self) -> int:
        """Return how many profiles there are, for whomever."""
        return len(self._profiles.read())

    # What users ask.

    def profiles(self, user: str, address: str) -> dict[str, dict[str, Value]]:
        """Return the profiles that a user is offered at an address, for a client."""
        offered = self._offered(user, address)
        answers: Mapping[Host, Answer] = {}
        if self.settings.servers is not None:
            hosts = [
                host
                for profile in offered.values()
                if not profile.shadows
                for host in profile.hosts
            ]
            answers = self.servers.ask(
                hosts, probe=True, fresh_s=self.settings.servers.fresh_s
            )
        log.info("profiles: user=%r address=%s n=%d", user, address, len(offered))
        return {
            name: self._for_client(profile, user, answers)
            for name, profile in offered.items()
        }

    def select(
        self,
        profile_id: str,
        user: str,
        address: str,
        *,
        login: str = "",
        offer: str = "",
    ) -> SelectedSession:
        """Return the server where a session of a profile runs, or will run.

        `login` is the user on the server, if the client wants another; `offer` is a
        public key that it would log in with.
        """
        profile = self._offered(user, address).get(profile_id)
        if profile is None:
            return SelectedSession(NO_SERVER, 22)
        own = server_user(profile, user)
        answers = self.servers.ask(profile.hosts, probe=self._probes(profile))
        found = None if profile.shadows else _session_of(own, answers)
        host = found[0] if found else self._choose(profile, own, answers)
        if host is None:
            log.error("all servers are down: profile=%s", profile_id)
            return SelectedSession(
                ALL_DOWN, profile.hosts[0].port if profile.hosts else 22
            )
        log.info(
            "selected: user=%r profile=%s server=%s resumes=%s",
            *(user, profile_id, host, bool(found)),
        )
        # What follows is for those alone who are known to be the user of the server.
        if not self.logins.asks_password or login not in ("", own):
            return SelectedSession(host.address, host.port)
        line = self._resumable(host, own, found[1]) if found else None
        key, accepted = self._key(profile, host, own, offer)
        return SelectedSession(host.address, host.port, key, accepted, line)

    # How it is decided.

    def _offered(self, user: str, address: str) -> dict[str, Profile]:
        groups = self._groups(user)
        return {
            name: profile
            for name, profile in self._profiles.read().items()
            if profile.acl.allows(user, groups, address)
        }

    def _groups(self, user: str) -> frozenset[str]:
        own = {name for name, users in self.settings.groups.items() if user in users}
        return frozenset(own | system_groups(user))

    def _for_client(
        self, profile: Profile, user: str, answers: Mapping[Host, Answer]
    ) -> dict[str, Value]:
        values = dict(profile.values)
        if values["user"] == BROKER_USER:
            values["user"] = user
        command = str(values["command"]).upper()
        if command in DESKTOP_COMMANDS:
            values |= {"command": command, "rootless": False}
        if self._autologin(profile):
            values |= {"autologin": True, "key": KEY_TO_COME}
        own = {host: answers[host] for host in profile.hosts if host in answers}
        found = (
            None if profile.shadows else _session_of(server_user(profile, user), own)
        )
        if found is not None and self.logins.asks_password:
            host, session = found
            values |= {"host": [host.name], "status": session.info.status}
        return values

    def _choose(
        self, profile: Profile, user: str, answers: Mapping[Host, Answer]
    ) -> Host | None:
        if profile.shadows:
            first = profile.hosts[0]
            return first if first in answers else None
        alive = {str(host): host for host in answers}
        now = self._clock()
        loads = {str(host): answer.load for host, answer in answers.items()}
        expected = self.state.chosen(now - CHOICE_LASTS_S)
        picked = balance.choose(list(alive), loads, expected, self._chance)
        if picked is None:
            return None
        counts = self.state.choose(user, profile.id, picked, now, CHOICE_LASTS_S)
        if counts not in alive:  # chosen a moment ago, and dead since
            self.state.unchoose(user, profile.id, [counts])
            counts = self.state.choose(user, profile.id, picked, now, CHOICE_LASTS_S)
        return alive.get(counts, alive[picked])

    def _resumable(self, host: Host, user: str, session: ServerSession) -> str | None:
        """Return the line of a session to resume; suspend it first if it runs.

        None if that does not work: the client looks at the server itself.
        """
        if session.info.is_suspended:
            return session.line
        try:
            self.servers.suspend(host, user, session.info.name)
        except ServerError as error:
            log.warning("not suspended: session=%s %s", session.info.name, error)
            return None
        deadline = time.monotonic() + SUSPEND_TIMEOUT_S
        while time.monotonic() < deadline:
            answer = self.servers.ask([host], probe=True).get(host)
            for each in answer.sessions if answer else ():
                if each.info.name == session.info.name and each.info.is_suspended:
                    return each.line
            time.sleep(SUSPEND_PAUSE_S)
        log.warning("not suspended in time: session=%s", session.info.name)
        return None

    def _key(
        self, profile: Profile, host: Host, user: str, offer: str
    ) -> tuple[str | None, bool]:
        """Have the user let in by a key: the one that is offered, or a new one."""
        if not self._autologin(profile):
            return None, False
        assert self.settings.servers is not None
        file = profile.authorized_keys or self.settings.servers.authorized_keys
        public = keys.offered_key(offer)
        private = None
        if public is None:
            public, private = keys.generate()
        try:
            self.keys.put(host, user, file, public)
        except ServerError as error:
            # There still are passwords.
            log.error("no key put: server=%s user=%r %s", host, user, error)
            return None, False
        return private, private is None

    def _autologin(self, profile: Profile) -> bool:
        servers = self.settings.servers
        if servers is None or not self.logins.asks_password:
            return False
        return servers.autologin if profile.autologin is None else profile.autologin

    def _probes(self, profile: Profile) -> bool:
        return self.settings.probe if profile.probe is None else profile.probe

    def _check(self) -> None:
        """See at the start what would be seen at the first request."""
        profiles = self._profiles.read()
        servers = self.settings.servers
        wanting = [name for name, each in profiles.items() if each.autologin]
        if servers is not None and servers.autologin:
            wanting = wanting or ["all"]
        if wanting and not self.logins.asks_password:
            raise ConfigError(
                'mechanism "none" lets everybody be anybody: autologin (profiles: '
                f"{', '.join(wanting)}) would let them in to the servers, too"
            )
        if wanting and servers is None:
            raise ConfigError(
                f"autologin (profiles: {', '.join(wanting)}) needs [servers]: how keys "
                "are put there"
            )


class _ProfilesOnDisk:
    """The file of profiles, read anew when it changed; as it was, while it is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, int], dict[str, Profile]] | None = None

    def read(self) -> dict[str, Profile]:
        """Return the profiles. Raises `ConfigError` if they were never right."""
        try:
            found = self._path.stat()
            version = (found.st_ino, found.st_mtime_ns)
            if self._known is None or self._known[0] != version:
                self._known = (version, read_profiles(self._path))
        except OSError as error:
            if self._known is None:
                raise ConfigError(f"cannot read {self._path}: {error}") from None
        except ConfigError as error:
            if self._known is None:
                raise
            log.error("profiles stay as they were: %s", error)
            self._known = (version, self._known[1])
        return self._known[1]


def open_broker(settings: BrokerSettings) -> Broker:
    """Make a broker of settings. Raises `ConfigError`, `StateError`."""
    state = open_state(settings.state)
    try:
        return Broker(settings, state)
    except BaseException:
        state.close()
        raise


def server_user(profile: Profile, user: str) -> str:
    """Return who a broker's user is on the servers of a profile."""
    own = str(profile.values["user"])
    return user if own in ("", BROKER_USER) else own


def system_groups(user: str) -> set[str]:
    """Return the groups of a user that the system knows, primary one included."""
    try:
        entry = pwd.getpwnam(user)
        numbers = os.getgrouplist(user, entry.pw_gid)
    except (KeyError, ValueError, OSError):
        return set()
    found = set()
    for number in numbers:
        try:
            found.add(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return found


def _session_of(
    user: str, answers: Mapping[Host, Answer]
) -> tuple[Host, ServerSession] | None:
    """Return the session to resume: a suspended one first, then one that runs."""
    found = [
        (host, session)
        for host, answer in answers.items()
        for session in answer.sessions
        if session.info.user == user and session.info.type is not SessionType.SHADOW
    ]
    return min(found, key=lambda each: each[1].info.is_running, default=None)


def _logins(
    settings: BrokerSettings,
    state: State,
    authenticator: Authenticator,
    clock: Callable[[], float],
) -> Logins:
    cookies = Cookies(
        state,
        lifetime_s=settings.cookies.lifetime_s,
        rotate=settings.cookies.rotate,
        bind_address=settings.cookies.bind_address,
        clock=clock,
    )
    attempts = Attempts(
        state,
        per_user=settings.limits.per_user,
        per_address=settings.limits.per_address,
        clock=clock,
    )
    return Logins(authenticator, cookies, attempts, _preset(settings))


def _preset(settings: BrokerSettings) -> str | None:
    path = settings.cookies.preset_file
    if path is None:
        return None
    try:
        preset = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the preset authid in {path}: {error}") from None
    if not preset:
        raise ConfigError(f"{path} is empty: it should have the preset authid")
    return preset
