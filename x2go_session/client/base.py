"""What the groups of a client's methods have in common."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from x2go_session.client.dispatcher import Dispatcher
from x2go_session.client.exceptions import X2GoClientException
from x2go_session.client.hooks import Hooks
from x2go_session.profiles import ClientSettings, PrintingFile, SessionProfiles
from x2go_session.registry import RegisteredSession, Registry
from x2go_session.registry.brokered import BrokeredProfiles
from x2go_session.registry.refresher import Refreshing


class ClientBase(Hooks):
    """The objects below a client, and how a session is found."""

    lang: ClassVar[str] = "en"
    registry: Registry
    dispatcher: Dispatcher
    session_profiles: SessionProfiles | BrokeredProfiles
    client_settings: ClientSettings
    client_printing: PrintingFile
    client_rootdir: Path
    sessions_rootdir: Path
    ssh_rootdir: Path
    # What is kept fresh by itself, and so may be answered from a cache.
    refreshing: Refreshing
    use_listsessions_cache: bool
    auto_register_sessions: bool

    def _session(self, session_uuid: str) -> RegisteredSession:
        return self.registry[session_uuid]

    def _of_profile(self, profile_name: str) -> RegisteredSession:
        """Return any session of a profile that is connected."""
        found = self.registry.connected(profile_name)
        if not found:
            raise X2GoClientException(f"profile {profile_name} is not connected")
        return found[0]

    def _one(
        self,
        session_uuid: str | None,
        profile_name: str | None = None,
        profile_id: str | None = None,
    ) -> RegisteredSession:
        """Return the session that a caller means in one of three ways."""
        if profile_id is not None:
            profile_name = self._name_of(profile_id)
        if profile_name is not None:
            return self._of_profile(profile_name)
        if session_uuid is None:
            raise X2GoClientException("name a session by its UUID, or by its profile")
        return self._session(session_uuid)

    def _name_of(self, profile_id: str) -> str:
        """Return the name of a profile, of a file or registered without one."""
        known = self.registry.sessions(lambda each: each.profile_id == profile_id)
        if known:
            return known[0].profile_name
        return self.session_profiles.to_name(profile_id)


def said_as(
    sessions: Iterable[RegisteredSession],
    objects: bool = False,
    profile_names: bool = False,
    profile_ids: bool = False,
    session_names: bool = False,
) -> list[Any]:
    """Return sessions as a caller wants them: by uuid, if it says nothing."""
    if objects:
        return list(sessions)
    if profile_names:
        return list(dict.fromkeys(each.profile_name for each in sessions))
    if profile_ids:
        return list(dict.fromkeys(each.profile_id for each in sessions))
    if session_names:
        return [each.name for each in sessions]
    return [each.uuid for each in sessions]
