"""INI files that several programs write: nothing is lost, nothing is half written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.command import ROOT
from x2go_session.errors import ConfigFileError
from x2go_session.profiles import ini
from x2go_session.profiles.ini import Document, IniFile

BY_HAND = """\
# my sessions
; do not touch

[20240101]
name=Office
 # why this port: see the wiki
sshport = 2222   \n\
command="startkde; x=1"
options\\HP%20LJ=A4
export="/home/me/a:1;"
unknown:key=100% ; no comment
novalue

# the lab
[lab]
name = K\N{LATIN SMALL LETTER A WITH DIAERESIS}se
long = one
  two
"""


def files(tmp_path: Path, text: str) -> IniFile:
    path = tmp_path / "sessions"
    path.write_bytes(text.encode())
    return IniFile(path)


@pytest.mark.parametrize(
    "text", [BY_HAND, BY_HAND.replace("\n", "\r\n"), f"\N{BYTE ORDER MARK}{BY_HAND}"]
)
def test_only_the_changed_line_is_another_one(text: str, tmp_path: Path) -> None:
    file = files(tmp_path, text)
    file.set("20240101", "name", "Home")
    file.set("lab", "new", "1")
    file.set("other", "key", "value")
    file.write()
    end = "\r\n" if "\r\n" in text else "\n"
    # A comment inside of a value would be part of the new one: it stands behind it.
    expected = text.replace("name=Office", "name=Home").replace(" # why", "# why")
    expected += f"new=1{end}[other]{end}key=value{end}"
    assert file.path.read_bytes().decode() == expected


def test_a_new_key_stands_behind_the_last_one_of_its_section(tmp_path: Path) -> None:
    file = files(tmp_path, BY_HAND)
    file.set("20240101", "user", "me")
    file.write()
    assert file.path.read_text() == BY_HAND.replace("novalue\n", "novalue\nuser=me\n")


def test_a_comment_inside_of_a_changed_value_stays(tmp_path: Path) -> None:
    file = files(tmp_path, BY_HAND)
    assert file.find("20240101", "name") == ini.Entry("Office", file.path, 5)
    file.set("20240101", "name", "Home")
    file.write()
    assert "name=Home\n# why this port: see the wiki\n" in file.path.read_text()


def test_a_comment_may_stand_behind_a_key_without_a_value(tmp_path: Path) -> None:
    file = files(tmp_path, "[a]\nx\n  # why\n")
    file.set("a", "x", "1")
    file.write()
    assert file.path.read_text() == "[a]\nx=1\n# why\n"


def test_bytes_that_are_no_utf_8_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    path.write_bytes(b"[a]\nname=K\xe4se\nport=1\n")
    file = IniFile(path)
    file.set("a", "port", "2")
    file.write()
    assert path.read_bytes() == b"[a]\nname=K\xe4se\nport=2\n"


def test_keys_are_found_as_they_stand_with_their_line(tmp_path: Path) -> None:
    file = files(tmp_path, BY_HAND)
    found = {
        key: (entry.text, entry.line)
        for key in file.keys("20240101")
        if (entry := file.find("20240101", key)) is not None
    }
    assert found == {
        "name": ("Office", 5),
        "sshport": ("2222", 7),
        "command": ('"startkde; x=1"', 8),
        "options\\HP%20LJ": ("A4", 9),
        "export": ('"/home/me/a:1;"', 10),
        "unknown:key": ("100% ; no comment", 11),
        "novalue": ("", 12),
    }
    assert file.find("lab", "long") == ini.Entry("one\ntwo", file.path, 17)
    assert file.find("lab", "Name") is None


def test_the_users_file_wins_key_by_key(tmp_path: Path) -> None:
    system = tmp_path / "system"
    system.write_text("[a]\nx=system\ny=system\n[b]\nz=system\n")
    own = tmp_path / "own"
    own.write_text("[a]\nx=own\n[c]\n")
    file = IniFile(own, system, tmp_path / "absent")
    texts = {
        (section, key): file.find(section, key)
        for section in file.sections
        for key in file.keys(section)
    }
    assert file.sections == ["a", "c", "b"]
    assert {place: entry and entry.text for place, entry in texts.items()} == {
        ("a", "x"): "own",
        ("a", "y"): "system",
        ("b", "z"): "system",
    }
    file.set("b", "z", "changed")
    file.remove("a", "x")
    assert (entry := file.find("a", "x")) is not None
    assert entry.text == "system"
    file.write()
    assert own.read_text() == "[a]\n[c]\n[b]\nz=changed\n"
    assert system.read_text() == "[a]\nx=system\ny=system\n[b]\nz=system\n"


# Writing.


def test_a_written_file_is_for_its_owner_alone_and_nothing_lies_beside_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "sessions"
    file = IniFile(path)
    assert not path.parent.exists()
    file.set("a", "x", "1")
    file.write()
    path.chmod(0o644)
    file.set("a", "x", "2")
    file.write()
    assert path.read_text() == "[a]\nx=2\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {each.name for each in path.parent.iterdir()} <= {
        "sessions",
        ".sessions.lock",
    }


def test_nothing_is_written_when_nothing_is_changed(tmp_path: Path) -> None:
    file = files(tmp_path, "[a]\nx=1\n")
    before = file.path.stat()
    file.set("a", "x", "1")
    assert not file.changed
    file.write()
    assert file.path.stat() == before


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "sessions"
    target.parent.mkdir()
    target.write_text("[a]\nx=1\n")
    link = tmp_path / "sessions"
    link.symlink_to(target)
    file = IniFile(link)
    file.set("a", "x", "2")
    file.write()
    assert link.is_symlink()
    assert target.read_text() == "[a]\nx=2\n"


def test_whoever_reads_meanwhile_sees_a_whole_file(tmp_path: Path) -> None:
    filling = "".join(f"key{number}=value\n" for number in range(500))
    file = files(tmp_path, f"[a]\n{filling}[b]\nturn=0\n")
    over = threading.Event()
    torn: list[str] = []

    def look() -> None:
        while not over.is_set():
            text = file.path.read_text()
            if filling not in text or "[b]\nturn=" not in text:
                torn.append(text)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for turn in range(10):
            file.set("b", "turn", str(turn))
            file.write()
    finally:
        over.set()
        reader.join()
    assert torn == []


WRITER = """
import sys
from pathlib import Path
from x2go_session.profiles.ini import IniFile

path, name, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
file = IniFile(path)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(turns):
    file.set("shared", f"{name}-{turn}", str(turn))
    file.set(name, "turn", str(turn))
    file.write()
"""


def test_programs_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    path.write_text("# kept\n[shared]\nbefore=1\n")
    names, turns = ["ant", "bee", "cow", "dog"], 15
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, str(turns)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n")
    assert [writer.returncode for writer in writers] == [0] * len(writers)

    sections = Document(path.read_text(), path).sections
    shared = {key: entry.text for key, entry in sections["shared"].items()}
    assert shared == {"before": "1"} | {
        f"{name}-{turn}": str(turn) for name in names for turn in range(turns)
    }
    assert {name: sections[name]["turn"].text for name in names} == dict.fromkeys(
        names, str(turns - 1)
    )
    assert path.read_text().startswith("# kept\n")


def test_a_program_that_knows_no_lock_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files(tmp_path, "[a]\nx=1\ny=1\n")
    written = ini._written_beside
    others = iter(["[a]\nx=1\ny=2\n", "[a]\nx=1\ny=3\n"])

    def while_another_writes(path: Path, text: str) -> Path:
        if (other := next(others, None)) is not None:
            path.write_text(other)
            os.utime(path, ns=(0, len(other) + int(other[-2])))
        return written(path, text)

    monkeypatch.setattr(ini, "_written_beside", while_another_writes)
    file.set("a", "x", "2")
    file.write()
    assert file.path.read_text() == "[a]\nx=2\ny=3\n"
    assert (entry := file.find("a", "y")) is not None
    assert entry.text == "3"


def test_a_section_that_another_removed_does_not_come_back_with_one_key(
    tmp_path: Path,
) -> None:
    file = files(tmp_path, "[a]\nx=1\ny=1\n[b]\nz=1\n")
    other = IniFile(file.path)
    file.set("a", "x", "2")
    file.set("b", "z", "2")
    other.remove_section("a")
    other.write()
    with pytest.raises(ConfigFileError, match=r"\[a\]: another program has removed"):
        file.write()
    file.write()
    assert file.path.read_text() == "[b]\nz=2\n"


def test_a_lock_that_another_program_keeps_is_an_error_and_the_change_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ini, "LOCK_TIMEOUT_S", 0.1)
    file = files(tmp_path, "[a]\nx=1\n")
    file.set("a", "x", "2")
    with (
        filelock.FileLock(tmp_path / ".sessions.lock"),
        pytest.raises(ConfigFileError, match="another program has held"),
    ):
        file.write()
    assert file.changed
    file.write()
    assert file.path.read_text() == "[a]\nx=2\n"


def test_a_file_that_was_broken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    file = files(tmp_path, "[a]\nx=1\n")
    file.set("a", "x", "2")
    file.path.write_text("[a]\nx=1\nx=3\n")
    with pytest.raises(ConfigFileError, match=r"sessions:3, \[a\], x: this key is"):
        file.write()
    assert file.path.read_text() == "[a]\nx=1\nx=3\n"
    file.path.write_text("[a]\nx=1\ny=3\n")
    file.write()
    assert file.path.read_text() == "[a]\nx=2\ny=3\n"


def test_a_folder_in_the_place_of_the_file_is_an_error_that_names_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigFileError, match=f"^{tmp_path}: cannot read it: Is a"):
        IniFile(tmp_path)


# What is no INI file.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=1\n", "f:1: expected a section first"),
        ("[a]\nx=1\n[a]\n", r"f:3, \[a\]: this section is there twice: join"),
        ("[a]\nx\n  y\n", r"f:2, \[a\], x: put = behind this key: its value goes on"),
        ("[a]\nx=1\nx=2\n", r"f:3, \[a\], x: this key is there twice: remove one"),
        ("[a]\n=3\n", "f:2: expected a section, or a key"),
    ],
)
def test_a_text_that_is_no_ini_names_the_line(text: str, message: str) -> None:
    with pytest.raises(ConfigFileError, match=f"^{message}"):
        Document(text, Path("f"))


def test_a_file_that_is_far_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    with path.open("wb") as file:
        file.truncate(ini.LIMIT_BYTES + 1)
    with pytest.raises(ConfigFileError, match="more than 4 MiB"):
        IniFile(path)


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ("a]", "x", "1"),
        ("", "x", "1"),
        ("a", "x=y", "1"),
        ("a", " x", "1"),
        ("a", "#x", "1"),
        ("a", "[b]", "1"),
        ("a", "x", "1\n[b]"),
        ("a", "x", "1\0"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(
    section: str, key: str, text: str, tmp_path: Path
) -> None:
    file = files(tmp_path, "[a]\n")
    with pytest.raises(ValueError, match=r"cannot be|one line"):
        file.set(section, key, text)
    assert not file.changed


LINE = st.one_of(
    st.sampled_from(["[a]", "[b]", "# c", "; c", "", "  more", "x=1", "y = 2", "z"]),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])),
)


@settings(max_examples=300)
@given(st.lists(LINE), st.sampled_from(["\n", "\r\n"]))
def test_any_text_is_kept_to_the_last_byte_or_refused(
    lines: list[str], end: str
) -> None:
    text = end.join(lines) + end
    try:
        document = Document(text, Path("f"))
    except ConfigFileError:
        return
    assert str(document) == text
    before = {
        section: {key: entry.text for key, entry in entries.items()}
        for section, entries in document.sections.items()
    }
    document.set("a", "x", "changed")
    after = Document(str(document), Path("f")).sections
    before.setdefault("a", {})["x"] = "changed"
    assert before == {
        section: {key: entry.text for key, entry in entries.items()}
        for section, entries in after.items()
    }
