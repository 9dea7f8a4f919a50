"""Published applications: what x2gogetapps prints, and the menu that it makes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

# Categories of freedesktop.org, and the folder of a start menu that each belongs to.
MENU_OF: Final = {
    "X2Go-Top": "TOP",
    "Audio": "Multimedia",
    "AudioVideo": "Multimedia",
    "Video": "Multimedia",
    "Development": "Development",
    "Education": "Education",
    "Game": "Games",
    "Graphics": "Graphics",
    "Network": "Internet",
    "Office": "Office",
    "System": "System",
    "Utility": "Utilities",
}
OTHER_MENU: Final = "Other Applications"
NOT_SHOWN: Final = "Settings"
# Up to this many are shown without menus.
MOST_WITHOUT_MENUS: Final = 10
TERMINAL: Final = "x-terminal-emulator"
_FILE_CODES: Final = re.compile(r"\s*%[fFuUdDnNickvm]")
_ENTRY: Final = re.compile(r"<desktop>\n(.*?)</desktop>", re.DOTALL)
_ICON: Final = re.compile(r"<icon>\n(.*?)</icon>", re.DOTALL)


@dataclass(frozen=True)
class Application:
    """One application that the server publishes."""

    name: str
    command: str  # as `run_published` takes it
    comment: str = ""
    categories: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)  # by language
    comments: dict[str, str] = field(default_factory=dict)
    icon: bytes = field(default=b"", repr=False)

    @property
    def menu(self) -> str | None:
        """The menu that it belongs to; None: it is not shown."""
        if NOT_SHOWN in self.categories:
            return None
        menus = (MENU_OF[name] for name in self.categories if name in MENU_OF)
        return next(menus, OTHER_MENU)

    def name_in(self, language: str) -> str:
        """The name in a language ("de", "pt_BR"), or in none."""
        short = language.partition("_")[0]
        return self.names.get(language) or self.names.get(short) or self.name


def read_applications(text: str) -> list[Application]:
    """Read what x2gogetapps prints; entries without a name or command are left out."""
    found = (_application(entry[1]) for entry in _ENTRY.finditer(text))
    return [application for application in found if application is not None]


def menus(
    applications: Iterable[Application], most_without: int = MOST_WITHOUT_MENUS
) -> dict[str, list[Application]]:
    """Sort applications into menus; a few of them are all in one, "TOP"."""
    shown = [each for each in applications if each.menu is not None]
    if len(shown) <= most_without:
        return {"TOP": shown}
    sorted_in: dict[str, list[Application]] = {}
    for each in shown:
        sorted_in.setdefault(each.menu or OTHER_MENU, []).append(each)
    return sorted_in


def _application(entry: str) -> Application | None:
    icon = _ICON.search(entry)
    keys: dict[str, str] = {}
    for line in _ICON.sub("", entry).splitlines():
        key, equals, value = line.partition("=")
        if equals:
            keys.setdefault(key.strip(), value.strip())
    name, command = keys.get("Name", ""), keys.get("Exec", "")
    command = _FILE_CODES.sub("", command).strip()
    if not name or not command:
        return None
    if keys.get("Terminal", "").lower() == "true":
        quoted = command.replace("'", "'\\''")
        command = f"{TERMINAL} -e '{quoted}'"
    return Application(
        name=name,
        command=command,
        comment=keys.get("Comment", ""),
        categories=tuple(filter(None, keys.get("Categories", "").split(";"))),
        names=_translations(keys, "Name"),
        comments=_translations(keys, "Comment"),
        icon=_decoded(icon[1]) if icon else b"",
    )


def _translations(keys: dict[str, str], key: str) -> dict[str, str]:
    prefix = f"{key}["
    return {
        name.removeprefix(prefix).rstrip("]"): text
        for name, text in keys.items()
        if name.startswith(prefix)
    }


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return b""
