"""Choose algorithms by a list of ssh_config(5): `a,b`, `+a`, `-a*` or `^a`."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from rtunnel.errors import ConfigError
from rtunnel.ssh.patterns import match_words

log = logging.getLogger(__name__)

# Ciphers of OpenSSH that paramiko has not: in a file they are no mistake.
FOREIGN_CIPHERS: Final = frozenset({"chacha20-poly1305@openssh.com", "arcfour"})


def choose(
    option: str,
    text: str | None,
    default: Sequence[str],
    known: Iterable[str],
    foreign: frozenset[str] | None = None,
) -> tuple[str, ...]:
    """Return the algorithms that `text` asks for, first choice first.

    `+` adds to the default, `-` removes what matches a pattern, `^` puts in front.
    A name that is not known here is left out. With `foreign`, only those names may be
    left out, and another is a mistake. Raises `ConfigError` for a mistake, and where
    nothing is left.
    """
    if text is None:
        return tuple(default)
    known = tuple(known)
    sign = text[0] if text[:1] in ("+", "-", "^") else ""
    names = [name.strip() for name in text.removeprefix(sign).split(",")]
    if sign == "-":
        chosen = [name for name in default if not match_words(name, names)]
    else:
        names = [name for name in names if _is_known(option, name, known, foreign)]
        if sign == "+":
            names = [*default, *names]
        elif sign == "^":
            names = [*names, *default]
        chosen = list(dict.fromkeys(names))
    if not chosen:
        raise ConfigError(f"{option} {text}: none is left; there is {', '.join(known)}")
    return tuple(chosen)


def _is_known(
    option: str, name: str, known: tuple[str, ...], foreign: frozenset[str] | None
) -> bool:
    if name in known:
        return True
    if foreign is None or name in foreign:
        log.debug("%s: %s is not available here", option, name)
        return False
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
    raise ConfigError(f"{option}: there is no {name!r}; {hint}")
