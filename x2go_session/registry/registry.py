"""All sessions of a client: by uuid, by name, by profile, by what is known of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from x2go_session.errors import NotRegistered
from x2go_session.registry.connection import Chooser, ServerConnection
from x2go_session.registry.master import Mastership
from x2go_session.registry.session import RegisteredSession
from x2go_session.registry.wish import Wish
from x2go_session.replies import SessionInfo
from x2go_session.services.print_actions import PrintAction
from x2go_session.session import SessionType

# The list of a server is not asked for more often than this only to answer a question.
FRESH_S: Final = 1.0


class Registry:
    """The sessions of one client. Any thread.

    `watch` is told of each session that is registered, before anything happens to it.
    """

    def __init__(
        self,
        sessions_root: Path,
        *,
        ssh_folder: Path | None = None,
        choose: Chooser | None = None,
        default_action: Callable[[], PrintAction] | None = None,
        watch: Callable[[RegisteredSession], object] | None = None,
    ) -> None:
        self._root = sessions_root
        self._connection = partial(
            ServerConnection, ssh_folder, *filter(None, [choose])
        )
        self._default_action = default_action
        self._watch = watch
        # Protected by _lock.
        self._lock = threading.RLock()
        self._sessions: dict[str, RegisteredSession] = {}
        self._connections: dict[str, ServerConnection] = {}
        self._masters: dict[str, Mastership] = {}
        self._updated_at: dict[str, float] = {}

    def register(self, wish: Wish, name: str = "") -> RegisteredSession:
        """Take in a session; `name` is its name on the server, if it has one."""
        with self._lock:
            profile_id = wish.profile.id
            session = RegisteredSession(
                wish,
                self._connections.setdefault(profile_id, self._connection()),
                self._masters.setdefault(profile_id, Mastership()),
                sessions_root=self._root,
                default_action=self._default_action,
                name=name,
            )
            self._sessions[session.uuid] = session
        if self._watch is not None:
            self._watch(session)
        return session

    def forget(self, session: RegisteredSession) -> None:
        """Know it no more; nothing happens to it."""
        with self._lock:
            self._sessions.pop(session.uuid, None)

    def __getitem__(self, uuid: str) -> RegisteredSession:
        """Return a session by its uuid. Raises `NotRegistered`."""
        with self._lock:
            session = self._sessions.get(uuid)
        if session is None:
            raise NotRegistered(f"no session is registered as {uuid!r}")
        return session

    # Finding them.

    def sessions(
        self, which: Callable[[RegisteredSession], bool] | None = None
    ) -> list[RegisteredSession]:
        """Return those for which `which` is true, in the order of registration."""
        with self._lock:
            known = list(self._sessions.values())
        return known if which is None else [each for each in known if which(each)]

    def of_profile(self, profile_name: str) -> list[RegisteredSession]:
        """Return the sessions of a profile, by its name."""
        return self.sessions(lambda session: session.profile_name == profile_name)

    def of_name(
        self, name: str, profile_name: str | None = None
    ) -> RegisteredSession | None:
        """Return the session with this name on the server, if it is known."""
        found = self.sessions(
            lambda session: (
                session.name == name and profile_name in (None, session.profile_name)
            )
        )
        return found[-1] if found else None

    def named_like(self, session: RegisteredSession, name: str) -> RegisteredSession:
        """Return the session with this name; a new one like `session` if none has."""
        found = self.of_name(name, session.profile_name)
        return found or self.register(session.wish, name)

    def connected(self, profile_name: str | None = None) -> list[RegisteredSession]:
        """Return one session of each connected profile, or of this profile."""
        found: dict[str, RegisteredSession] = {}
        for session in self.sessions():
            if session.connection.is_connected and profile_name in (
                None,
                session.profile_name,
            ):
                found.setdefault(session.profile_id, session)
        return list(found.values())

    def connections(self) -> dict[str, ServerConnection]:
        """Return the connection of each profile, by its id."""
        with self._lock:
            return dict(self._connections)

    def master(self, profile_name: str) -> RegisteredSession | None:
        """Return the session of a profile that has the shared folders."""
        for session in self.of_profile(profile_name):
            if self._masters[session.profile_id].master is session:
                return session
        # The master is over: what runs, and is a desktop at best, comes next.
        shown = [each for each in self.of_profile(profile_name) if each.is_shown]
        shown.sort(key=lambda each: each.kind.value != "D")
        if shown:
            self._masters[shown[0].profile_id].take(shown[0])
        return shown[0] if shown else None

    # What the servers list.

    def resumable(self, session: RegisteredSession) -> list[SessionInfo]:
        """Return what can be resumed on a session's server, the oldest first. Blocks.

        Not what publishes applications.
        """
        listed = session.connection.lists.sessions(session.connection.control)
        waiting = [
            info
            for info in listed
            if info.type in (SessionType.DESKTOP, SessionType.ROOTLESS)
        ]
        return sorted(waiting, key=lambda info: info.age_s, reverse=True)

    def update(
        self,
        session: RegisteredSession,
        listed: Iterable[SessionInfo] | None = None,
        *,
        at_first: bool = False,
    ) -> None:
        """Take over what a server lists, for all sessions of this one's profile.

        Blocks; asks the server where nothing is given. Raises what `Control` raises.
        """
        asked_at = time.monotonic()
        if listed is None:
            listed = session.connection.lists.sessions(session.connection.control)
        by_name = {info.name: info for info in listed}
        for each in self.sessions(lambda one: one.connection is session.connection):
            each.update(by_name, asked_at, at_first=at_first)
        self._updated_at[session.profile_id] = asked_at

    def update_if_old(self, session: RegisteredSession) -> None:
        """Ask the server about a session that it alone knows about, but not often."""
        age_s = time.monotonic() - self._updated_at.get(session.profile_id, 0.0)
        if not session.is_shown and session.connection.is_connected and age_s > FRESH_S:
            self.update(session)

    def adopt(
        self,
        session: RegisteredSession,
        listed: Iterable[SessionInfo] | None = None,
        *,
        with_published: bool = True,
        at_first: bool = False,
    ) -> list[RegisteredSession]:
        """Register what a server lists and nobody here knows; return that.

        The new ones have the wish of `session`. Blocks.
        """
        if listed is None:
            listed = session.connection.lists.sessions(session.connection.control)
        infos = list(listed)
        new = []
        with self._lock:
            known = {
                each.name
                for each in self.sessions()
                if each.connection is session.connection
            }
            for info in infos:
                if info.name in known:
                    continue
                if not with_published and "stRPUBLISHED" in info.name:
                    continue
                new.append(self.register(session.wish, info.name))
        self.update(session, infos, at_first=at_first)
        return new
