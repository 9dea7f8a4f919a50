"""What servers have and do: sessions, desktops, mounts, versions, features."""

from __future__ import annotations

from typing import Any, Final

from rtunnel.errors import RequestTimeout
from x2go_session import events
from x2go_session.client.base import ClientBase
from x2go_session.client.exceptions import (
    X2GoClientException,
    X2GoControlSessionException,
    translated,
)
from x2go_session.client.info import infos
from x2go_session.registry import RegisteredSession
from x2go_session.registry.desktops import without_own_of_types

_NO_TYPES: Final[list[str]] = []


class Servers(ClientBase):
    """Asks the servers of sessions. Each method may block."""

    @translated
    def list_sessions(
        self,
        session_uuid: str | None = None,
        profile_name: str | None = None,
        profile_id: str | None = None,
        no_cache: bool = False,
        refresh_cache: bool = False,
        update_sessionregistry: bool = True,
        register_sessions: bool = False,
        raw: bool = False,
    ) -> Any:
        """Return the user's sessions on a server by name, or as the server says it."""
        session = self._one(session_uuid, profile_name, profile_id)
        connection = session.connection
        if raw:
            return "".join(f"{line}\n" for line in connection.control.session_lines())
        fresh = no_cache or refresh_cache or not self.refreshing.sessions
        listed = connection.lists.sessions(connection.control, fresh=fresh)
        if register_sessions:
            self.registry.adopt(session, listed)
        elif update_sessionregistry:
            self.registry.update(session, listed)
        return infos(listed)

    @translated
    def list_desktops(
        self,
        session_uuid: str | None = None,
        profile_name: str | None = None,
        profile_id: str | None = None,
        no_cache: bool = False,
        refresh_cache: bool = False,
        exclude_session_types: list[str] = _NO_TYPES,
        raw: bool = False,
    ) -> Any:
        """Return the desktops that can be shown, as "user@:display".

        A HOOK is told of a server that takes too long, which raises
        `X2GoTimeOutException`.
        """
        session = self._one(session_uuid, profile_name, profile_id)
        connection = session.connection
        fresh = no_cache or refresh_cache or not self.refreshing.desktops
        try:
            if raw:
                lines = connection.control.desktop_lines()
                return "".join(f"{line}\n" for line in lines)
            desktops = connection.lists.desktops(connection.control, fresh=fresh)
        except RequestTimeout:
            session.events.emit(events.DesktopListLate())
            raise
        if exclude_session_types:
            desktops = without_own_of_types(
                desktops,
                connection.lists.sessions(connection.control),
                exclude_session_types,
            )
        return [str(each) for each in desktops]

    @translated
    def list_mounts(
        self,
        session_uuid: str,
        no_cache: bool = False,
        refresh_cache: bool = False,
        raw: bool = False,
    ) -> Any:
        """Return the folders that are mounted in a session, as "client|path"."""
        session = self._session(session_uuid)
        connection = session.connection
        if raw:
            lines = connection.control.mount_lines(session.name)
            return "".join(f"{line}\n" for line in lines)
        fresh = no_cache or refresh_cache or not self.refreshing.mounts
        mounts = connection.lists.mounts(connection.control, session.name, fresh=fresh)
        return [f"{each.client}|{each.mount_point}" for each in mounts]

    @translated
    def list_mounts_by_profile_name(
        self,
        profile_name: str,
        no_cache: bool = False,
        refresh_cache: bool = False,
        raw: bool = False,
    ) -> Any:
        """Return the same for all running sessions of a profile."""
        running = [
            each
            for each in self.registry.of_profile(profile_name)
            if each.is_running and each.connection.is_connected
        ]
        found = [
            self.list_mounts(each.uuid, no_cache, refresh_cache, raw)
            for each in running
        ]
        return "".join(found) if raw else [line for each in found for line in each]

    @translated
    def server_is_alive(self, session_uuid: str) -> bool:
        """True if the server answers.

        Otherwise a HOOK is told, and `X2GoControlSessionException` raised.
        """
        session = self._session(session_uuid)
        if not session.connection.is_alive():
            self._died(session, "the server does not answer")
            raise X2GoControlSessionException(
                f"the server of {session.profile_name} does not answer"
            )
        return True

    @translated
    def all_servers_are_alive(self) -> bool:
        """Whether all servers that are connected answer."""
        return all(each.connection.is_alive() for each in self.registry.connected())

    @translated
    def server_valid_x2gouser(
        self, session_uuid: str, username: str | None = None
    ) -> str:
        """Return the user's name if the server knows it, else an empty text."""
        session = self._session(session_uuid)
        name = username or session.connection.user
        return name if session.connection.control.has_user(name) else ""

    @translated
    def server_running_sessions(self, session_uuid: str) -> list[str]:
        """Return the names of the user's sessions that run on a server."""
        return [each.name for each in self._listed(session_uuid) if each.is_running]

    @translated
    def server_suspended_sessions(self, session_uuid: str) -> list[str]:
        """Return the names of the user's sessions that wait on a server."""
        return [each.name for each in self._listed(session_uuid) if each.is_suspended]

    def server_has_running_sessions(self, session_uuid: str) -> bool:
        """Whether any session of the user runs on a server."""
        return bool(self.server_running_sessions(session_uuid))

    def server_has_suspended_sessions(self, session_uuid: str) -> bool:
        """Whether any session of the user waits on a server."""
        return bool(self.server_suspended_sessions(session_uuid))

    def server_has_running_session_of_name(
        self, session_uuid: str, session_name: str
    ) -> bool:
        """Whether the session of this name runs on a server."""
        return session_name in self.server_running_sessions(session_uuid)

    def server_has_suspended_session_of_name(
        self, session_uuid: str, session_name: str
    ) -> bool:
        """Whether the session of this name waits on a server."""
        return session_name in self.server_suspended_sessions(session_uuid)

    @translated
    def get_server_versions(
        self, profile_name: str, component: str | None = None, force: bool = False
    ) -> Any:
        """Return the versions of the server's components, or of one."""
        found = self._of_profile(profile_name).connection.versions(fresh=force)
        if component is None:
            return found
        if component not in found:
            raise X2GoClientException(
                f"the server has no {component}; it has {', '.join(sorted(found))}"
            )
        return found[component]

    get_server_components = get_server_versions

    @translated
    def get_server_features(self, profile_name: str, force: bool = False) -> list[str]:
        """Return what the server can do, as x2gofeaturelist has it."""
        control = self._of_profile(profile_name).connection.control
        return sorted(control.features(fresh=force))

    @translated
    def has_server_feature(self, profile_name: str, feature: str) -> bool:
        """Whether the server can do something."""
        return feature in self.get_server_features(profile_name)

    def _listed(self, session_uuid: str) -> Any:
        connection = self._session(session_uuid).connection
        return connection.lists.sessions(connection.control)

    def _died(self, session: RegisteredSession, reason: str) -> None:
        session.events.emit(events.ConnectionDied(session=session.name, reason=reason))
