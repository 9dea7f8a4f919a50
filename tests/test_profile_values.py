"""Values of X2Go's INI files: as Qt writes them, as python-x2go does, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2go_session.profiles.values import Kind, Value, read, write

# What QSettings (IniFormat) writes for each of these; Qt 6 writes "Käse" as it is.
BY_QT: list[tuple[Kind, str, Value]] = [
    (Kind.TEXT, "plain words", "plain words"),
    (Kind.TEXT, "", ""),
    (Kind.TEXT, '"startkde; x=1, y"', "startkde; x=1, y"),
    (Kind.TEXT, '" blank around "', " blank around "),
    (Kind.TEXT, r"sh -c \"echo hi\"", 'sh -c "echo hi"'),
    (Kind.TEXT, r"C:\\Users\\me", r"C:\Users\me"),
    (Kind.TEXT, r"K\xe4se", "Käse"),
    # A hexadecimal digit behind an escape would be read as part of it.
    (Kind.TEXT, r"\xe9\x61te", "éate"),
    (Kind.TEXT, r"\x65e5\x672c", "日本"),
    (Kind.TEXT, r"\xd83d\xde00", "😀"),
    (Kind.TEXT, r"tab\tline\nend", "tab\tline\nend"),
    (Kind.TEXT, "@@home", "@home"),
    (Kind.LIST, "WWWBROWSER, MAILCLIENT", ["WWWBROWSER", "MAILCLIENT"]),
    (Kind.LIST, r'"a, b", c\"d, "e;f"', ["a, b", 'c"d', "e;f"]),
    (Kind.LIST, "@Invalid()", []),
    (Kind.NUMBER, "22", 22),
    (Kind.EXPORT, '"/home/me/a:1;/b, c:0;"', {"/home/me/a": True, "/b, c": False}),
]


@pytest.mark.parametrize(("kind", "text", "value"), BY_QT)
def test_what_qt_writes_is_read_and_written_the_same(
    kind: Kind, text: str, value: Value
) -> None:
    assert read(kind, text) == value
    assert write(kind, value) == text


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Kind.TEXT, "Käse 100% /bin/sh -c 'a;b'", "Käse 100% /bin/sh -c 'a;b'"),
        (Kind.TEXT, 'sh -c "a b" c', 'sh -c "a b" c'),
        (Kind.TEXT, '"a b" "c d"', '"a b" "c d"'),
        (Kind.TEXT, r"\\server\Users", r"\server\Users"),
        (Kind.TEXT, "@ByteArray(x)", "x"),
        (Kind.TEXT, r"@String(\0z)", "\0z"),
        (Kind.TEXT, "@Invalid()", ""),
        (Kind.TEXT, "Käse 日本", "Käse 日本"),
        *((Kind.FLAG, word, True) for word in ("1", "true", "True", "yes", "on")),
        *((Kind.FLAG, word, False) for word in ("0", "false", "FALSE", "no", '"off"')),
        (Kind.NUMBER, '"4713"', 4713),
        (Kind.LIST, "a,b ,  c", ["a", "b", "c"]),
        (Kind.LIST, "['a', 'b']", ["a", "b"]),
        (Kind.LIST, "", []),
        (Kind.LIST, ", a,", ["", "a", ""]),
        (Kind.LIST, "[1, 2]", ["[1", "2]"]),
        (Kind.LIST, "[__import__('os')]", ["[__import__('os')]"]),
        (Kind.HOSTS, "one", ["one"]),
        (Kind.HOSTS, "one,", ["one"]),
        (Kind.HOSTS, "[" * 5000, ["[" * 5000]),
        (Kind.HOSTS, "one, two,three", ["one", "two", "three"]),
        (Kind.HOSTS, '"one,two"', ["one", "two"]),
        (Kind.COMMAS, "PDF,DOC", "PDF,DOC"),
        (Kind.COMMAS, '"PDF,DOC"', "PDF,DOC"),
        (Kind.EXPORT, "", {}),
        (Kind.EXPORT, '""', {}),
        (Kind.EXPORT, "/a:1,/b:0", {"/a": True, "/b": False}),
        (Kind.EXPORT, "/a,/b", {"/a": True, "/b": True}),
        (Kind.EXPORT, '"/a;/b:0;"', {"/a": True, "/b": False}),
        (Kind.EXPORT, "/a:b:1;", {"/a:b": True}),
    ],
)
def test_what_other_programs_wrote_is_read(kind: Kind, text: str, value: Value) -> None:
    assert read(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text", "advice"),
    [
        (Kind.FLAG, "perhaps", "use 1 or 0"),
        (Kind.FLAG, "", "use 1 or 0"),
        (Kind.FLAG, "2", "use 1 or 0"),
        (Kind.NUMBER, "", "use a whole number"),
        (Kind.NUMBER, "22.5", "use a whole number"),
        (Kind.NUMBER, "9" * 5000, "use a whole number"),
        (Kind.NUMBER, "٢٢", "use a whole number"),
    ],
)
def test_a_text_that_makes_no_sense_is_refused_with_what_to_do(
    kind: Kind, text: str, advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        read(kind, text)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.FLAG, "yes"),
        (Kind.NUMBER, True),
        (Kind.NUMBER, "22"),
        (Kind.TEXT, 22),
        (Kind.LIST, "a"),
        (Kind.LIST, [1]),
        (Kind.EXPORT, {"/a;b": True}),
        (Kind.EXPORT, {"": True}),
        (Kind.EXPORT, "/a:1;"),
    ],
)
def test_a_value_of_another_kind_is_not_written(kind: Kind, value: Value) -> None:
    with pytest.raises(ValueError, match=r"use a|cannot have"):
        write(kind, value)


@given(st.text())
def test_every_string_comes_back_and_takes_one_line(string: str) -> None:
    text = write(Kind.TEXT, string)
    assert text.isascii()
    assert text.isprintable()
    assert read(Kind.TEXT, text) == string


@given(st.lists(st.text()))
def test_every_list_comes_back(strings: list[str]) -> None:
    assert read(Kind.LIST, write(Kind.LIST, strings)) == strings


@given(st.sampled_from(Kind), st.text())
def test_any_text_is_read_or_refused(kind: Kind, text: str) -> None:
    try:
        value = read(kind, text)
    except ValueError:
        return
    if kind is not Kind.EXPORT:
        assert read(kind, write(kind, value)) == value
