"""An INI file that several programs write: read, changed, written, and nothing lost.

    file = IniFile(Path("sessions"), Path("/etc/x2goclient/sessions"))
    file.find("20240101", "host")          # Entry(text="server", path=..., line=7)
    file.set("20240101", "host", "other")
    file.write()

The first file is the user's, which is written; those behind it stand in for what it
does not say. Comments, order, unknown keys and the look of each line stay as they are:
ConfigUpdater does that.

Only what was changed here is written: under a lock, the file is read again, the changes
are made to what is in it *now*, and the whole of it replaces the old one by a rename.
So two programs that change different keys lose nothing, and who reads sees the old file
or the new one. Programs that do not know the lock (x2goclient itself) are noticed by
the file's number and time before the rename; then it is done over.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import configupdater
import filelock

from x2go_session.errors import ConfigFileError

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
# Nobody holds it for longer than a file takes to be written.
LOCK_TIMEOUT_S: Final = 10.0
# A profile has 4 KiB: this is a thousand of them.
LIMIT_BYTES: Final = 4 << 20
COMMENTS: Final = ("#", ";")
# How often another program may have been in between before it is an error.
ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file says: the text behind the `=`, and where."""

    text: str
    path: Path
    line: int


class Document:
    """One INI text, as it was read. Raises `ConfigFileError` for what is none.

    `path` is for messages, and need not be a file.
    """

    def __init__(self, text: str, path: Path) -> None:
        self.path = path
        self._crlf = text.count("\r\n") == text.count("\n") > 0
        spaced = text.count(" = ") * 2 > text.count("=")
        self._updater = _updater(spaces=spaced)
        if self._crlf:
            text = text.replace("\r\n", "\n")
        try:
            self._updater.read_string(text.removeprefix("\N{BYTE ORDER MARK}"))
        except configparser.Error as error:
            raise _not_ini(error, path) from error
        self._marked = text.startswith("\N{BYTE ORDER MARK}")
        self.sections: Mapping[str, Mapping[str, Entry]] = self._entries()

    def _entries(self) -> dict[str, dict[str, Entry]]:
        sections: dict[str, dict[str, Entry]] = {}
        line = 1
        for block in self._updater.iter_blocks():
            if isinstance(block, configupdater.Section):
                entries: dict[str, Entry] = {}
                sections[block.name] = entries
                inside = line + 1
                for part in block.iter_blocks():
                    if isinstance(part, configupdater.Option):
                        text = _value(part)
                        if text is None:
                            raise ConfigFileError(
                                "put = behind this key: its value goes on below",
                                path=str(self.path),
                                line=inside,
                                section=block.name,
                                key=part.key,
                            )
                        entries[part.key] = Entry(text, self.path, inside)
                    inside += str(part).count("\n")
            line += str(block).count("\n")
        return sections

    def set(self, section: str, key: str, text: str) -> None:
        """Change a key, or add it behind the last one of its section."""
        found = self.sections.get(section, {}).get(key)
        if found is not None and found.text == text:
            return
        if not self._updater.has_section(section):
            self._updater.add_section(section)
        target = self._updater[section]
        if key in target:
            option = target[key]
            inside = [line for line in _lines(option)[1:] if _is_comment(line)]
            option.value = text
            for line in reversed(inside):
                option.add_after.comment(line.strip())
        elif options := target.option_blocks():
            options[-1].add_after.option(key, text)
        else:
            target.set(key, text)

    def remove(self, section: str, key: str) -> None:
        """Remove a key, if it is there."""
        if self._updater.has_section(section):
            self._updater.remove_option(section, key)

    def remove_section(self, section: str) -> None:
        """Remove a section with all that is in it, if it is there."""
        self._updater.remove_section(section)

    def __str__(self) -> str:
        text = str(self._updater)
        if self._marked:
            text = f"\N{BYTE ORDER MARK}{text}"
        return text.replace("\n", "\r\n") if self._crlf else text


@dataclass
class _Changes:
    """What is to be written: sections that go, then keys that change (None: go)."""

    removed: set[str] = field(default_factory=set)
    keys: dict[tuple[str, str], str | None] = field(default_factory=dict)
    # Sections that the file had when a key of them was changed.
    known: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.removed or self.keys)

    def apply(self, document: Document) -> None:
        for section in self.known - set(document.sections):
            # Its other keys are gone, too: one key alone would be something else.
            for place in [place for place in self.keys if place[0] == section]:
                del self.keys[place]
            self.known.discard(section)
            raise ConfigFileError(
                "another program has removed this section: nothing was written",
                path=str(document.path),
                section=section,
            )
        for section in self.removed:
            document.remove_section(section)
        for (section, key), text in self.keys.items():
            if text is None:
                document.remove(section, key)
            else:
                document.set(section, key, text)


class IniFile:
    """The user's file of this name, and the system's behind it.

    Any thread. Reading answers with what was read last and what was changed since;
    `reload` reads again, `write` too. A file that is not there is empty. Raises
    `ConfigFileError`, which names the line.
    """

    def __init__(self, path: Path, *behind: Path) -> None:
        self.path = path
        self.behind = behind
        # Protects what follows; held while files are read and written.
        self._lock = threading.RLock()
        self._changes = _Changes()
        self._own, self._others = self._read_all()

    @property
    def changed(self) -> bool:
        """Whether there is something to write."""
        return bool(self._changes)

    @property
    def sections(self) -> list[str]:
        """The names of the sections: the user's own first."""
        with self._lock:
            names = [name for name in self._own if name not in self._changes.removed]
            for document in self._others:
                names += document.sections
            names += [
                section
                for (section, _), text in self._changes.keys.items()
                if text is not None
            ]
            return list(dict.fromkeys(names))

    def own(self, section: str) -> bool:
        """Whether the user's own file has this section."""
        with self._lock:
            return (
                section in self._own and section not in self._changes.removed
            ) or any(name == section for name, _ in self._changes.keys)

    def keys(self, section: str) -> list[str]:
        """Return the keys of a section, in all files."""
        with self._lock:
            names = list(self._kept(section))
            for document in self._others:
                names += document.sections.get(section, {})
            names += [key for name, key in self._changes.keys if name == section]
            return [
                key
                for key in dict.fromkeys(names)
                if self.find(section, key) is not None
            ]

    def find(self, section: str, key: str) -> Entry | None:
        """Return what the first file that has this key says; None if none has it."""
        with self._lock:
            own = self._kept(section).get(key)
            if (section, key) in self._changes.keys:
                text = self._changes.keys[section, key]
                own = Entry(text, self.path, 0) if text is not None else None
            if own is not None:
                return own
            places = (document.sections.get(section, {}) for document in self._others)
            return next((place[key] for place in places if key in place), None)

    def set(self, section: str, key: str, text: str) -> None:
        """Change a key, for the next `write`. Raises ValueError for what is no INI."""
        _check(section, key, text)
        with self._lock:
            kept = self._kept(section)
            if key in kept and kept[key].text == text:
                self._changes.keys.pop((section, key), None)
                return
            self._changes.keys[section, key] = text
            if kept:
                self._changes.known.add(section)

    def remove(self, section: str, key: str) -> None:
        """Remove a key from the user's file, at the next `write`."""
        with self._lock:
            self._changes.keys[section, key] = None

    def remove_section(self, section: str) -> None:
        """Remove a section from the user's file, at the next `write`."""
        with self._lock:
            self._changes.removed.add(section)
            self._changes.known.discard(section)
            for name, key in list(self._changes.keys):
                if name == section:
                    del self._changes.keys[name, key]

    def reload(self) -> None:
        """Read the files again; what was changed here and not written yet stays."""
        with self._lock:
            self._own, self._others = self._read_all()

    def write(self) -> None:
        """Write what was changed, and take over what others wrote. Blocks.

        Waits for other writers, `LOCK_TIMEOUT_S` at most. Raises `ConfigFileError`;
        then the file is as it was, and the changes are still to be written.
        """
        with self._lock:
            if not self._changes:
                return
            target = self.path.resolve()  # a link stays one
            try:
                target.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
                with _locked(target):
                    self._own = self._replace(target).sections
                self._changes = _Changes()
            except OSError as error:
                raise _failed("write", self.path, error) from error

    def _replace(self, target: Path) -> Document:
        for _ in range(ATTEMPTS):
            seen = _identity(target)
            document = Document(_text(target), self.path)
            self._changes.apply(document)
            text = str(document)
            # What would not be read back is not written.
            written = Document(text, self.path)
            new = _written_beside(target, text)
            try:
                if _identity(target) == seen:
                    os.replace(new, target)
                    _sync_folder(target.parent)
                    return written
            finally:
                with contextlib.suppress(FileNotFoundError):
                    new.unlink()
        raise ConfigFileError(
            "cannot write: another program changes it all the time", path=str(self.path)
        )

    def _kept(self, section: str) -> Mapping[str, Entry]:
        if section in self._changes.removed:
            return {}
        return self._own.get(section, {})

    def _read_all(self) -> tuple[Mapping[str, Mapping[str, Entry]], list[Document]]:
        try:
            own = Document(_text(self.path), self.path)
        except OSError as error:
            raise _failed("read", self.path, error) from error
        others = []
        for path in self.behind:
            try:
                others.append(Document(_text(path), path))
            except OSError as error:
                raise _failed("read", path, error) from error
        return own.sections, others


def _updater(*, spaces: bool) -> configupdater.ConfigUpdater:
    updater = configupdater.ConfigUpdater(
        allow_no_value=True,
        delimiters=("=",),
        comment_prefixes=COMMENTS,
        empty_lines_in_values=False,
        space_around_delimiters=spaces,
    )
    updater.optionxform = str  # type: ignore[method-assign,assignment]
    return updater


def _value(option: configupdater.Option) -> str | None:
    """Return the text of a key; None if it has no `=`, and yet lines behind it."""
    first, *inside = _lines(option)
    if "=" in first:
        lines = (option.value or "").splitlines()
        return "\n".join(line for line in lines if not _is_comment(line))
    return None if any(line.strip() for line in inside if not _is_comment(line)) else ""


def _lines(option: configupdater.Option) -> list[str]:
    return str(option).splitlines()


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(COMMENTS)


def _not_ini(error: configparser.Error, path: Path) -> ConfigFileError:
    """Say what is wrong with a line, and what to do about it."""
    match error:
        case configparser.DuplicateSectionError():
            problem = "this section is there twice: join the two"
            where = {"line": error.lineno or 0, "section": error.section}
        case configparser.DuplicateOptionError():
            problem = "this key is there twice: remove one of the lines"
            where = {"line": error.lineno or 0, "section": error.section}
            where["key"] = error.option
        case configparser.MissingSectionHeaderError():
            problem = "expected a section first, as in [General]"
            where = {"line": error.lineno}
        case configparser.ParsingError():
            problem = "expected a section, or a key, = and a value"
            where = {"line": error.errors[0][0] if error.errors else 0}
        case _:
            problem, where = " ".join(str(error).split()), {}
    return ConfigFileError(problem, path=str(path), **where)  # type: ignore[arg-type]


def _failed(verb: str, path: Path, error: OSError) -> ConfigFileError:
    reason = error.strerror or str(error)
    return ConfigFileError(f"cannot {verb} it: {reason}", path=str(path))


def _text(path: Path) -> str:
    """Return what is in a file, nothing if there is none. Raises OSError."""
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except FileNotFoundError:
        return ""
    if len(content) > LIMIT_BYTES:
        raise ConfigFileError(
            f"this is no settings file: it has more than {LIMIT_BYTES >> 20} MiB",
            path=str(path),
        )
    # Whatever is not UTF-8 stays what it is.
    return content.decode(errors="surrogateescape")


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Not `<name>.lock`, which QSettings makes and removes in its own way.
    lock = filelock.FileLock(
        path.with_name(f".{path.name}.lock"), LOCK_TIMEOUT_S, mode=FILE_MODE
    )
    try:
        with lock:
            yield
    except filelock.Timeout as error:
        raise ConfigFileError(
            f"cannot write: another program has held {lock.lock_file} for "
            f"{LOCK_TIMEOUT_S:g} s",
            path=str(path),
        ) from error


def _written_beside(path: Path, text: str) -> Path:
    """Write a new file into the same folder, down to the disk; mode 0600."""
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(text.encode(errors="surrogateescape"))
            file.flush()
            os.fchmod(file.fileno(), FILE_MODE)
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check(section: str, key: str, text: str) -> None:
    if not section.strip() or any(char in section for char in "\r\n\0]"):
        raise ValueError(f"{section!r} cannot be the name of a section")
    if (
        not key
        or key != key.strip()
        or key.startswith((*COMMENTS, "["))
        or any(char in key for char in "\r\n\0=")
    ):
        raise ValueError(f"{key!r} cannot be a key")
    if any(char in text for char in "\r\n\0"):
        raise ValueError(f"{section}/{key}: a value is one line")
