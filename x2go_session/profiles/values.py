r"""Values of X2Go's INI files: their text, as Qt and python-x2go write it, and back.

x2goclient writes through QSettings: text with `;`, `,` or `=` in it is quoted; what is
not ASCII is `\x` and the hexadecimal digits of its UTF-16 code units (of Qt 6: UTF-8);
a list is its elements, with a comma and a blank between them. python-x2go writes text
as it is, in UTF-8. All of this is read; what is written is what QSettings of Qt 5
writes, since every Qt reads that, and Qt 5 nothing else.

    >>> read(Kind.TEXT, '"K\\xe4se; Brot"')
    'Käse; Brot'
    >>> write(Kind.EXPORT, {"/home/me/a": True})
    '"/home/me/a:1;"'
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

Value = bool | int | str | list[str] | dict[str, bool]


class Kind(Enum):
    """What a value is."""

    FLAG = "flag"  # bool
    NUMBER = "number"  # int
    TEXT = "text"  # str
    LIST = "list"  # list[str]
    HOSTS = "hosts"  # list[str]; one text with commas is a list, too
    COMMAS = "commas"  # str, of words with commas between them
    EXPORT = "export"  # dict[str, bool]: folders, and whether each is shared at once


TRUE: Final = frozenset({"1", "true", "yes", "on"})
FALSE: Final = frozenset({"0", "false", "no", "off"})
INVALID: Final = "@Invalid()"
# QSettings, iniUnescapedStringList() and iniEscapedString().
_CONTROLS: Final = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
_ESCAPES: Final = {**_CONTROLS, '"': '"', "?": "?", "'": "'", "\\": "\\"}
_WRITTEN: Final = {
    **{char: f"\\{letter}" for letter, char in _CONTROLS.items()},
    '"': r"\"",
    "\\": r"\\",
    "\0": r"\0",
}
_ESCAPE: Final = re.compile(r"\\(?:x([0-9A-Fa-f]+)|([0-7]{1,3})|(.))", re.DOTALL)
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BLANKS: Final = " \t"
_ELEMENT: Final = re.compile(
    r'[ \t]*("(?:[^"\\]|\\.)*"(?=[ \t]*(?:,|$))|[^,]*)[ \t]*(,|$)', re.DOTALL
)
_WRAPPED: Final = re.compile(r"@(?:ByteArray|String)\((.*)\)", re.DOTALL)
_EXPORTED: Final = re.compile(r"(?P<folder>.*):(?P<auto>[01])", re.DOTALL)


def read(kind: Kind, text: str) -> Value:
    """Return the value that a text of the file stands for. Raises ValueError."""
    match kind:
        case Kind.FLAG:
            return _flag(text_of(text))
        case Kind.NUMBER:
            return _number(text_of(text))
        case Kind.TEXT:
            return text_of(text)
        case Kind.LIST:
            return list_of(text)
        case Kind.HOSTS:
            words = (word for each in list_of(text) for word in each.split(","))
            return [word.strip() for word in words if word.strip()]
        case Kind.COMMAS:
            return ",".join(list_of(text))
        case Kind.EXPORT:
            return _exports(text_of(text))


def write(kind: Kind, value: Value) -> str:
    """Return the text for a value.

    Raises ValueError for one of another kind, and for one that no text can stand for.
    """
    match kind, value:
        case Kind.FLAG, bool() | int() if value in (0, 1):
            return str(int(value))
        case Kind.NUMBER, int() if not isinstance(value, bool):
            return str(value)
        case Kind.TEXT, str():
            return text_for(value)
        case Kind.COMMAS, str():
            return ",".join(map(text_for, value.split(",")))
        case ((Kind.LIST | Kind.HOSTS), (list() | tuple())):
            return list_for(value)
        case Kind.HOSTS, str():
            return list_for([host.strip() for host in value.split(",")])
        case Kind.EXPORT, dict():
            return text_for(_export_text(value))
    raise ValueError(f"{value!r}: use a {kind.value}")


def text_of(text: str) -> str:
    """Return the string that a text of the file stands for."""
    # What is quoted in part only was not written by Qt, which escapes quotes.
    string = _unescaped(text[1:-1] if _QUOTED.fullmatch(text) else text)
    if string == INVALID:
        return ""
    if found := _WRAPPED.fullmatch(string):
        return found[1]
    return string.removeprefix("@") if string.startswith("@@") else string


def text_for(string: str) -> str:
    """Return how QSettings writes a string."""
    written, after_hex = [], False
    for char in string:
        plain = " " <= char <= "~" and char not in '"\\'
        # A digit behind an escape would be read as part of it.
        if plain and not (after_hex and char in "0123456789abcdefABCDEF"):
            written.append(char)
            after_hex = False
        elif char in _WRITTEN:
            written.append(_WRITTEN[char])
            after_hex = char == "\0"
        else:
            units = char.encode("utf-16-be", "surrogatepass")
            pairs = (units[at : at + 2] for at in range(0, len(units), 2))
            written += [rf"\x{int.from_bytes(pair, 'big'):x}" for pair in pairs]
            after_hex = True
    text = "".join(written)
    if text.startswith("@"):
        text = f"@{text}"
    if any(char in string for char in ";,=") or string != string.strip(" "):
        return f'"{text}"'
    # python-x2go takes a value that begins so for a list of Python.
    return f'"{text}"' if string.startswith("[") else text


def list_of(text: str) -> list[str]:
    """Return the list that a text of the file stands for."""
    if text.strip(_BLANKS) in ("", INVALID):
        return []
    if text.startswith("[") and text.endswith("]"):  # python-x2go reads it so
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(text)
            if isinstance(value, list) and all(isinstance(each, str) for each in value):
                return value
    strings = []
    for element in _ELEMENT.finditer(text):
        strings.append(text_of(element[1].strip(_BLANKS)))
        if not element[2]:
            break
    return strings


def list_for(strings: Sequence[str]) -> str:
    """Return how QSettings writes a list."""
    if not all(isinstance(string, str) for string in strings):
        raise ValueError("use a list of texts")
    return ", ".join(text_for(each) or '""' for each in strings) or INVALID


def _unescaped(text: str) -> str:
    def char(found: re.Match[str]) -> str:
        digits, octal, letter = found.groups()
        if digits is not None:
            return chr(int(digits, 16) & 0xFFFF)
        if octal is not None:
            return chr(int(octal, 8))
        # Qt writes no other: so that is a backslash, and not by Qt.
        return _ESCAPES.get(letter, found[0])

    if "\\" not in text:
        return text
    units = _ESCAPE.sub(char, text).encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "replace")


def _flag(text: str) -> bool:
    word = text.strip().lower()
    if word not in TRUE | FALSE:
        raise ValueError("use 1 or 0, true or false")
    return word in TRUE


def _number(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text):
        raise ValueError("use a whole number")
    return int(text)


def _exports(text: str) -> dict[str, bool]:
    # "a:1;b:0;" by now. There were commas once, and no ":1"; but a folder may have a
    # comma in its name.
    text = text.strip().strip('"')
    marked = ";" in text or _EXPORTED.search(text)
    separators = r";|(?<=:[01]),(?=.)|,$" if marked else ","
    folders = (folder.strip() for folder in re.split(separators, text))
    exports = {}
    for folder in filter(None, folders):
        found = _EXPORTED.fullmatch(folder)
        if found:
            exports[found["folder"]] = found["auto"] == "1"
        else:
            exports[folder] = True
    return exports


def _export_text(exports: Mapping[str, bool]) -> str:
    for folder in exports:
        if not isinstance(folder, str) or ";" in folder or not folder.strip():
            raise ValueError(f"{folder!r}: a shared folder cannot have ; in its name")
    return "".join(f"{folder}:{int(auto)};" for folder, auto in exports.items())
