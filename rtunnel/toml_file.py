"""A TOML file and its schema: all mistakes at once, each with its line.

The schema is a model of pydantic. It says what is wrong and at which key; tomllib says
what is no TOML at all. Neither knows the line of a key, so it is looked up here, and
only when there is something to complain about.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rtunnel.errors import ConfigError

Schema = TypeVar("Schema", bound=BaseModel)
# The way to a value: keys of tables, numbers in arrays.
Location = tuple[str | int, ...]

# Nobody writes more; who names a disk image by mistake is told so.
MOST_BYTES: Final = 1 << 20
# What tomllib puts behind its message.
_PLACE: Final = re.compile(r" \(at line (\d+), column \d+\)$")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


class MisplacedError(ValueError):
    """A validator's complaint about something further inside than what it looked at."""

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.location = location


def read(path: Path, schema: type[Schema]) -> Schema:
    """Read a file and check it. Raises `ConfigError`: a line for each mistake.

    Validators find the folder of the file in their context, as `folder`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(
            f"{path} has more than {MOST_BYTES >> 20} MiB: is it the right file?"
        )
    return parse(data, schema, path)


def parse(data: bytes, schema: type[Schema], path: Path) -> Schema:
    """Check the content of the file `path`. Raises `ConfigError`, as `read` does."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8 text") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_not_toml(text, str(error), path)) from None
    return check(document, schema, path, lambda: lines_of(text))


def check(
    document: Mapping[str, Any],
    schema: type[Schema],
    path: Path,
    lines: Callable[[], dict[Location, int]],
) -> Schema:
    """Check what was read from the file `path`, of whatever form.

    `lines` is asked for the line of each key if there is something to complain about.
    Raises `ConfigError`, as `read` does.
    """
    try:
        return schema.model_validate(document, context={"folder": path.parent})
    except ValidationError as error:
        known = lines()
        found = [
            (_line(known, location), message)
            for location, message in _mistakes(error, schema)
        ]
    texts = [f"{path}:{line}: {message}" for line, message in sorted(set(found))]
    raise ConfigError("\n".join(texts))


def lines_of(text: str) -> dict[Location, int]:
    """Return the line of every key of a valid document, counted from 1.

    A statement of TOML ends at the end of a line; which one, tomllib can say, since a
    part of a statement is none. What stands in an array or an inline table has the
    line where that begins.
    """
    lines: dict[Location, int] = {}
    last: dict[Location, int] = {}  # of arrays of tables: number of the last one
    table: Location = ()
    statement = ""
    first = 1
    for number, line in enumerate(text.split("\n"), 1):
        if not statement:
            first = number
        statement += line + "\n"
        try:
            found = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            table = _header(found, last)
            for depth in range(1, len(table) + 1):
                lines.setdefault(table[:depth], first)
        else:
            for key, value in found.items():
                _mark((*table, key), value, first, lines)
        statement = ""
    return lines


def _header(found: dict[str, Any], last: dict[Location, int]) -> Location:
    """Return where a header leads to; `[[...]]` begins the next table there."""
    place: Location = ()
    inner: Any = found
    while inner:
        ((key, inner),) = inner.items()
        place = (*place, key)
        if isinstance(inner, list):
            last[place] = last.get(place, -1) + 1
            inner = inner[0]
        if place in last:
            place = (*place, last[place])
    return place


def _mark(
    place: Location, value: object, line: int, lines: dict[Location, int]
) -> None:
    lines.setdefault(place, line)
    if isinstance(value, dict):
        for key, inner in value.items():
            _mark((*place, key), inner, line, lines)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _mark((*place, number), inner, line, lines)


def _line(lines: dict[Location, int], location: Location) -> int:
    """Return the line of a key; of what it would be in, if it is not there."""
    while location and location not in lines:
        location = location[:-1]
    return lines.get(location, 1)


def _not_toml(text: str, said: str, path: Path) -> str:
    found = _PLACE.search(said)
    if found is None:  # at the end of the document
        return f"{path}:{text.count(chr(10)) + 1}: {said}"
    return f"{path}:{found[1]}: {said[: found.start()]}"


# What pydantic says, in our words.


def _mistakes(
    error: ValidationError, schema: type[BaseModel]
) -> Iterator[tuple[Location, str]]:
    for detail in error.errors(include_url=False):
        location = tuple(part for part in detail["loc"] if part != "[key]")
        message = detail["msg"]
        if detail["type"] == "extra_forbidden":
            location, key = location, str(location[-1])
            message = _unknown(key, _known_keys(schema, location[:-1]))
            yield location, f"{_named(location[:-1])}{message}"
            continue
        if detail["type"] == "missing":
            key = str(location[-1])
            yield location, f"{_named(location[:-1])}{key} is missing"
            continue
        raised = detail.get("ctx", {}).get("error")
        if isinstance(raised, MisplacedError):
            location = (*location, *raised.location)
        message = _lowered(message, detail) if raised is None else str(raised)
        yield location, f"{_named(location)}{message}"


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"unknown key {key!r}; did you mean {near[0]}?"
    return f"unknown key {key!r}; known are {', '.join(sorted(known))}"


def _known_keys(schema: type[BaseModel], location: Location) -> list[str]:
    """Return the keys that may stand in the table at `location`."""
    kind: Any = schema
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _plain(kind.model_fields[str(part)].annotation)
        else:  # a table with names of the user's, or an array
            kind = _plain([each for each in get_args(kind) if each is not ...][-1])
    return list(kind.model_fields)


def _plain(kind: Any) -> Any:
    """Return what stands in `X | None`."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (each for each in get_args(kind) if each is not types.NoneType)
    return kind


def _lowered(message: str, detail: ErrorDetails) -> str:
    """Return pydantic's own message as the rest of a sentence."""
    if detail["type"].endswith("_type"):
        given = type(detail["input"]).__name__
        words = {"str": "text", "int": "a whole number", "float": "a number"}
        words |= {"bool": "true or false", "list": "an array", "dict": "a table"}
        return f"{message[:1].lower()}{message[1:]}, not {words.get(given, given)}"
    return message[:1].lower() + message[1:]


def _named(location: Location) -> str:
    """Return a key as TOML writes it, and a colon."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            quoted = part if _BARE_KEY.fullmatch(part) else f'"{part}"'
            text += f".{quoted}" if text else quoted
    return f"{text}: " if text else ""
