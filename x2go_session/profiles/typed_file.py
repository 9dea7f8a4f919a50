"""A file with known sections and keys: what `settings` and `printing` are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from x2go_session.errors import ConfigFileError, ProfileError
from x2go_session.profiles.ini import IniFile
from x2go_session.profiles.places import SYSTEM_FOLDER, USER_FOLDER
from x2go_session.profiles.values import Kind, Value, read, text_of, write

Defaults = Mapping[str, Mapping[str, bool | int | str]]
_KINDS: Final = {bool: Kind.FLAG, int: Kind.NUMBER, str: Kind.TEXT}


class TypedFile:
    """The user's file of this name, and the machine's behind it.

    Any thread. `DEFAULTS` has what neither of them says, and the type of each key; keys
    that are not in it are texts. Raises `ConfigFileError` for files that make no sense.
    """

    FILE_NAME: ClassVar[str]
    DEFAULTS: ClassVar[Defaults]

    def __init__(
        self,
        folder: Path | str = USER_FOLDER,
        system_folder: Path | str | None = SYSTEM_FOLDER,
    ) -> None:
        name = self.FILE_NAME
        behind = [] if system_folder is None else [Path(system_folder) / name]
        self._file = IniFile(Path(os.path.expanduser(folder)) / name, *behind)

    @property
    def path(self) -> Path:
        """The user's file."""
        return self._file.path

    def get(self, section: str, key: str) -> Value:
        """Return a value. Raises `ConfigFileError` for a text that makes no sense.

        Raises `ProfileError` for a key that is nowhere.
        """
        entry = self._file.find(section, key)
        default = self.DEFAULTS.get(section, {}).get(key)
        if entry is None:
            if default is None:
                raise ProfileError(f"{self.path} has no {key} in [{section}]")
            return default
        if default is None:
            return text_of(entry.text)
        try:
            return read(_KINDS[type(default)], entry.text)
        except ValueError as error:
            raise ConfigFileError(
                f"{entry.text!r}: {error}",
                path=str(entry.path),
                line=entry.line,
                section=section,
                key=key,
            ) from error

    def set(self, section: str, key: str, value: Value) -> None:
        """Change a value, for the next `write`.

        Raises `ProfileError` for a value of another type than the key has.
        """
        default = self.DEFAULTS.get(section, {}).get(key, value)
        kind = _KINDS.get(type(default), Kind.TEXT)
        try:
            self._file.set(section, key, write(kind, value))
        except ValueError as error:
            raise ProfileError(f"{section}/{key}: {error}") from error

    def values(self) -> dict[str, dict[str, Value]]:
        """Return all sections with their keys and values, defaults included."""
        found: dict[str, dict[str, Value]] = {
            section: dict(keys) for section, keys in self.DEFAULTS.items()
        }
        for section in self._file.sections:
            for key in self._file.keys(section):
                found.setdefault(section, {})[key] = self.get(section, key)
        return found

    def write(self) -> None:
        """Write what was changed. Blocks. Raises `ConfigFileError`; nothing is lost."""
        self._file.write()

    def reload(self) -> None:
        """Read the files again; what is not written yet stays changed."""
        self._file.reload()
