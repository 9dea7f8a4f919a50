"""Registering sessions: of profiles, of parameters, and those found on servers."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any, Final

from x2go_session.client.base import ClientBase
from x2go_session.client.connecting import Connecting
from x2go_session.client.exceptions import X2GoProfileException, translated
from x2go_session.profiles import Profile
from x2go_session.registry import RegisteredSession, Wish, wish_of

# The defaults that python-x2go has for sessions without a profile.
_NOTHING: Final[list[str]] = []
_NO_OPTIONS: Final[dict[str, Any]] = {}


class Registering(Connecting, ClientBase):
    """Takes sessions in."""

    @translated
    def register_session(
        self,
        server: str | None = None,
        profile_id: str | None = None,
        profile_name: str | None = None,
        session_name: str | None = None,
        allow_printing: bool = False,
        allow_share_local_folders: bool = False,
        share_local_folders: list[str] = _NOTHING,
        allow_mimebox: bool = False,
        mimebox_extensions: list[str] = _NOTHING,
        mimebox_action: str = "OPEN",
        add_to_known_hosts: bool = False,
        known_hosts: str | None = None,
        forward_sshagent: bool = False,
        proxy_options: dict[str, Any] = _NO_OPTIONS,
        return_object: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Register a session of a profile, or of a server and parameters.

        Returns its uuid, or itself. `kwargs` are on top of the profile. Raises
        `X2GoProfileException` where there is neither server nor such a profile.
        """
        if session_name is not None:
            known = self.registry.of_name(session_name, profile_name)
            if known is not None:
                return known if return_object else known.uuid
        given = {
            "printing": allow_printing,
            "allow_share_local_folders": allow_share_local_folders,
            "share_local_folders": share_local_folders,
            "allow_mimebox": allow_mimebox,
            "mimebox_extensions": mimebox_extensions,
            "forward_sshagent": forward_sshagent,
            "add_to_known_hosts": add_to_known_hosts,
        }
        said = {name: value for name, value in given.items() if value}
        if mimebox_action != "OPEN":
            said["mimebox_action"] = mimebox_action
        parameters = {**said, "known_hosts": known_hosts, **kwargs}
        base = self._profile(profile_id, profile_name)
        if base is None:
            if server is None:
                raise X2GoProfileException(
                    f"there is no profile {profile_name or profile_id!r}, and no "
                    "server to connect to was named"
                )
            base = _without_profile(server, profile_name or sys.argv[0])
        elif server is not None:
            parameters["server"] = server
        session = self.registry.register(wish_of(base, parameters), session_name or "")
        if session.wish.profile.autoconnect:
            self.session_auto_connect(session.uuid)
        return session if return_object else session.uuid

    @translated
    def register_all_session_profiles(self, return_objects: bool = False) -> Any:
        """Register one session for each profile; return them by profile name."""
        return {
            name: self.register_session(
                profile_id=profile_id, return_object=return_objects
            )
            for profile_id, name in self.session_profiles.names.items()
        }

    @translated
    def register_available_server_sessions_by_profile_name(
        self,
        profile_name: str,
        re_register: bool = False,
        skip_pubapp_sessions: bool = False,
    ) -> None:
        """Register what the server of a profile lists.

        With `re_register`, those that are registered and not shown here anew: they
        get what the profile says now.
        """
        session = self._of_profile(profile_name)
        if re_register:
            session = self._anew(session)
        self.registry.adopt(session, with_published=not skip_pubapp_sessions)

    @translated
    def register_available_server_sessions_by_session_uuid(
        self, session_uuid: str, skip_pubapp_sessions: bool = False
    ) -> None:
        """Register what the server of a session lists."""
        self.registry.adopt(
            self._session(session_uuid), with_published=not skip_pubapp_sessions
        )

    @translated
    def register_available_server_sessions_all_profiles(
        self, skip_pubapp_sessions: bool = False
    ) -> None:
        """Register what all connected servers list."""
        for session in self.registry.connected():
            self.registry.adopt(session, with_published=not skip_pubapp_sessions)

    def _profile(self, profile_id: str | None, name: str | None) -> Profile | None:
        for id_or_name in (profile_id, name):
            if id_or_name is not None and id_or_name in self.session_profiles:
                return self.session_profiles[id_or_name]
        return None

    def _anew(self, session: RegisteredSession) -> RegisteredSession:
        """Give the sessions of a profile that are not shown here its present state."""
        profile = self._profile(session.profile_id, None)
        if profile is not None:
            for each in self.registry.of_profile(session.profile_name):
                if not each.is_associated:
                    each.wish = Wish(profile=profile)
        return session


def _without_profile(server: str, name: str) -> Profile:
    """Return the profile of a session that has none, with python-x2go's defaults."""
    return Profile(
        id=datetime.now(UTC).strftime("%Y%m%d%H%M%S%f"),
        name=name,
        host=(server,),
        autologin=False,
        sound=True,
        useexports=False,
        usekbd=False,
    )
