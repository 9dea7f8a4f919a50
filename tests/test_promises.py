"""Each promise of the pages has a test, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {
    name: (ROOT / "docs" / name).read_text() for name in ("security.md", "faults.md")
}
# Behind the head of a table whose last column is this.
TABLES = re.findall(
    r"^\|.* shown by \|\n\|[-|]+\|\n((?:\|.*\n)+)",
    "\n".join(PAGES.values()),
    re.MULTILINE,
)
ROWS = [row for table in TABLES for row in table.splitlines()]


def missing(places: list[str]) -> list[str]:
    """Return those of `file` and `file::test` that there are not."""
    return [
        place
        for place in places
        if not (path := ROOT / place.partition("::")[0]).exists()
        or f"def {place.partition('::')[2]}(" not in f"{path.read_text()}def ("
    ]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_each_promise_has_its_tests(row: str) -> None:
    places = re.findall(r"`((?:tests|benchmarks)/[^`]+)`", row)
    assert places
    assert missing(places) == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_that_are_named_exist(page: str) -> None:
    assert PAGES[page].count("shown by") >= 4
    for name in re.findall(r"\]\(([\w./-]+\.md)\)", PAGES[page]):
        assert (ROOT / "docs" / name).exists(), name
