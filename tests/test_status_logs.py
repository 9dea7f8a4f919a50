"""The log: for people, as key=value and as JSON; the same records in each."""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel.cli import logs
from tests.support.statuses import HOSTILE

ROOT = Path(__file__).parent.parent


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord(
        "rtunnel.tunnel", logging.INFO, "file.py", 1, message, values, None
    )


def as_json(message: str, *values: object) -> dict[str, object]:
    line = logs.formatter("json").format(record(message, *values))
    assert "\n" not in line
    fields: dict[str, object] = json.loads(line)
    return fields


def as_pairs(message: str, *values: object) -> str:
    """Return the line behind what all lines have."""
    line = logs.formatter("keyvalue").format(record(message, *values))
    return line.partition(" thread=MainThread ")[2]


def test_json_has_the_event_and_each_value_under_its_name() -> None:
    fields = as_json("visitor gone: chan=%d reason=%s bytes_in=%d", 3, "closed", 99)
    assert re.fullmatch(r"[-\d]{10}T[\d:]{8}\.\d{3}\+00:00", str(fields.pop("time")))
    assert fields == {
        "level": "info",
        "logger": "rtunnel.tunnel",
        "thread": "MainThread",
        "event": "visitor gone",
        "chan": 3,
        "reason": "closed",
        "bytes_in": 99,
    }


def test_pairs_are_quoted_where_they_have_to_be() -> None:
    assert (
        as_pairs("no luck: host=%s why=%s code=%s", "a.example", 'it said "no"', None)
        == 'event="no luck" host=a.example why="it said \\"no\\"" code=none'
    )


@pytest.mark.parametrize(
    ("message", "values", "event", "named"),
    [
        ("turned away: conn=%s: %s", (1, "full"), "turned away: full", {"conn": 1}),
        ("penalised: for=%.0fs", (2.5,), "penalised", {"for": 2.5}),
        ("conn=%x", (255,), "tunnel", {"conn": "ff"}),
        ("user=%r gone", ("me",), "gone", {"user": "me"}),
        ("%s is %d %% full", ("disk", 9), "disk is 9 % full", {}),
        ("event=%s time=%s", (1, 2), "tunnel", {"event_": 1, "time_": 2}),
        ("nothing to fill in", (), "nothing to fill in", {}),
    ],
)
def test_names_come_from_the_message(
    message: str, values: tuple[object, ...], event: str, named: dict[str, object]
) -> None:
    fields = as_json(message, *values)
    assert fields["event"] == event
    assert dict(list(fields.items())[5:]) == named


@pytest.mark.parametrize("log_format", ["text", "keyvalue", "json"])
def test_what_a_peer_writes_forges_no_line_and_moves_no_cursor(
    log_format: logs.LogFormat,
) -> None:
    text = logs.formatter(log_format).format(record("peer=%s: %s", HOSTILE, HOSTILE))
    assert "\x1b" not in text
    assert not any(line.startswith("rtunnel: forged") for line in text.splitlines())
    assert log_format == "text" or len(text.splitlines()) == 1


def test_a_value_that_looks_like_a_pair_stays_one_value() -> None:
    assert as_json("gone: reason=%s", "x level=error")["reason"] == "x level=error"
    assert as_pairs("gone: reason=%s", "a=b") == 'event=gone reason="a=b"'


@pytest.mark.parametrize("log_format", ["keyvalue", "json"])
def test_a_traceback_stays_on_the_line_of_its_record(
    log_format: logs.LogFormat,
) -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        failed = record("handler failed: visit=%s", 1)
        failed.exc_info = (ValueError, error, error.__traceback__)
    line = logs.formatter(log_format).format(failed)
    assert "\n" not in line
    assert "ValueError: why" in line


def test_a_log_that_cannot_be_written_does_not_end_the_program() -> None:
    code = (
        "import logging; from rtunnel.cli import logs; logs.show(1, False);"
        "log = logging.getLogger('rtunnel.x');"
        "[log.info('a line: number=%d', n) for n in range(1000)]; print('alive')"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True
        )
    assert done.stdout == "alive\n"


def calls_of_the_log() -> Iterator[tuple[str, str]]:
    """Yield (place, message) of every call of a logger with a text."""
    for path in (ROOT / "rtunnel").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
            ):
                for argument in node.args[:2]:
                    if isinstance(argument, ast.Constant) and isinstance(
                        argument.value, str
                    ):
                        yield f"{path.name}:{node.lineno}", argument.value
                        break


def test_no_message_names_a_secret_or_payload() -> None:
    words = re.compile(r"\b(password|passphrase|secret|payload|data|token)=", re.I)
    found = [place for place, message in calls_of_the_log() if words.search(message)]
    assert found == []
