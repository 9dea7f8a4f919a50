"""Starting, resuming, suspending and terminating sessions; showing desktops."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from x2go_session import events
from x2go_session.client.base import ClientBase
from x2go_session.client.exceptions import (
    X2GoClientException,
    X2GoDesktopSharingException,
    translated,
)
from x2go_session.errors import ControlError, GraphicsError, NoSuchSession
from x2go_session.registry import RegisteredSession

log = logging.getLogger("x2go_session.client")


class Lifecycle(ClientBase):
    """What happens to sessions. Each method blocks until it has happened."""

    @translated
    def start_session(self, session_uuid: str, **sessionopts: Any) -> bool:
        """Start a session; False if it did not come up: HOOKs were told why."""
        session = self._session(session_uuid)
        return _succeeds(session, lambda: session.start(sessionopts))

    @translated
    def resume_session(
        self,
        session_uuid: str | None = None,
        session_name: str | None = None,
        match_profile_name: str | None = None,
        **sessionopts: Any,
    ) -> bool:
        """Resume a session, or one of its server by name; False as for start.

        Raises `X2GoClientException` if neither says which.
        """
        session = self._meant(session_uuid, session_name, match_profile_name)
        if session is None:
            return False
        if not (session_name or session.name):
            raise X2GoClientException("the session has no name: say which to resume")
        return _succeeds(
            session, lambda: session.resume(session_name or "", sessionopts)
        )

    @translated
    def suspend_session(
        self,
        session_uuid: str,
        session_name: str | None = None,
        match_profile_name: str | None = None,
        **sessionopts: Any,
    ) -> bool:
        """Suspend a session, or another one of its server by name."""
        session = self._meant(session_uuid, session_name, match_profile_name)
        if session is None:
            return False
        return _succeeds(session, lambda: session.suspend(session_name or ""))

    @translated
    def terminate_session(
        self,
        session_uuid: str,
        session_name: str | None = None,
        match_profile_name: str | None = None,
        **sessionopts: Any,
    ) -> bool:
        """Terminate a session, or another one of its server by name."""
        session = self._meant(session_uuid, session_name, match_profile_name)
        if session is None:
            return False
        return _succeeds(session, lambda: session.terminate(session_name or ""))

    @translated
    def share_desktop_session(
        self,
        session_uuid: str,
        desktop: str | None = None,
        user: str | None = None,
        display: str | None = None,
        share_mode: int = 0,
        check_desktop_list: bool = False,
        **sessionopts: Any,
    ) -> bool:
        """Show somebody's desktop in a session; `share_mode` 0: to look at it only.

        Raises `X2GoDesktopSharingException` if it was looked for, and is not there.
        """
        session = self._session(session_uuid)
        if desktop is None:
            if display is None:
                raise X2GoClientException("name a desktop, or a user and a display")
            owner = user or session.connection.user
            desktop = f"{owner}@:{str(display).removeprefix(':')}"
        if check_desktop_list:
            known = {str(each) for each in session.connection.control.desktops()}
            if not known & {desktop, f"{desktop}.0"}:
                session.events.emit(events.DesktopMissing(desktop=desktop))
                raise X2GoDesktopSharingException(
                    f"{desktop} is not there; there is {', '.join(sorted(known))}"
                )
        name = desktop
        return _succeeds(
            session,
            lambda: session.share_desktop(
                name, view_only=share_mode == 0, parameters=sessionopts
            ),
        )

    @translated
    def session_auto_start_or_resume(
        self,
        session_uuid: str,
        newest: bool = True,
        oldest: bool = False,
        all_suspended: bool = False,
        start: bool = True,
    ) -> bool:
        """Resume what waits on the server, or else start a session.

        Called for profiles that want it, when one is connected. Of several, the newest
        is resumed, or the oldest, or each that is suspended in a session of its own.
        """
        session = self._session(session_uuid)
        waiting = self.registry.resumable(session)
        if not waiting:
            return self.start_session(session_uuid) if start else False
        if all_suspended:
            return all(
                [
                    self.resume_session(
                        self.registry.named_like(session, info.name).uuid
                    )
                    for info in waiting
                    if info.is_suspended
                ]
            )
        chosen = waiting[0] if oldest and not newest else waiting[-1]
        return self.resume_session(session_uuid, session_name=chosen.name)

    @translated
    def clean_sessions(
        self, session_uuid: str, published_applications: bool = False
    ) -> bool:
        """Terminate all sessions of the user on a server.

        Those of published applications, too, if told so.
        """
        session = self._session(session_uuid)
        for info in session.connection.control.sessions():
            if published_applications or "stRPUBLISHED" not in info.name:
                known = self.registry.of_name(info.name, session.profile_name)
                # It may be over by now: a shadow ends with its desktop.
                with contextlib.suppress(NoSuchSession):
                    (known or session).terminate(info.name)
        self.registry.update(session)
        return True

    @translated
    def session_ok(self, session_uuid: str) -> bool:
        """Whether a session runs here, over a connection that stands."""
        return self._session(session_uuid).is_healthy

    def _meant(
        self,
        session_uuid: str | None,
        session_name: str | None,
        profile_name: str | None,
    ) -> RegisteredSession | None:
        """Return the session of a uuid, or of a name; None if the profile is another.

        Raises `X2GoClientException`.
        """
        if session_uuid is not None:
            session = self._session(session_uuid)
        elif session_name is not None:
            found = self.registry.of_name(session_name, profile_name)
            if found is None:
                raise X2GoClientException(f"no session {session_name} is registered")
            session = found
        else:
            raise X2GoClientException("name a session, by its UUID or its name")
        matches = profile_name in (None, session.profile_name)
        return session if matches else None


def _succeeds(session: RegisteredSession, action: Callable[[], object]) -> bool:
    """Whether something can be done; HOOKs were told why it cannot.

    What a lost connection raises is raised.
    """
    try:
        action()
    except (ControlError, GraphicsError) as error:
        if not session.connection.is_connected:
            raise
        log.warning("%s: %s", session.name or session.uuid, error)
        return False
    return True
