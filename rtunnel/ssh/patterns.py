"""Match host and user names against the patterns of ssh_config(5) and sshd(8).

A pattern has `*` for any characters and `?` for one; nothing else is special. In a
list, a pattern after `!` refuses: a name that matches it does not match the list,
whatever else does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    # Runs of * mean the same as one, and would make the search slow.
    parts = re.split(r"(\*+|\?)", pattern)
    return re.compile(
        "".join(
            ".*" if part.startswith("*") else "." if part == "?" else re.escape(part)
            for part in parts
        ),
        re.DOTALL,
    )


def match_pattern(name: str, pattern: str) -> bool:
    """Return whether one pattern matches the whole name."""
    return _compiled(pattern).fullmatch(name) is not None


def match_words(name: str, patterns: Iterable[str]) -> bool:
    """Return whether some pattern matches and none after `!` does."""
    matched = False
    for pattern in patterns:
        negated = pattern.startswith("!")
        if match_pattern(name, pattern.removeprefix("!")):
            if negated:
                return False
            matched = True
    return matched


def match_list(name: str, patterns: str) -> bool:
    """Return whether a comma-separated list of patterns matches."""
    return match_words(name, patterns.split(","))
