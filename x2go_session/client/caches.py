"""What is kept of what servers listed, and what is known of sessions: renewed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from x2go_session.client.base import ClientBase
from x2go_session.client.exceptions import X2GoSessionCacheException, translated
from x2go_session.registry import RegisteredSession

CACHE_TYPES: Final = ("sessions", "desktops", "mounts")
CacheTypes = str | Collection[str]


class Caches(ClientBase):
    """Asks servers again. Each method blocks."""

    @translated
    def update_cache_by_session_uuid(
        self,
        session_uuid: str,
        cache_types: CacheTypes = "sessions",
        update_sessions: bool | None = None,
        update_desktops: bool | None = None,
        update_mounts: bool | None = None,
    ) -> None:
        """Ask the server of a session for lists of some types again."""
        wanted = _wanted(cache_types, update_sessions, update_desktops, update_mounts)
        connection = self._session(session_uuid).connection
        connection.lists.refresh(connection.control, **wanted)

    @translated
    def update_cache_by_profile_name(
        self,
        profile_name: str,
        cache_types: CacheTypes = "sessions",
        update_sessions: bool | None = None,
        update_desktops: bool | None = None,
        update_mounts: bool | None = None,
    ) -> None:
        """Ask the server of a profile for lists of some types again."""
        self.update_cache_by_session_uuid(
            self._of_profile(profile_name).uuid,
            cache_types,
            update_sessions,
            update_desktops,
            update_mounts,
        )

    @translated
    def update_cache_all_profiles(
        self,
        cache_types: CacheTypes = "sessions",
        update_sessions: bool | None = None,
        update_desktops: bool | None = None,
        update_mounts: bool | None = None,
    ) -> None:
        """Ask all connected servers for lists of some types again."""
        for session in self.registry.connected():
            self.update_cache_by_session_uuid(
                session.uuid,
                cache_types,
                update_sessions,
                update_desktops,
                update_mounts,
            )

    @translated
    def update_sessionregistry_status_by_session_uuid(self, session_uuid: str) -> None:
        """Ask the server of a session what became of it."""
        self.registry.update(self._session(session_uuid))

    @translated
    def update_sessionregistry_status_by_profile_name(
        self, profile_name: str, session_list: Any = None
    ) -> None:
        """Ask the server of a profile what became of its sessions.

        What `list_sessions` returned a moment ago does not have to be asked for again.
        """
        session: RegisteredSession = self._of_profile(profile_name)
        connection = session.connection
        fresh = session_list is None
        self.registry.update(
            session, connection.lists.sessions(connection.control, fresh=fresh)
        )

    @translated
    def update_sessionregistry_status_all_profiles(self) -> None:
        """Ask all connected servers what became of sessions."""
        for session in self.registry.connected():
            self.registry.update(session)


def _wanted(types: CacheTypes, *flags: bool | None) -> dict[str, bool]:
    """Return which lists are wanted: as the flags say, or else by their types."""
    if any(flag is not None for flag in flags):
        return {name: bool(flag) for name, flag in zip(CACHE_TYPES, flags, strict=True)}
    names = {types} if isinstance(types, str) else set(types)
    if unknown := names - set(CACHE_TYPES):
        raise X2GoSessionCacheException(
            f"no cache of {', '.join(sorted(unknown))}: use {', '.join(CACHE_TYPES)}"
        )
    return {name: name in names for name in CACHE_TYPES}
