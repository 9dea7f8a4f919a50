"""Each promise of docs/security.md has a test, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
PROMISES = PAGE.partition("## What is promised")[2].partition("## What it stands on")[0]
ROWS = [
    row
    for row in PROMISES.splitlines()
    if row.startswith("|") and not row.startswith(("|---", "| promise"))
]


def missing(places: list[str]) -> list[str]:
    """Return those of `file` and `file::test` that there are not."""
    return [
        place
        for place in places
        if not (path := ROOT / place.partition("::")[0]).exists()
        or f"def {place.partition('::')[2]}(" not in f"{path.read_text()}def ("
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_each_promise_has_its_tests(row: str) -> None:
    places = re.findall(r"`((?:tests|benchmarks)/[^`]+)`", row)
    assert places
    assert missing(places) == []


def test_pages_that_are_named_exist() -> None:
    for name in re.findall(r"\]\(([\w./-]+\.md)\)", PAGE):
        assert (ROOT / "docs" / name).exists(), name
