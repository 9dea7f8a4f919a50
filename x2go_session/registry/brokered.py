"""Profiles that a session broker has, and the server that it chooses for each session.

What a caller sees is what `SessionProfiles` has, without what changes something.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from x2go_session.broker import Broker, key_file, profile_for
from x2go_session.errors import BrokerUnreachable, NoSuchProfile, ProfileError
from x2go_session.events import BrokerQuestion, Events
from x2go_session.events import BrokerUnreachable as Unreachable
from x2go_session.profiles.profile import Profile
from x2go_session.profiles.values import Value


class BrokeredProfiles:
    """The profiles of a broker's user. Any thread; the first call blocks, `reload` too.

    Raises what `Broker` raises.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._asking = threading.Lock()
        self._known: dict[str, Profile] | None = None

    @property
    def names(self) -> dict[str, str]:
        """The name of each profile, by id."""
        return {id: profile.name for id, profile in self._profiles().items()}

    @property
    def ids(self) -> list[str]:
        """The ids of all profiles."""
        return list(self._profiles())

    def __contains__(self, id_or_name: object) -> bool:
        names = self.names
        return id_or_name in names or id_or_name in names.values()

    def __getitem__(self, id_or_name: str) -> Profile:
        """Return a profile. Raises `NoSuchProfile`."""
        return self._profiles()[self.to_id(id_or_name)]

    def to_id(self, id_or_name: str) -> str:
        """Return the id of a profile. Raises `NoSuchProfile`."""
        names = self.names
        for id, name in names.items():
            if id_or_name in (id, name):
                return id
        known = ", ".join(names.values()) or "none"
        raise NoSuchProfile(
            f"the broker has no profile {id_or_name!r}; there is {known}"
        )

    def to_name(self, id_or_name: str) -> str:
        """Return the name of a profile. Raises `NoSuchProfile`."""
        return self[id_or_name].name

    def values(self, id_or_name: str) -> dict[str, Value]:
        """Return all values of a profile, defaults included."""
        return self[id_or_name].values()

    def get(self, id_or_name: str, key: str) -> Value:
        """Return one value of a profile. Raises `ProfileError` for another key."""
        values = self.values(id_or_name)
        if key not in values:
            raise ProfileError(f"profile {id_or_name} has no {key}")
        return values[key]

    def set(self, id_or_name: str, key: str, value: Value) -> None:
        """Raise `ProfileError`: profiles of a broker are changed there."""
        raise ProfileError(f"profile {id_or_name} is the broker's, and changed there")

    def write(self) -> None:
        """Do nothing: there is nothing to be written."""

    def reload(self) -> None:
        """Ask the broker again."""
        with self._asking:
            self._known = self._broker.list_profiles()

    @contextmanager
    def chosen(self, profile: Profile, stream: Events) -> Iterator[Profile]:
        """Have the broker choose a server for a session; the profile for that.

        Connect in the block: the key of the broker is there no longer. Where the
        broker cannot be reached, a `BrokerQuestion` asks whether to go on with what
        the profile itself says.
        """
        if profile.id not in self._profiles():
            yield profile
            return
        try:
            selected = self._broker.select(profile.id, login=profile.user)
        except BrokerUnreachable as error:
            stream.emit(Unreachable(reason=str(error)))
            question = BrokerQuestion(is_connected=False)
            if not stream.ask(question, default=False):
                raise
            yield profile
            return
        with key_file(selected) as key:
            yield profile_for(profile, selected, key)

    def close(self) -> None:
        """End what is open."""
        self._broker.close()

    def _profiles(self) -> dict[str, Profile]:
        with self._asking:
            if self._known is None:
                self._known = self._broker.list_profiles()
            return self._known
