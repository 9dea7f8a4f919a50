"""The windows of sessions on this side's display."""

from __future__ import annotations

from x2go_session.client.base import ClientBase
from x2go_session.client.exceptions import translated


class Windows(ClientBase):
    """Names windows, and brings them to front."""

    @translated
    def set_session_window_title(self, session_uuid: str, title: str = "") -> None:
        """Give the window of a session a title; its name is put in front of it."""
        self._session(session_uuid).set_title(title)

    @translated
    def raise_session_window(self, session_uuid: str) -> None:
        """Bring the window of a session in front of all others."""
        self._session(session_uuid).raise_window()
