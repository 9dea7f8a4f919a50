"""Let the package's log be seen on stderr, as much of it as `-v` and `-q` ask for.

A message of this package is a text with its values behind it, `visitor turned away:
listener=%s reason=%s`: so the formats for machines take the names from the message and
the values from its arguments, whatever a server or a visitor put into them. Nothing
that may be secret, and no payload, is ever given to the log.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO, get_args

import click

LogFormat = Literal["text", "keyvalue", "json"]

# What -v and -vv add.
_LEVELS: Final = (logging.WARNING, logging.INFO, logging.DEBUG)
# paramiko logs every packet at DEBUG, and with a traceback what is reported here in
# better words: it is heard from the third -v on. The second name is that under which
# rtunnel.Transport lets it log.
_PARAMIKO: Final = ("paramiko", "rtunnel.ssh.paramiko")
_WITH_PARAMIKO: Final = 3
_NEVER: Final = logging.CRITICAL + 1

# `name=%s`, also with a unit behind it; or a conversion without a name.
_CONVERSION: Final = re.compile(
    r"\b(?P<name>[a-z][a-z0-9_]*)=(?P<how>%[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])"
    r"(?P<unit>[a-zA-Z]*)|%%|%[-+ #0]*\d*(?:\.\d+)?[a-zA-Z]"
)
# What is left of the punctuation around the values that were taken out.
_SEPARATORS: Final = re.compile(r"(?:\s*[:,;])+(?=\s|$)|\s+")
# A value that needs no quotes in key=value.
_BARE: Final = re.compile(r"[^\s\"=\\]+")
# What a message may not bring to a terminal, or to a file of lines.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")

# For each command that logs: how.
format_option: Callable[[Any], Any] = click.option(
    "--log-format",
    type=click.Choice(get_args(LogFormat)),
    default="text",
    show_default=True,
    help="How the log on stderr is written: for people, or for programs.",
)


def show(verbosity: int, quiet: bool, log_format: LogFormat = "text") -> None:
    """Write log records to stderr from now on: warnings, and more for each `-v`."""
    level = logging.ERROR if quiet else _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    handler = _StderrHandler()
    handler.setFormatter(formatter(log_format, detailed=level <= logging.DEBUG))
    logger = logging.getLogger("rtunnel")
    logger.addHandler(handler)
    logger.setLevel(level)
    for name in _PARAMIKO:
        paramiko = logging.getLogger(name)
        paramiko.propagate = False
        paramiko.addHandler(handler)
        heard = verbosity >= _WITH_PARAMIKO and not quiet
        paramiko.setLevel(logging.DEBUG if heard else _NEVER)


def formatter(log_format: LogFormat, *, detailed: bool = False) -> logging.Formatter:
    """Return the formatter of this name; `detailed` is for the text of `-vv`."""
    if log_format == "json":
        return JsonFormatter()
    if log_format == "keyvalue":
        return KeyValueFormatter()
    return TextFormatter(
        "%(asctime)s %(name)s [%(threadName)s] %(message)s"
        if detailed
        else "rtunnel: %(message)s"
    )


class TextFormatter(logging.Formatter):
    """For people: one line, and a traceback below it if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text; control characters of peers are shown, not sent."""
        return _CONTROL.sub(_escape, super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message; lines that a peer has put into it are indented."""
        return super().formatMessage(record).replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """One JSON object for each line: time, level, logger, thread, event and values."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object, on one line."""
        return json.dumps(_fields(self, record), default=str)


class KeyValueFormatter(logging.Formatter):
    """One line of key=value pairs; values with spaces are quoted as in JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the pairs, on one line."""
        pairs = _fields(self, record).items()
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs)


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record says: the event, and each value under its name."""
    event, values = _split(record)
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(
            timespec="milliseconds"
        ),
        "level": record.levelname.lower(),
        "logger": record.name,
        "thread": record.threadName,
        "event": event,
    }
    for key, value in values.items():
        # A value never takes the place of what every line has.
        fields[f"{key}_" if key in fields else key] = value
    if record.exc_info and record.exc_info[0] is not None:
        fields["traceback"] = formatter.formatException(record.exc_info)
    return fields


def _split(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Take the values that have a name out of the message; return what is left.

    A value without a name stays in the text of the event.
    """
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
        return record.getMessage(), {}
    arguments = list(record.args)
    values: dict[str, Any] = {}

    def take(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        value = arguments.pop(0)
        name, how, unit = match["name"], match["how"], match["unit"]
        if name is None:
            return match[0] % (value,)
        if isinstance(value, bool | int | float | None) and how[-1] in "sdrfg":
            # "for=%.0fs": the unit is in the text only.
            values[name] = value
        else:
            # The text has quotes around what %r writes; each format here has its own.
            text = isinstance(value, str) and how[-1] in "rs"
            values[name] = value if text else how % (value,) + unit
        return ""

    try:
        event = _CONVERSION.sub(take, record.msg)
    except (IndexError, TypeError, ValueError):
        return record.getMessage(), {}
    if arguments:
        return record.getMessage(), {}
    event = _SEPARATORS.sub(lambda gap: gap[0].strip()[:1] or " ", event)
    return event.strip(" :,;") or record.name.rpartition(".")[2], values


def _quoted(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if _BARE.fullmatch(text) and text.isprintable() else json.dumps(text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is now: a live display puts its own there."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
