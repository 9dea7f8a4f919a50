"""The applications that servers publish."""

from __future__ import annotations

from typing import Any

from x2go_session.applications import (
    MenuEntry,
    menu,
    raw_entries,
    read_applications,
    user_language,
)
from x2go_session.client.base import ClientBase
from x2go_session.client.exceptions import translated


def _said(entry: MenuEntry) -> dict[str, Any]:
    """Return an entry in python-x2go's words."""
    return {
        "name": entry.name,
        "comment": entry.comment,
        "exec": entry.command,
        "icon": entry.icon,
    }


class Applications(ClientBase):
    """Menus of published applications. Each method may block."""

    @translated
    def get_published_applications(
        self,
        session_uuid: str | None = None,
        profile_name: str | None = None,
        lang: str | None = None,
        refresh: bool = False,
        raw: bool = False,
        very_raw: bool = False,
        max_no_submenus: int = 10,
    ) -> Any:
        """Return the menu that a server publishes, by language and folder.

        `raw`: the entries with their icons as they are; `very_raw`: all as it is.
        """
        connection = self._one(session_uuid, profile_name).connection
        text = connection.applications_text(fresh=refresh or raw or very_raw)
        if very_raw:
            return text
        if raw:
            return [
                {"desktop": desktop, "icon": icon}
                for desktop, icon in raw_entries(text)
            ]
        language = lang or user_language() or self.lang
        folders = menu(read_applications(text), language, max_no_submenus)
        return {
            language: {
                name: [_said(entry) for entry in entries]
                for name, entries in folders.items()
            }
        }

    profile_get_published_applications = get_published_applications
