"""The `sessions` file: the session profiles of a user, and those of the machine.

    profiles = SessionProfiles()            # ~/.x2goclient, then /etc/x2goclient
    profile = profiles["Office"]            # by name or id: a typed `Profile`
    profiles.get("Office", "sshport")       # 22, as python-x2go's get_profile_config
    profiles.set("Office", "host", ["a.example.org", "b.example.org"])
    new = profiles.add("Lab", host=["lab"], command="XFCE", rootless=False)
    profiles.write()

A profile that makes no sense does not hide the others: reading it is the error, with
the line. The user's own file is what is written; setting a key of a profile of the
machine puts that key into the user's file, which wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from x2go_session.errors import ConfigFileError, NoSuchProfile, ProfileError
from x2go_session.profiles.ini import Document, Entry, IniFile
from x2go_session.profiles.places import SYSTEM_FOLDER, USER_FOLDER
from x2go_session.profiles.profile import (
    KEYS,
    Profile,
    default_values,
    frozen,
    read_value,
    write_value,
)
from x2go_session.profiles.values import Value, text_of

FILE_NAME: Final = "sessions"
# Sections that are no profiles.
NOT_PROFILES: Final = ("embedded", "none")


class SessionProfiles:
    """All session profiles of the user's file and of the machine's.

    Any thread. What is changed is written by `write`, which takes over what other
    programs wrote meanwhile. Raises `ConfigFileError` for files that make no sense.
    """

    def __init__(
        self,
        folder: Path | str = USER_FOLDER,
        system_folder: Path | str | None = SYSTEM_FOLDER,
    ) -> None:
        behind = [] if system_folder is None else [Path(system_folder) / FILE_NAME]
        self._file = IniFile(Path(os.path.expanduser(folder)) / FILE_NAME, *behind)

    @property
    def path(self) -> Path:
        """The user's file."""
        return self._file.path

    @property
    def ids(self) -> list[str]:
        """The ids of all profiles, in the order of the files."""
        return [name for name in self._file.sections if name not in NOT_PROFILES]

    @property
    def names(self) -> dict[str, str]:
        """The name of each profile, by id; several of one name are numbered."""
        given = {id: self._name(id) for id in self.ids}
        taken = list(given.values())
        names: dict[str, str] = {}
        for id, name in given.items():
            number = 1
            unique = name
            while taken.count(name) > 1 and (
                unique == name or unique in taken or unique in names.values()
            ):
                unique = f"{name} ({number})"
                number += 1
            names[id] = unique
        return names

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, id_or_name: object) -> bool:
        names = self.names
        return id_or_name in names or id_or_name in names.values()

    def __getitem__(self, id_or_name: str) -> Profile:
        """Return a profile. Raises `NoSuchProfile`, `ConfigFileError`."""
        id = self.to_id(id_or_name)
        found = {key: self._file.find(id, key) for key in self._file.keys(id)}
        entries = {key: entry for key, entry in found.items() if entry is not None}
        return replace(_profile(id, entries), name=self.names[id])

    def to_id(self, id_or_name: str) -> str:
        """Return the id of a profile. Raises `NoSuchProfile`."""
        names = self.names
        for id, name in names.items():
            if name == id_or_name:
                return id
        if id_or_name in names:
            return id_or_name
        known = ", ".join(names.values()) or "none"
        raise NoSuchProfile(
            f"there is no profile {id_or_name!r} in {self.path}; there is {known}"
        )

    def to_name(self, id_or_name: str) -> str:
        """Return the name of a profile. Raises `NoSuchProfile`."""
        return self.names[self.to_id(id_or_name)]

    def is_mutable(self, id_or_name: str) -> bool:
        """Whether the profile is in the user's own file, and can be removed."""
        return self._file.own(self.to_id(id_or_name))

    def values(self, id_or_name: str) -> dict[str, Value]:
        """Return all values of a profile, defaults included. Raises as `[...]`."""
        return self[id_or_name].values()

    def get(self, id_or_name: str, key: str) -> Value:
        """Return one value of a profile, or the default of that key.

        Raises `NoSuchProfile`, `ProfileError` for a key that is nowhere, and
        `ConfigFileError` for a text that makes no sense.
        """
        id = self.to_id(id_or_name)
        if key == "name":
            return self.names[id]
        entry = self._file.find(id, key)
        if entry is None:
            try:
                return default_values()[key]
            except KeyError:
                raise ProfileError(
                    f"profile {id_or_name} has no {key}, nor is there a default"
                ) from None
        return _value(id, key, entry)

    def set(self, id_or_name: str, key: str, value: Value) -> None:
        """Change a value, for the next `write`.

        Raises `NoSuchProfile`, and `ProfileError` for a value that the key cannot
        have or a name that another profile has.
        """
        id = self.to_id(id_or_name)
        if key == "name":
            self._check_name(str(value), id)
        self._set(id, key, value)

    def add(self, name: str, **values: Value) -> str:
        """Add a profile with these values, and defaults, for the next `write`.

        Returns its id. Raises `ProfileError` as `set` does.
        """
        self._check_name(name, None)
        id = self._new_id()
        # All texts first, so that a mistake adds nothing.
        texts = {
            key: _text(key, value)
            for key, value in {**default_values(), **values, "name": name}.items()
        }
        for key, text in texts.items():
            self._file.set(id, key, text)
        return id

    def remove(self, id_or_name: str) -> None:
        """Remove a profile of the user's own file, at the next `write`.

        Raises `NoSuchProfile`, and `ProfileError` for one of the machine's.
        """
        id = self.to_id(id_or_name)
        if not self._file.own(id):
            raise ProfileError(
                f"profile {id_or_name} is not in {self.path}, and cannot be removed"
            )
        self._file.remove_section(id)

    def write(self) -> None:
        """Write what was changed. Blocks. Raises `ConfigFileError`; nothing is lost."""
        self._file.write()

    def reload(self) -> None:
        """Read the files again; what is not written yet stays changed."""
        self._file.reload()

    def _name(self, id: str) -> str:
        entry = self._file.find(id, "name")
        return text_of(entry.text) if entry is not None else str(KEYS["name"].default)

    def _set(self, id: str, key: str, value: Value) -> None:
        text = _text(key, value)
        try:
            self._file.set(id, key, text)
        except ValueError as error:
            raise ProfileError(str(error)) from error

    def _check_name(self, name: str, id: str | None) -> None:
        if not name.strip():
            raise ProfileError("a profile needs a name")
        others = {other: taken for other, taken in self.names.items() if other != id}
        if name in others.values():
            raise ProfileError(f"there is a profile {name!r} already")

    def _new_id(self) -> str:
        taken = self._file.sections
        while (id := datetime.now(UTC).strftime("%Y%m%d%H%M%S%f")) in taken:
            pass
        return id


def profiles_of(text: str, source: str) -> dict[str, Profile]:
    """Return the profiles of a text as the `sessions` file has them, by id.

    A broker sends such a text; `source` names it in messages. Raises `ConfigFileError`.
    """
    document = Document(text, Path(source))
    return {
        id: _profile(id, entries)
        for id, entries in document.sections.items()
        if id not in NOT_PROFILES
    }


def _profile(id: str, entries: Mapping[str, Entry]) -> Profile:
    given: dict[str, Any] = {}
    extra = {}
    for key, entry in entries.items():
        if key in KEYS:
            given[key] = frozen(_value(id, key, entry))
        else:
            extra[key] = text_of(entry.text)
    return Profile(id=id, extra=extra, **given)


def _value(id: str, key: str, entry: Entry) -> Value:
    try:
        return read_value(key, entry.text)
    except ValueError as error:
        raise ConfigFileError(
            f"{entry.text!r}: {error}",
            path=str(entry.path),
            line=entry.line,
            section=id,
            key=key,
        ) from error


def _text(key: str, value: Value) -> str:
    try:
        return write_value(key, value)
    except ValueError as error:
        raise ProfileError(f"{key}: {error}") from error
