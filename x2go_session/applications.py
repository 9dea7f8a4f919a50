"""Published applications: what x2gogetapps prints, and the menu that it makes."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

TOP: Final = "TOP"
OTHER_MENU: Final = "Other Applications"
# Categories of freedesktop.org, and the folder of a start menu that each belongs to;
# the first of this table that an application has is the one. None is not shown.
MENU_OF: Final = {
    "X2Go-Top": TOP,
    "Audio": "Multimedia",
    "AudioVideo": "Multimedia",
    "Video": "Multimedia",
    "Development": "Development",
    "Education": "Education",
    "Game": "Games",
    "Graphics": "Graphics",
    "Network": "Internet",
    "Office": "Office",
    "Settings": None,
    "System": "System",
    "Utility": "Utilities",
}
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
        menus = (menu for name, menu in MENU_OF.items() if name in self.categories)
        return next(menus, OTHER_MENU)

    def name_in(self, language: str) -> str:
        """Return the name in a language ("de", "pt_BR.UTF-8"), or in none."""
        return _in_language(self.names, language) or self.name

    def comment_in(self, language: str) -> str:
        """Return the comment in a language, or in none; the name if there is none."""
        comment = _in_language(self.comments, language) or self.comment
        return comment or self.name_in(language)


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """An application in a menu, in the language of the user."""

    name: str
    comment: str
    command: str  # as `run_published` takes it
    icon: bytes = field(default=b"", repr=False)


def read_applications(text: str) -> list[Application]:
    """Read what x2gogetapps prints; entries without a name or command are left out."""
    found = (_application(entry[1]) for entry in _ENTRY.finditer(text))
    return [application for application in found if application is not None]


def raw_entries(text: str) -> list[tuple[str, str | None]]:
    """Return the entries of the same as they are, each with its icon in base64."""
    return [
        (_ICON.sub("", entry[1]), icon[1] if (icon := _ICON.search(entry[1])) else None)
        for entry in _ENTRY.finditer(text)
    ]


def menu(
    applications: Iterable[Application],
    language: str = "",
    most_without: int = MOST_WITHOUT_MENUS,
) -> dict[str, list[MenuEntry]]:
    """Return the start menu: its folders, and in each the applications by name.

    What belongs to no folder is in "TOP"; so is everything where there are no more than
    `most_without` applications (less than 0: always). `language` is a locale's name
    ("de_AT.UTF-8", as `user_language` returns it). Pure.
    """
    shown = [each for each in applications if each.menu is not None]
    folders = len(shown) > most_without >= 0
    found: dict[str, list[MenuEntry]] = {}
    for each in shown:
        entry = MenuEntry(
            each.name_in(language), each.comment_in(language), each.command, each.icon
        )
        found.setdefault((folders and each.menu) or TOP, []).append(entry)
    order = [*filter(None, MENU_OF.values()), OTHER_MENU]
    return {
        name: sorted(found[name], key=_sort_key)
        for name in sorted(found, key=lambda name: (name == TOP, order.index(name)))
    }


def user_language(environment: Mapping[str, str] = os.environ) -> str:
    """Return the language of this user's programs, as a locale's name; "" for none."""
    for variable in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if name := environment.get(variable):
            return name
    return ""


def _in_language(texts: Mapping[str, str], locale: str) -> str | None:
    """Return the text in a language: Desktop Entry Specification, localized values."""
    name, _, modifier = locale.partition("@")
    name = name.partition(".")[0]
    language = name.partition("_")[0]
    wanted = (f"{name}@{modifier}", name, f"{language}@{modifier}", language)
    return next((texts[each] for each in wanted if texts.get(each)), None)


def _sort_key(entry: MenuEntry) -> tuple[str, str]:
    """Letters before their case and marks."""
    parts = unicodedata.normalize("NFKD", entry.name.casefold())
    return "".join(char for char in parts if not unicodedata.combining(char)), parts


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
