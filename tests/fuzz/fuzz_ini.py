"""The files of X2Go clients: any text is read, changed, written, and nothing lost.

A file that is read and written again is the same file. A key that is changed has its
new value when the file is read back, and all others have the old ones. Profiles make a
connection and a session, or a clear error; so does the `printing` file.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from tests.fuzz.harness import fuzz, watched

with watched("configparser", "configupdater"):
    from x2go_session.errors import ConfigFileError, NotSupported, ProfileError
    from x2go_session.profiles import plan
    from x2go_session.profiles.connection import connection
    from x2go_session.profiles.ini import Document, _check
    from x2go_session.profiles.printing_file import PrintingFile
    from x2go_session.profiles.profile import Profile
    from x2go_session.profiles.sessions_file import profiles_of
    from x2go_session.services.print_actions import PrintActionError

PATH = Path("sessions")
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-ini-"))


def texts(document: Document) -> dict[tuple[str, str], str]:
    """All keys of a document with their values."""
    return {
        (section, key): entry.text
        for section, entries in document.sections.items()
        for key, entry in entries.items()
    }


def check_change(text: str, section: str, key: str, value: str) -> None:
    """Change a key; nothing else changes."""
    document = Document(text, PATH)
    before = texts(document)
    try:
        _check(section, key, value)
    except ValueError:
        return
    document.set(section, key, value)
    try:
        after = texts(Document(str(document), PATH))
    except ConfigFileError:
        return  # `IniFile.write` looks, too, and writes nothing then
    assert after.pop((section, key)) == value.strip()
    before.pop((section, key), None)
    assert after == before


def check_profile(profile: Profile) -> None:
    """What becomes of a profile."""
    for make in (plan.session_options, plan.services, plan.folders, connection):
        with contextlib.suppress(ProfileError, NotSupported):
            make(profile)
    assert all(": " in problem for problem in plan.not_supported(profile))


def check_printing(data: bytes) -> None:
    """Read the bytes as the `printing` file."""
    (FOLDER / "printing").write_bytes(data)
    try:
        printing = PrintingFile(FOLDER, None)
        printing.values()
        assert printing.action
    except (ConfigFileError, PrintActionError):
        pass


def test(data: bytes) -> None:
    """Read the bytes as each file, and change a key that they name first."""
    change, _, content = data.partition(b"\0")
    check_printing(content)
    text = content.decode(errors="surrogateescape")
    try:
        document = Document(text, PATH)
    except ConfigFileError as error:
        said = str(error)
        assert "\n" not in said
        return
    assert str(document) == text
    lines = text.count("\n") + 1
    for entries in document.sections.values():
        assert all(1 <= entry.line <= lines for entry in entries.values())
    words = [*change.decode(errors="replace").split(","), "a", "b", "c"]
    check_change(text, *words[:3])
    try:
        profiles = profiles_of(text, "sessions")
    except ConfigFileError:
        return
    for profile in profiles.values():
        check_profile(profile)


if __name__ == "__main__":
    fuzz(test)
