"""MIME box: from the folder that programs of a session drop files into."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.sshd import wait_until
from tests.support.x2go_services import Program, Shares, Told, make_session
from x2go_session.errors import ServiceError
from x2go_session.events import (
    Event,
    MimeFileArrived,
    MimeFileDone,
    MimeFileFailed,
    SaveAsQuestion,
)
from x2go_session.services import FileEventKind, ShareKind
from x2go_session.services.jobs import Job, JobState
from x2go_session.services.mime_actions import (
    MimeAction,
    Open,
    OpenWith,
    SaveAs,
    mime_action,
    refusal,
)
from x2go_session.services.mimebox import MimeBox
from x2go_session.services.sharing import Sharing
from x2go_session.session import Session

CONTENT = b"what was dropped\n"
PATIENCE_S = 30.0


class Box:
    """The MIME box of a session, and a server that drops files into it."""

    def __init__(
        self,
        session: Session,
        action: MimeAction | None,
        extensions: tuple[str, ...],
        settle_s: float,
    ) -> None:
        self.session = session
        self.shares = Shares()
        self.told = Told(session.events)
        self.folder = session.local_folder / "mimebox"
        self.mimebox = MimeBox(self.shares, action, extensions, settle_s)
        self.mimebox.start(session)

    def drop(self, name: str, content: bytes = CONTENT) -> None:
        """Write a file over the mount, and close it."""
        (self.folder / name).write_bytes(content)
        self.closed(name)

    def closed(self, name: str) -> None:
        self.shares.say(FileEventKind.CLOSED, self.folder / name)

    def end(self, *, of: int = 1) -> list[Job]:
        """Wait until so many jobs are over; return them."""
        wait_until(lambda: sum(job.is_over for job in self.jobs) >= of, PATIENCE_S)
        return self.jobs

    @property
    def jobs(self) -> list[Job]:
        return self.mimebox.jobs

    def refused(self) -> list[tuple[str, str]]:
        """Return the names of files that were not taken, with the reasons."""
        return [
            (event.name, event.reason)
            for event in self.told.of(MimeFileFailed)
            if isinstance(event, MimeFileFailed)
        ]


Start = Callable[..., Box]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return make_session(tmp_path)


@pytest.fixture
def start(session: Session) -> Iterator[Start]:
    """Start a MIME box with an action; it ends with the test."""
    started: list[Box] = []

    def begin(
        action: MimeAction | None = None, *extensions: str, settle_s: float = 0.05
    ) -> Box:
        started.append(Box(session, action, extensions, settle_s))
        return started[-1]

    yield begin
    for box in started:
        box.mimebox.stop()


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """What the desktop opens files with."""
    program = Program(tmp_path / "bin" / "xdg-open")
    monkeypatch.setenv("PATH", f"{program.path.parent}:{os.environ['PATH']}")
    return program


# The box.


def test_the_box_is_shared_as_one_and_named_to_the_session(
    start: Start, session: Session
) -> None:
    box = start()
    assert box.shares.shared == {box.folder: ShareKind.MIMEBOX}
    assert stat.S_IMODE(box.folder.stat().st_mode) == 0o700
    assert box.mimebox.environment == {
        "X2GO_MIMEBOX": f"{session.remote_folder}/mimebox"
    }


def test_a_file_that_was_closed_is_opened_and_removed(
    start: Start, opener: Program
) -> None:
    box = start(Open(wait_s=0.0))
    box.drop("my letter.pdf")
    (job,) = box.end()
    assert (job.state, job.detail) == (JobState.DONE, "opened with xdg-open")
    (call,) = opener.calls()
    (argument,) = call.arguments
    assert Path(argument).name == "my letter.pdf"
    assert call.content == CONTENT
    assert not Path(argument).exists()
    assert list(box.folder.iterdir()) == []
    arrived, done = box.told.of(MimeFileArrived, MimeFileDone)
    assert arrived == MimeFileArrived(session=box.session.name, file=job.subject.file)
    assert done == MimeFileDone(
        session=box.session.name, name="my letter.pdf", action="OPEN"
    )


def test_a_file_that_is_being_written_is_left_alone(
    start: Start, opener: Program
) -> None:
    box = start(Open(wait_s=0.0))
    (box.folder / "half.pdf").write_bytes(CONTENT[:5])
    box.drop("whole.pdf")
    box.end()
    assert (box.folder / "half.pdf").read_bytes() == CONTENT[:5]
    box.drop("half.pdf")
    box.end(of=2)
    assert {call.content for call in opener.calls()} == {CONTENT}


def test_a_file_that_is_touched_before_it_is_written_is_one_job(
    start: Start, opener: Program
) -> None:
    box = start(Open(wait_s=0.0), settle_s=2.0)
    box.drop("file.txt", b"")
    box.drop("file.txt")
    box.end()
    assert [call.content for call in opener.calls()] == [CONTENT]


def test_a_file_that_gets_its_name_when_it_is_complete_is_taken_by_it(
    start: Start, opener: Program
) -> None:
    box = start(Open(wait_s=0.0))
    box.drop(".file.txt.Xy3a")
    box.drop("another.txt")
    box.end()
    (box.folder / ".file.txt.Xy3a").rename(box.folder / "file.txt")
    box.shares.say(FileEventKind.RENAMED, box.folder / "file.txt")
    box.end(of=2)
    names = {Path(call.arguments[0]).name for call in opener.calls()}
    assert names == {"file.txt", "another.txt"}
    assert box.refused() == []


def test_what_came_while_nobody_looked_is_taken_at_the_start(
    start: Start, session: Session, opener: Program
) -> None:
    folder = session.local_folder / "mimebox"
    folder.mkdir()
    (folder / "file.txt").write_bytes(CONTENT)
    start(Open(wait_s=0.0)).end()
    assert opener.calls()[0].content == CONTENT


def test_links_and_folders_are_not_followed(
    start: Start, opener: Program, tmp_path: Path
) -> None:
    box = start(Open(wait_s=0.0))
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (box.folder / "link.txt").symlink_to(secret)
    box.closed("link.txt")
    (box.folder / "folder.txt").mkdir()
    box.closed("folder.txt")
    box.drop("file.txt")
    box.end()
    assert [call.content for call in opener.calls()] == [CONTENT]
    assert secret.read_text() == "secret"


def test_a_file_that_is_gone_again_is_no_job(start: Start, opener: Program) -> None:
    box = start(Open(wait_s=0.0))
    box.closed("gone.txt")
    box.drop("file.txt")
    box.end()
    assert len(box.jobs) == 1
    assert box.refused() == []


def test_files_in_folders_of_the_box_are_left_alone(
    start: Start, opener: Program
) -> None:
    box = start(Open(wait_s=0.0))
    (box.folder / "folder").mkdir()
    box.drop("folder/file.txt")
    box.drop("file.txt")
    box.end()
    assert len(box.jobs) == 1
    assert (box.folder / "folder" / "file.txt").exists()


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("-rf.txt", "rf.txt"),
        ("two\nlines.txt", "two lines.txt"),
        ("$(reboot);`id`.txt", "(reboot) id .txt"),
        ("cod\N{RIGHT-TO-LEFT OVERRIDE}fdp.txt", "cod fdp.txt"),
        ("Grüße 日本.txt", "Grüße 日本.txt"),
    ],
)
def test_a_hostile_name_is_made_harmless(
    name: str, harmless: str, start: Start, opener: Program
) -> None:
    box = start(Open(wait_s=0.0))
    box.drop(name)
    (job,) = box.end()
    assert job.subject.title == name
    assert Path(opener.calls()[0].arguments[0]).name == harmless


def test_a_file_cannot_be_run_by_its_mode(start: Start) -> None:
    seen: list[int] = []

    def ask(file: Path, stop: threading.Event) -> None:
        seen.append(stat.S_IMODE(file.stat().st_mode))

    box = start(SaveAs(ask))
    (box.folder / "program").write_bytes(b"#!/bin/sh\n")
    (box.folder / "program").chmod(0o4777)
    box.closed("program")
    box.end()
    assert seen == [0o600]


def test_stopping_unshares_the_box_and_removes_it(
    start: Start, session: Session
) -> None:
    box = start()
    (box.folder / "half.pdf").write_bytes(CONTENT)
    box.mimebox.stop()
    box.mimebox.stop()
    assert box.shares.shared == {}
    assert list(session.local_folder.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("x2go-mimebox")]


def test_a_box_that_cannot_be_shared_is_a_failure_and_leaves_nothing(
    session: Session,
) -> None:
    mimebox = MimeBox(Shares(refuses="no FUSE on the server"))
    with pytest.raises(ServiceError, match="no FUSE on the server"):
        mimebox.start(session)
    assert list(session.local_folder.iterdir()) == []
    assert mimebox.environment == {}


def test_without_folder_sharing_there_is_no_box(session: Session) -> None:
    mimebox = MimeBox(Sharing())
    with pytest.raises(ServiceError, match="needs folder sharing, which does not run"):
        mimebox.start(session)
    assert list(session.local_folder.iterdir()) == []


# What is refused.


@pytest.mark.parametrize(
    "name",
    [
        *("a.lock", "a.SYS", "a.swp", "a.exe", "a.com", "a.cmd", "a.ps1", "a.ps2"),
        *("a.bat", "a.js", "a.py", "a.pl", "a.sh", ".hidden", ".hidden.txt"),
        *("a.txt.exe", "a.exe ", "a.exe.", "a.exe. .", "a.desktop", "a.AppImage"),
    ],
)
def test_what_may_run_and_what_is_hidden_is_refused(name: str) -> None:
    assert refusal(name) is not None
    assert refusal(name, ["EXE", "SH", "PY", "desktop"]) is not None


@pytest.mark.parametrize("name", ["a.txt", "exe", "a.exe.txt", "sh", "a.pdf", "a"])
def test_everything_else_is_taken(name: str) -> None:
    assert refusal(name) is None


def test_with_extensions_only_those_are_taken() -> None:
    wanted = ["PDF", "odt", ".tar.gz", " txt"]
    for name in ("a.pdf", "a.PDF", "a.Odt", "a.tar.gz", "a.txt"):
        assert refusal(name, wanted) is None
    for name in ("a.doc", "pdf", "apdf", "a.gz", "a"):
        assert refusal(name, wanted) == (
            "only files of type PDF, odt, .tar.gz,  txt are taken"
        )


def test_a_refused_file_is_removed_and_the_user_is_told(
    start: Start, opener: Program
) -> None:
    box = start(Open(wait_s=0.0), "txt", "pdf")
    box.drop("evil.sh")
    box.drop("letter.doc")
    box.drop("letter.txt")
    box.end()
    assert len(opener.calls()) == 1
    assert box.refused() == [
        ("evil.sh", "files of type SH are never taken, since they may run"),
        ("letter.doc", "only files of type txt, pdf are taken"),
    ]
    assert list(box.folder.iterdir()) == []


def test_a_name_that_becomes_one_of_a_refused_type_is_refused(
    start: Start, opener: Program
) -> None:
    box = start(Open(wait_s=0.0))
    box.drop("evil.s\N{ZERO WIDTH SPACE}h")
    box.drop("evil.sh\N{RIGHT-TO-LEFT OVERRIDE}")
    box.drop("file.txt")
    box.end()
    wait_until(lambda: len(box.refused()) == 1, PATIENCE_S)
    (name, reason) = box.refused()[0]
    assert name == "evil.sh\N{RIGHT-TO-LEFT OVERRIDE}"
    assert "SH" in reason


# The actions.


def test_openwith_opens_with_a_program_of_the_users_choice(
    start: Start, tmp_path: Path
) -> None:
    program = Program(tmp_path / "viewer")
    box = start(OpenWith(f"{program} --new", wait_s=0.0))
    box.drop("file.txt")
    (job,) = box.end()
    assert job.detail == f"opened with {program}"
    assert program.calls()[0].arguments[0] == "--new"


def test_a_program_that_fails_is_told(start: Start) -> None:
    box = start(OpenWith("false", wait_s=0.0))
    box.drop("file.txt")
    box.end()
    assert box.refused() == [("file.txt", "false ended with status 1")]


def test_a_program_that_shows_a_file_stays_when_the_session_ends_and_leaves_nothing(
    start: Start, tmp_path: Path
) -> None:
    note, go = tmp_path / "note", tmp_path / "go"
    script = (
        f"echo $$ >{note}.new; mv {note}.new {note};"
        f" while [ ! -e {go} ]; do sleep 0.01; done"
    )
    box = start(OpenWith(f"sh -c '{script}'"))
    box.drop("file.txt")
    wait_until(note.exists, PATIENCE_S)
    process = Path("/proc", note.read_text().strip())
    box.mimebox.stop()
    assert process.exists()
    go.touch()
    wait_until(lambda: not process.exists(), PATIENCE_S)


def answering(answer: Path | None) -> Callable[[Event], None]:
    """Return a subscriber that answers where to save."""

    def subscriber(event: Event) -> None:
        if isinstance(event, SaveAsQuestion):
            event.answer(answer)

    return subscriber


def test_saveas_saves_where_the_user_says(
    start: Start, session: Session, tmp_path: Path
) -> None:
    target = tmp_path / "chosen.txt"
    target.write_text("replaced")
    session.events.subscribe(answering(target))
    box = start(SaveAs())
    box.drop("file.txt")
    (job,) = box.end()
    assert job.detail == f"saved as {target}"
    assert target.read_bytes() == CONTENT
    (question,) = box.told.of(SaveAsQuestion)
    assert question == SaveAsQuestion(session=session.name, file=job.subject.file)


def test_saveas_takes_a_folder_and_replaces_nothing_in_it(
    start: Start, session: Session, tmp_path: Path
) -> None:
    folder = tmp_path / "Downloads"
    folder.mkdir()
    (folder / "file.txt").write_text("mine")
    session.events.subscribe(answering(folder))
    box = start(SaveAs())
    box.drop("file.txt")
    box.end()
    assert (folder / "file.txt").read_text() == "mine"
    assert (folder / "file(1).txt").read_bytes() == CONTENT


def test_saveas_saves_nothing_where_the_user_says_no(
    start: Start, session: Session
) -> None:
    session.events.subscribe(answering(None))
    box = start(SaveAs())
    box.drop("file.txt")
    (job,) = box.end()
    assert (job.state, job.detail) == (JobState.DONE, "not saved")


def test_saveas_says_why_it_could_not(
    start: Start, session: Session, tmp_path: Path
) -> None:
    session.events.subscribe(answering(tmp_path / "no folder" / "file.txt"))
    box = start(SaveAs())
    box.drop("file.txt")
    (job,) = box.end()
    assert job.state is JobState.FAILED
    assert job.detail.endswith("No such file or directory")


def test_an_open_question_ends_with_the_session(start: Start) -> None:
    box = start(SaveAs())
    box.drop("file.txt")
    wait_until(lambda: box.told.of(SaveAsQuestion), PATIENCE_S)
    box.mimebox.stop()
    assert list(box.session.local_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "action"),
    [("OPEN", Open()), ("openwith", OpenWith("view")), ("SAVEAS", SaveAs())],
)
def test_actions_have_the_names_of_x2go(name: str, action: MimeAction) -> None:
    assert mime_action(name, "view") == action


def test_an_unknown_action_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ServiceError, match="use one of OPEN, OPENWITH, SAVEAS"):
        mime_action("SHRED")
