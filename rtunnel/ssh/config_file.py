"""Read ssh_config(5) files: which settings apply to one host, and where each stands.

The file is interpreted line by line, as ssh(1) does it, because what a `Match` line
sees depends on the lines before it: `Match host` compares with the HostName found so
far, and `Match user` with the User. For every keyword the first value wins; a few
keywords collect (`IdentityFile`). `Include` reads files in place; inside a `Host` or
`Match` block it counts only where the block does. `Match final` asks for a second
pass over the same files, in which it is true.

Every setting keeps the file and line it came from, so that whoever finds it wrong can
name them. A keyword that nobody asks for is no error here: files are shared with
other programs and other versions of ssh.
"""

from __future__ import annotations

import glob
import logging
import os
import stat
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rtunnel.errors import ConfigError
from rtunnel.ssh.patterns import match_list, match_words

log = logging.getLogger(__name__)

INCLUDE_DEPTH_MAX: Final = 16  # READCONF_MAX_DEPTH of OpenSSH
SYSTEM_FOLDER: Final = Path("/etc/ssh")

# Keywords whose values add up instead of the first one winning.
COLLECTING: Final = frozenset({"identityfile", "certificatefile"})
# Keywords whose value is the rest of the line, quotes and all, for a shell.
_WHOLE_LINE: Final = frozenset({"proxycommand", "knownhostscommand"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of one keyword, and where it was given."""

    name: str
    words: tuple[str, ...]
    place: str  # "/home/me/.ssh/config line 3", or how the caller gave it

    @property
    def value(self) -> str:
        """The words, as one text."""
        return " ".join(self.words)

    def error(self, why: str) -> ConfigError:
        """Return the error that says which setting is wrong, and why."""
        return ConfigError(f"{self.place}: {self.name} {self.value}: {why}")


def split_words(text: str) -> tuple[str, ...]:
    """Split a line as ssh_config(5) does: quotes, a few escapes, `#` ends it.

    Raises `ValueError` where a quote is not closed.
    """
    words: list[str] = []
    word: str | None = None
    quote = ""
    chars = iter(range(len(text)))
    for i in chars:
        char = text[i]
        following = text[i + 1 : i + 2]
        if char == "\\" and following and following in ("'\"\\" if quote else "'\"\\ "):
            word = (word or "") + following
            next(chars)
        elif quote:
            if char == quote:
                quote = ""
            else:
                word = (word or "") + char
        elif char in "'\"":
            quote = char
            word = word or ""
        elif char in " \t":
            if word is not None:
                words.append(word)
            word = None
        elif char == "#" and word is None:
            break
        else:
            word = (word or "") + char
    if quote:
        raise ValueError(f"the quote {quote} is not closed")
    if word is not None:
        words.append(word)
    return tuple(words)


def parse_setting(line: str, place: str) -> Setting | None:
    """Read `Keyword value ...` or `Keyword=value`; None for a blank or a comment.

    Raises `ConfigError`.
    """
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    end = next((i for i, char in enumerate(line) if char in " \t="), len(line))
    name = line[:end]
    rest = line[end:].lstrip(" \t")
    if rest.startswith("="):
        rest = rest[1:].lstrip(" \t")
    if name.lower() in _WHOLE_LINE:
        words: tuple[str, ...] = (rest,) if rest else ()
    else:
        try:
            words = split_words(rest)
        except ValueError as error:
            raise ConfigError(f"{place}: {name}: {error}") from None
    if not name or not words:
        raise ConfigError(f"{place}: {name or line}: a value is missing")
    return Setting(name, words, place)


class Settings:
    """The settings that apply to one host, gathered from the first giver on."""

    def __init__(self, original_host: str, local_user: str) -> None:
        self.original_host = original_host
        self.local_user = local_user
        # Expands %-tokens of `Match exec`; set by whoever knows the tokens.
        self.expand: Callable[[Setting, str], str] = lambda setting, text: text
        self._found: dict[str, list[Setting]] = {}
        self._final = False
        self._wants_final = False

    def get(self, name: str) -> Setting | None:
        """Return the value of a keyword that was given first."""
        found = self._found.get(name.lower())
        return found[0] if found else None

    def all(self, name: str) -> list[Setting]:
        """Return every value of a keyword that collects, in order."""
        return list(self._found.get(name.lower(), ()))

    def names(self) -> list[str]:
        """Return the keywords that were given, in lower case."""
        return list(self._found)

    def add(self, setting: Setting) -> None:
        """Take a setting, unless its keyword has a value and does not collect."""
        name = setting.name.lower()
        # ProxyJump and ProxyCommand are one choice: whichever comes first wins.
        rival = {"proxyjump": "proxycommand", "proxycommand": "proxyjump"}.get(name)
        if rival in self._found:
            return
        found = self._found.setdefault(name, [])
        if not found or (
            name in COLLECTING and all(setting.words != old.words for old in found)
        ):
            found.append(setting)

    def read(self, files: Iterable[tuple[Path, Path]]) -> None:
        """Interpret files, each with the folder that its relative Includes are in.

        A file that does not exist is left out. Raises `ConfigError` for one that
        cannot be read or understood, with its line.
        """
        files = list(files)
        for path, folder in files:
            self._read_file(path, folder, active=True, depth=0)
        if self._wants_final:
            self._final = True
            for path, folder in files:
                self._read_file(path, folder, active=True, depth=0)

    def _read_file(self, path: Path, folder: Path, active: bool, depth: int) -> None:
        try:
            _check_owner(path, folder)
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        outer = active
        for number, line in enumerate(text.splitlines(), 1):
            setting = parse_setting(line, f"{path} line {number}")
            if setting is None:
                continue
            name = setting.name.lower()
            if name == "host":
                active = outer and match_words(self.original_host, setting.words)
            elif name == "match":
                active = outer and self._matches(setting)
            elif name == "include":
                if active:
                    self._include(setting, folder, depth + 1)
            elif active:
                self.add(setting)

    def _include(self, setting: Setting, folder: Path, depth: int) -> None:
        if depth > INCLUDE_DEPTH_MAX:
            raise setting.error(
                f"files include each other more than {INCLUDE_DEPTH_MAX} deep"
            )
        for word in setting.words:
            pattern = os.path.join(folder, os.path.expanduser(word))
            for name in sorted(glob.glob(pattern)):
                self._read_file(Path(name), folder, active=True, depth=depth)

    def _matches(self, setting: Setting) -> bool:
        words = list(setting.words)
        matched = True
        while words:
            attribute, equals, argument = words.pop(0).partition("=")
            negated = attribute.startswith("!")
            attribute = attribute.removeprefix("!").lower()
            if attribute in ("all", "canonical", "final"):
                answer = self._matches_pass(attribute)
            else:
                if not equals:
                    if not words:
                        raise setting.error(f"{attribute} needs an argument")
                    argument = words.pop(0)
                # As in ssh(1), a command does not run when the line has failed.
                answer = matched and self._matches_one(setting, attribute, argument)
                if attribute == "exec" and not matched:
                    continue
            matched = matched and answer != negated
        return matched

    def _matches_pass(self, attribute: str) -> bool:
        if attribute == "final":
            self._wants_final = True
            return self._final
        # Host names are never canonicalised here, so `canonical` is never true.
        return attribute == "all"

    def _matches_one(self, setting: Setting, attribute: str, argument: str) -> bool:
        if attribute == "host":
            name = self.get("hostname")
            host = name.value.replace("%h", self.original_host) if name else None
            return match_list((host or self.original_host).lower(), argument.lower())
        if attribute == "originalhost":
            return match_list(self.original_host.lower(), argument.lower())
        if attribute == "user":
            user = self.get("user")
            return match_list(user.value if user else self.local_user, argument)
        if attribute == "localuser":
            return match_list(self.local_user, argument)
        if attribute == "tagged":
            tag = self.get("tag")
            return match_list(tag.value if tag else "", argument)
        if attribute == "sessiontype":
            return match_list("none", argument)  # as `ssh -N`
        if attribute == "exec":
            return _succeeds(self.expand(setting, argument))
        log.warning(
            "%s: Match %s is not understood; taken as no match",
            setting.place,
            attribute,
        )
        return False


def _succeeds(command: str) -> bool:
    shell = os.environ.get("SHELL", "/bin/sh")
    ended = subprocess.run(
        [shell, "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return ended.returncode == 0


def _check_owner(path: Path, folder: Path) -> None:
    """Refuse a personal file that others can write, for it may name commands to run."""
    if folder == SYSTEM_FOLDER:
        return
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        return
    if info.st_uid not in (0, os.getuid()) or info.st_mode & 0o022:
        raise ConfigError(
            f"{path} may be written by others, so it is not used: make it yours with "
            f"chown, and run: chmod go-w {path}"
        )
