"""Which sessions a client knows, and what it knows of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from x2go_session.client.base import ClientBase, said_as
from x2go_session.client.exceptions import translated
from x2go_session.client.info import X2GoServerSessionInfo
from x2go_session.control import Control
from x2go_session.registry import RegisteredSession
from x2go_session.registry.session import Status

Which = Callable[[RegisteredSession], bool]


def _is_any(session: RegisteredSession) -> bool:
    return True


def _is_connected(session: RegisteredSession) -> bool:
    return session.connection.is_connected


def _is_associated(session: RegisteredSession) -> bool:
    return session.is_associated


def _is_running(session: RegisteredSession) -> bool:
    return session.is_running


def _is_suspended(session: RegisteredSession) -> bool:
    return session.is_suspended


def _is_published(session: RegisteredSession) -> bool:
    return session.is_published and session.is_associated


class Known(ClientBase):
    """Lists of sessions: their uuids, unless something else is asked for."""

    def client_registered_sessions(
        self,
        return_objects: bool = True,
        return_profile_names: bool = False,
        return_profile_ids: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions that are registered."""
        return said_as(
            self.registry.sessions(),
            return_objects,
            return_profile_names,
            return_profile_ids,
            return_session_names,
        )

    def client_registered_sessions_of_profile_name(
        self,
        profile_name: str,
        return_objects: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions of a profile that are registered."""
        return self._of(profile_name, _is_any, return_objects, return_session_names)

    def client_connected_sessions(
        self,
        return_objects: bool = False,
        return_profile_names: bool = False,
        return_profile_ids: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions that are connected."""
        return said_as(
            self.registry.sessions(_is_connected),
            return_objects,
            return_profile_names,
            return_profile_ids,
            return_session_names,
        )

    def client_connected_sessions_of_profile_name(
        self,
        profile_name: str,
        return_objects: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions of a profile that are connected."""
        return self._of(
            profile_name, _is_connected, return_objects, return_session_names
        )

    def client_associated_sessions(
        self,
        return_objects: bool = False,
        return_profile_names: bool = False,
        return_profile_ids: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions that were started or resumed here."""
        return said_as(
            self.registry.sessions(_is_associated),
            return_objects,
            return_profile_names,
            return_profile_ids,
            return_session_names,
        )

    def client_associated_sessions_of_profile_name(
        self,
        profile_name: str,
        return_objects: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions of a profile that were started or resumed here."""
        return self._of(
            profile_name, _is_associated, return_objects, return_session_names
        )

    def client_running_sessions(
        self,
        return_objects: bool = False,
        return_profile_names: bool = False,
        return_profile_ids: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions that run."""
        return said_as(
            self.registry.sessions(_is_running),
            return_objects,
            return_profile_names,
            return_profile_ids,
            return_session_names,
        )

    def client_running_sessions_of_profile_name(
        self,
        profile_name: str,
        return_objects: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions of a profile that run."""
        return self._of(profile_name, _is_running, return_objects, return_session_names)

    def client_suspended_sessions(
        self,
        return_objects: bool = False,
        return_profile_names: bool = False,
        return_profile_ids: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions that wait to be resumed."""
        return said_as(
            self.registry.sessions(_is_suspended),
            return_objects,
            return_profile_names,
            return_profile_ids,
            return_session_names,
        )

    def client_suspended_sessions_of_profile_name(
        self,
        profile_name: str,
        return_objects: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions of a profile that wait to be resumed."""
        return self._of(
            profile_name, _is_suspended, return_objects, return_session_names
        )

    def client_pubapp_sessions_of_profile_name(
        self,
        profile_name: str,
        return_objects: bool = False,
        return_session_names: bool = False,
    ) -> list[Any]:
        """Return the sessions of a profile that run published applications."""
        return self._of(
            profile_name, _is_published, return_objects, return_session_names
        )

    @property
    def client_has_connected_sessions(self) -> bool:
        """Whether any session is connected."""
        return bool(self.client_connected_sessions())

    @property
    def client_has_associated_sessions(self) -> bool:
        """Whether any session was started or resumed here."""
        return bool(self.client_associated_sessions())

    @property
    def client_has_running_sessions(self) -> bool:
        """Whether any session runs."""
        return bool(self.client_running_sessions())

    @property
    def client_has_suspended_sessions(self) -> bool:
        """Whether any session waits to be resumed."""
        return bool(self.client_suspended_sessions())

    def client_registered_session_of_name(
        self, session_name: str, return_object: bool = False
    ) -> Any:
        """Return the session of this name on its server; None if it is not known."""
        found = self.registry.of_name(session_name)
        return found if found is None or return_object else found.uuid

    def client_has_registered_session_of_name(self, session_name: str) -> bool:
        """Whether a session of this name is known."""
        return self.registry.of_name(session_name) is not None

    def client_connected_profiles(
        self, return_profile_names: bool = False
    ) -> list[str]:
        """Return the ids, or the names, of the profiles that are connected."""
        return said_as(
            self.registry.connected(),
            profile_names=return_profile_names,
            profile_ids=True,
        )

    @property
    def client_control_sessions(self) -> list[Control]:
        """The control sessions of all profiles that are connected."""
        return [each.connection.control for each in self.registry.connected()]

    @translated
    def client_control_session_of_profile_name(self, profile_name: str) -> Control:
        """Return the control session of a profile."""
        return self._of_profile(profile_name).connection.control

    @translated
    def get_master_session(
        self,
        profile_name: str,
        return_object: bool = True,
        return_session_name: bool = False,
    ) -> Any:
        """Return the session of a profile that has the shared folders, or None."""
        master = self.registry.master(profile_name)
        if master is None:
            return None
        return said_as([master], return_object, session_names=return_session_name)[0]

    profile_master_session = get_master_session

    # One session.

    @translated
    def get_session(self, session_uuid: str) -> RegisteredSession:
        """Return a session. Raises `X2GoSessionRegistryException`."""
        return self._session(session_uuid)

    with_session = get_session

    @translated
    def get_session_of_session_name(
        self,
        session_name: str,
        return_object: bool = False,
        match_profile_name: str | None = None,
    ) -> Any:
        """Return the session of this name on its server; None if it is not known."""
        found = self.registry.of_name(session_name, match_profile_name)
        return found if found is None or return_object else found.uuid

    @translated
    def get_session_summary(self, session_uuid: str) -> dict[str, Any]:
        """Return what is known of a session."""
        return self._session(session_uuid).summary

    @translated
    def get_session_info(self, session_uuid: str) -> X2GoServerSessionInfo | None:
        """Return what the server lists of a session; None if it does not. Blocks."""
        info = self._session(session_uuid).info
        return None if info is None else X2GoServerSessionInfo(info)

    @translated
    def get_session_name(self, session_uuid: str) -> str | None:
        """Return the name of a session on the server, once it has one."""
        return self._session(session_uuid).name or None

    @translated
    def get_session_username(self, session_uuid: str) -> str:
        """Return the user of a session on the server."""
        session = self._session(session_uuid)
        return session.connection.user or session.wish.profile.user

    @translated
    def get_session_profile_id(self, session_uuid: str) -> str:
        """Return the id of a session's profile."""
        return self._session(session_uuid).profile_id

    @translated
    def get_session_profile_name(self, session_uuid: str) -> str:
        """Return the name of a session's profile."""
        return self._session(session_uuid).profile_name

    @translated
    def get_session_server_hostname(self, session_uuid: str) -> str:
        """Return the server of a session, as the profile or the caller has it."""
        session = self._session(session_uuid)
        return session.connection.host or session.wish.profile.host[0]

    @translated
    def get_session_server_peername(self, session_uuid: str) -> tuple[str, int]:
        """Return the address and the port that a session is connected to."""
        return self._session(session_uuid).connection.peer

    @translated
    def is_session_running(
        self, session_uuid: str, session_name: str | None = None
    ) -> bool:
        """Whether a session runs, or the one of this name on its server."""
        return self._seen(session_uuid, session_name).is_running

    @translated
    def is_session_suspended(
        self, session_uuid: str, session_name: str | None = None
    ) -> bool:
        """Whether a session waits to be resumed, or the one of this name."""
        return self._seen(session_uuid, session_name).is_suspended

    @translated
    def has_session_terminated(
        self, session_uuid: str, session_name: str | None = None
    ) -> bool:
        """Whether a session is over, or the one of this name."""
        return self._seen(session_uuid, session_name).has_terminated

    def _seen(self, session_uuid: str, session_name: str | None) -> Status:
        session = self._session(session_uuid)
        self.registry.update_if_old(session)
        if session_name is None or session_name == session.name:
            return session.status
        return session.status_of(session_name)

    def _of(
        self, profile_name: str, which: Which, objects: bool, session_names: bool
    ) -> list[Any]:
        found = [each for each in self.registry.of_profile(profile_name) if which(each)]
        return said_as(found, objects, session_names=session_names)
