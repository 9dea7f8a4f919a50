"""Printing: from the spool that x2goprint writes into to what the user wanted."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cups import Cups, Printed
from tests.support.sshd import wait_until
from tests.support.x2go_services import Program, Shares, Told, make_session
from x2go_session.errors import ServiceError
from x2go_session.events import (
    Event,
    PrintJobArrived,
    PrintJobDone,
    PrintJobFailed,
    PrintQuestion,
)
from x2go_session.services import FileEventKind, Services, ShareKind
from x2go_session.services.jobs import HISTORY_LIMIT, Job, JobState
from x2go_session.services.print_actions import (
    Dialog,
    Document,
    PdfSave,
    PdfView,
    Print,
    PrintAction,
    PrintCommand,
)
from x2go_session.services.printing import Printing
from x2go_session.services.sharing import Sharing
from x2go_session.session import Session

PDF = b"%PDF-1.4\n%of a kind\n"
PATIENCE_S = 30.0


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return make_session(tmp_path)


@pytest.fixture(scope="module")
def cups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cups]:
    with Cups(tmp_path_factory.mktemp("cups")) as scheduler:
        yield scheduler


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


class Spooled:
    """A session that prints: started with an action, and printed in by `print`."""

    def __init__(self, session: Session, action: PrintAction | None) -> None:
        self.session = session
        self.shares = Shares()
        self.told = Told(session.events)
        self.printing = Printing(self.shares, action)
        self.spool = session.local_folder / "spool"
        self.printing.start(session)

    def print(self, title: str, pdf: bytes = PDF, name: str = "job-1.pdf") -> None:
        """Do what x2goprint does over the mount."""
        (self.spool / name).write_bytes(pdf)
        self.shares.say(FileEventKind.CLOSED, self.spool / name)
        self.announce(f"{name}\n{title}".encode(), name)

    def announce(self, content: bytes, name: str = "job-1.pdf") -> None:
        """Write a `.ready` file, under another name first."""
        unfinished = self.spool / f"{name}.notready"
        ready = self.spool / f"{name}.ready"
        unfinished.write_bytes(content)
        self.shares.say(FileEventKind.CLOSED, unfinished)
        unfinished.rename(ready)
        self.shares.say(FileEventKind.RENAMED, ready)

    def end(self, *, of: int = 1) -> list[Job]:
        """Wait until so many jobs are over; return them."""
        wait_until(lambda: sum(job.is_over for job in self.jobs) >= of, PATIENCE_S)
        return self.jobs

    @property
    def jobs(self) -> list[Job]:
        return self.printing.jobs


Start = Callable[..., Spooled]


@pytest.fixture
def start(session: Session) -> Iterator[Start]:
    """Start printing with an action; it ends with the test."""
    started: list[Spooled] = []

    def begin(action: PrintAction | None = None) -> Spooled:
        started.append(Spooled(session, action))
        return started[-1]

    yield begin
    for spooled in started:
        spooled.printing.stop()


# The spool.


def test_the_spool_is_shared_as_one_and_named_to_the_session(
    start: Start, session: Session
) -> None:
    spooled = start(PdfSave())
    assert spooled.shares.shared == {spooled.spool: ShareKind.PRINT_SPOOL}
    assert stat.S_IMODE(spooled.spool.stat().st_mode) == 0o700
    assert spooled.printing.environment == {
        "X2GO_SPOOLDIR": f"{session.remote_folder}/spool"
    }


def test_a_document_that_is_announced_is_a_job_and_leaves_nothing_in_the_spool(
    start: Start, home: Path
) -> None:
    spooled = start(PdfSave())
    spooled.print("Report")
    (job,) = spooled.end()
    assert (job.state, job.subject.title) == (JobState.DONE, "Report")
    assert (home / "PDF" / "Report.pdf").read_bytes() == PDF
    assert list(spooled.spool.iterdir()) == []
    assert not job.subject.file.exists()
    arrived, done = spooled.told.of(PrintJobArrived, PrintJobDone)
    assert arrived == PrintJobArrived(
        session=spooled.session.name, file=job.subject.file, title="Report"
    )
    assert done == PrintJobDone(
        session=spooled.session.name,
        title="Report",
        action="PDFSAVE",
        target=f"saved as {home / 'PDF' / 'Report.pdf'}",
    )


def test_what_is_not_announced_stays(start: Start) -> None:
    spooled = start(PdfSave())
    (spooled.spool / "job.pdf").write_bytes(PDF)
    spooled.shares.say(FileEventKind.CLOSED, spooled.spool / "job.pdf")
    (spooled.spool / "job.pdf.notready").write_bytes(b"job.pdf\nReport")
    spooled.shares.say(FileEventKind.CLOSED, spooled.spool / "job.pdf.notready")
    spooled.shares.say(FileEventKind.REMOVED, spooled.spool / "job.pdf.ready")
    assert spooled.jobs == []
    assert len(list(spooled.spool.iterdir())) == 2


def test_what_was_announced_while_nobody_looked_is_taken_at_the_start(
    start: Start, session: Session, home: Path
) -> None:
    spool = session.local_folder / "spool"
    spool.mkdir()
    (spool / "job.pdf").write_bytes(PDF)
    (spool / "job.pdf.ready").write_bytes(b"job.pdf\nReport")
    start(PdfSave()).end()
    assert (home / "PDF" / "Report.pdf").read_bytes() == PDF


def test_a_document_that_is_announced_twice_is_one_job(start: Start) -> None:
    reads = threading.Event()

    def ask(document: Document) -> None:
        reads.wait(PATIENCE_S)

    spooled = start(Dialog(ask))
    spooled.print("Report")
    spooled.shares.say(FileEventKind.RENAMED, spooled.spool / "job-1.pdf.ready")
    wait_until(lambda: spooled.told.of(PrintJobArrived), PATIENCE_S)
    spooled.announce(b"job-1.pdf\nReport")
    wait_until(lambda: spooled.told.of(PrintJobFailed), PATIENCE_S)
    reads.set()
    spooled.end()
    (failed,) = spooled.told.of(PrintJobFailed)
    assert isinstance(failed, PrintJobFailed)
    assert failed.reason == "there is no 'job-1.pdf'"
    assert len(spooled.told.of(PrintJobArrived)) == 1


@pytest.mark.parametrize("kind", ["a link", "a folder", "a pipe"])
def test_a_document_that_is_no_regular_file_is_refused(
    kind: str, start: Start, tmp_path: Path
) -> None:
    spooled = start(PdfSave())
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = spooled.spool / "job-1.pdf"
    match kind:
        case "a link":
            path.symlink_to(secret)
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
    spooled.announce(b"job-1.pdf\nReport")
    wait_until(lambda: spooled.told.of(PrintJobFailed), PATIENCE_S)
    assert spooled.jobs == []
    assert secret.read_text() == "secret"


def test_an_announcement_that_is_too_long_is_refused(start: Start) -> None:
    spooled = start(PdfSave())
    spooled.announce(b"job-1.pdf\n" + b"x" * 10_000)
    wait_until(lambda: spooled.told.of(PrintJobFailed), PATIENCE_S)
    assert list(spooled.spool.iterdir()) == []


def test_an_announcement_in_a_folder_of_the_spool_is_none(start: Start) -> None:
    spooled = start(PdfSave())
    spooled.shares.say(FileEventKind.RENAMED, spooled.spool / "sub" / "job.pdf.ready")
    assert spooled.jobs == []


def test_the_history_has_the_last_hundred_jobs(start: Start, home: Path) -> None:
    spooled = start(PdfSave())
    for number in range(HISTORY_LIMIT + 5):
        spooled.print(f"Report {number}", name=f"job-{number}.pdf")
    wait_until(
        lambda: len(spooled.told.of(PrintJobDone)) == HISTORY_LIMIT + 5, PATIENCE_S
    )
    assert len(spooled.jobs) == HISTORY_LIMIT
    assert len(list((home / "PDF").iterdir())) == HISTORY_LIMIT + 5


def test_the_history_goes_on_after_a_resume(start: Start, home: Path) -> None:
    spooled = start(PdfSave())
    spooled.print("Before")
    spooled.end()
    spooled.printing.stop()
    assert [job.subject.title for job in spooled.jobs] == ["Before"]
    spooled.printing.start(spooled.session)
    spooled.print("After")
    jobs = spooled.end(of=2)
    assert [(job.number, job.subject.title) for job in jobs] == [
        (1, "Before"),
        (2, "After"),
    ]


def test_another_action_holds_for_the_next_document(start: Start, home: Path) -> None:
    spooled = start(PdfSave("first"))
    spooled.print("Report")
    spooled.end()
    spooled.printing.action = PdfSave("second")
    spooled.print("Report")
    spooled.end(of=2)
    assert (home / "first" / "Report.pdf").exists()
    assert (home / "second" / "Report.pdf").exists()


def test_a_spool_that_cannot_be_shared_is_a_failure_and_leaves_nothing(
    session: Session,
) -> None:
    printing = Printing(Shares(refuses="no FUSE on the server"), PdfSave())
    with pytest.raises(ServiceError, match="no FUSE on the server"):
        printing.start(session)
    assert list(session.local_folder.iterdir()) == []
    assert printing.environment == {}


def test_without_folder_sharing_there_is_no_printing(session: Session) -> None:
    printing = Printing(Sharing(), PdfSave())
    with pytest.raises(ServiceError, match="needs folder sharing, which does not run"):
        printing.start(session)
    assert list(session.local_folder.iterdir()) == []
    assert printing.environment == {}


def test_stopping_unshares_the_spool_and_removes_it(
    session: Session, start: Start
) -> None:
    spooled = start(PdfSave())
    (spooled.spool / "unfinished.pdf").write_bytes(PDF)
    services = Services([spooled.printing], session.events)
    services.stop()
    spooled.printing.stop()
    assert spooled.shares.shared == {}
    assert list(session.local_folder.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("x2go-printing")]


# The actions.


def test_pdfview_shows_the_document_and_removes_it_afterwards(
    start: Start, tmp_path: Path
) -> None:
    viewer = Program(tmp_path / "viewer")
    spooled = start(PdfView(f"{viewer} --page 1", wait_s=0.0))
    spooled.print("Report")
    (job,) = spooled.end()
    assert (job.state, job.detail) == (JobState.DONE, f"shown with {viewer}")
    (call,) = viewer.calls()
    assert call.arguments[:2] == ["--page", "1"]
    assert Path(call.arguments[2]).name == "Report.pdf"
    assert call.content == PDF
    assert not Path(call.arguments[2]).exists()


def test_pdfview_keeps_the_document_for_whoever_the_viewer_hands_it_to(
    start: Start, tmp_path: Path
) -> None:
    viewer = Program(tmp_path / "viewer")
    spooled = start(PdfView(str(viewer), wait_s=PATIENCE_S))
    spooled.print("Report")
    wait_until(viewer.calls, PATIENCE_S)
    (job,) = spooled.jobs
    assert job.state is JobState.RUNNING
    assert job.subject.file.read_bytes() == PDF
    spooled.printing.stop()  # does not wait for the time to pass
    assert not job.subject.file.exists()


def test_pdfview_takes_xdg_open_where_the_viewer_is_not_installed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener = Program(tmp_path / "bin" / "xdg-open")
    monkeypatch.setenv("PATH", f"{opener.path.parent}:{os.environ['PATH']}")
    spooled = start(PdfView("no-such-viewer", wait_s=0.0))
    spooled.print("Report")
    (job,) = spooled.end()
    assert (job.state, job.detail) == (JobState.DONE, "shown with xdg-open")
    assert len(opener.calls()) == 1


def test_pdfsave_replaces_nothing(start: Start, home: Path) -> None:
    (home / "PDF").mkdir()
    (home / "PDF" / "Report.pdf").write_text("mine")
    (home / "PDF" / "Report(1).pdf").symlink_to(home / "elsewhere")
    spooled = start(PdfSave())
    spooled.print("Report")
    spooled.end()
    assert (home / "PDF" / "Report.pdf").read_text() == "mine"
    assert not (home / "elsewhere").exists()
    assert (home / "PDF" / "Report(2).pdf").read_bytes() == PDF


def test_pdfsave_makes_the_folder_where_it_was_told(start: Start, home: Path) -> None:
    spooled = start(PdfSave("Documents/printed"))
    spooled.print("../../../tmp/Report")
    spooled.end()
    saved = home / "Documents" / "printed" / "tmp_Report.pdf"
    assert saved.read_bytes() == PDF
    assert stat.S_IMODE(saved.parent.stat().st_mode) == 0o755


def test_pdfsave_says_why_it_cannot(start: Start, home: Path) -> None:
    (home / "PDF").write_text("a file")
    spooled = start(PdfSave())
    spooled.print("Report")
    (job,) = spooled.end()
    assert job.state is JobState.FAILED
    assert job.detail == f"cannot save in {home / 'PDF'}: File exists"


def test_print_gives_the_document_to_the_printer(
    start: Start, cups: Cups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPS_SERVER", cups.environment["CUPS_SERVER"])
    spooled = start(Print(cups.queue))
    title = "-o raw; $(id) \"quoted\" 'Grüße'"
    spooled.print(title)
    (job,) = spooled.end()
    assert (job.state, job.detail) == (JobState.DONE, "printed on paper")
    wait_until(lambda: Printed(title, PDF) in cups.printed(), PATIENCE_S)


def test_print_without_a_printer_takes_the_default_one(
    start: Start, cups: Cups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPS_SERVER", cups.environment["CUPS_SERVER"])
    cups.make_default()
    spooled = start(Print())
    spooled.print("By default")
    (job,) = spooled.end()
    assert job.detail == "printed on the default printer"
    wait_until(lambda: Printed("By default", PDF) in cups.printed(), PATIENCE_S)


def test_print_tells_what_the_printer_system_said(
    start: Start, cups: Cups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPS_SERVER", cups.environment["CUPS_SERVER"])
    spooled = start(Print("no-such-printer"))
    spooled.print("Report")
    spooled.end()
    (failed,) = spooled.told.of(PrintJobFailed)
    assert isinstance(failed, PrintJobFailed)
    assert (failed.title, failed.action) == ("Report", "PRINT")
    assert failed.reason.startswith("lpr ended with status 1: lpr: Error")


def test_printcmd_gives_the_document_to_a_command_as_its_last_argument(
    start: Start, tmp_path: Path
) -> None:
    command = Program(tmp_path / "print it")
    spooled = start(PrintCommand(f"'{command}' -o sides=two"))
    spooled.print("-n; reboot")
    (job,) = spooled.end()
    assert job.state is JobState.DONE
    (call,) = command.calls()
    assert call.arguments[:2] == ["-o", "sides=two"]
    assert Path(call.arguments[2]).name == "n_reboot.pdf"
    assert call.content == PDF


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-command", "there is no no-such-command on this machine"),
        ("sh -c 'echo out of paper >&2; exit 3'", "status 3: out of paper"),
        ("lpr 'open", "cannot understand"),
        ("", "the command is empty"),
    ],
)
def test_printcmd_says_why_a_command_failed(
    command: str, reason: str, start: Start
) -> None:
    spooled = start(PrintCommand(command))
    spooled.print("Report")
    (job,) = spooled.end()
    assert job.state is JobState.FAILED
    assert reason in job.detail


def test_a_command_that_does_not_end_is_ended_with_the_session(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("x2go_session.services.programs.STOP_GRACE_S", 0.1)
    pid = tmp_path / "pid"
    spooled = start(PrintCommand(f"sh -c 'echo $$ >{pid}; exec sleep 1000'"))
    spooled.print("Report")
    wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"), PATIENCE_S)
    spooled.printing.stop()
    assert not Path(f"/proc/{int(pid.read_text())}").exists()
    (failed,) = spooled.told.of(PrintJobFailed)
    assert isinstance(failed, PrintJobFailed)
    assert "the session is over" in failed.reason


# The dialog.


def answering(answer: object) -> Callable[[Event], None]:
    """Return a subscriber that answers every question of printing."""

    def subscriber(event: Event) -> None:
        if isinstance(event, PrintQuestion):
            event.answer(answer)

    return subscriber


@pytest.mark.parametrize("answer", [PdfSave("chosen"), "pdfsave"])
def test_dialog_does_what_the_user_chose(
    answer: object, start: Start, session: Session, home: Path
) -> None:
    session.events.subscribe(answering(answer))
    spooled = start(Dialog())
    spooled.print("Report")
    (job,) = spooled.end()
    assert job.state is JobState.DONE
    (question,) = spooled.told.of(PrintQuestion)
    assert isinstance(question, PrintQuestion)
    assert (question.title, question.file) == ("Report", job.subject.file)
    assert len(list(home.rglob("Report.pdf"))) == 1


@pytest.mark.parametrize(
    ("answer", "state", "detail"),
    [
        (None, JobState.DONE, "dropped"),
        ("shred", JobState.FAILED, "unknown print action 'shred'"),
        (7, JobState.FAILED, "7 is no print action"),
        ("dialog", JobState.FAILED, "cannot choose another dialog"),
    ],
)
def test_dialog_drops_a_document_or_says_what_is_wrong_with_the_answer(
    answer: object, state: JobState, detail: str, start: Start, session: Session
) -> None:
    session.events.subscribe(answering(answer))
    spooled = start(Dialog())
    spooled.print("Report")
    (job,) = spooled.end()
    assert job.state is state
    assert detail in job.detail


def test_a_document_that_nobody_is_asked_about_in_time_is_saved(
    start: Start, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x2go_session.services.printing.ANSWER_TIMEOUT_S", 0.05)
    spooled = start(Dialog())
    spooled.print("Report")
    spooled.end()
    assert (home / "PDF" / "Report.pdf").read_bytes() == PDF


def test_an_open_dialog_ends_with_the_session(start: Start) -> None:
    spooled = start(Dialog())
    spooled.print("Report")
    wait_until(lambda: spooled.told.of(PrintQuestion), PATIENCE_S)
    spooled.printing.stop()
    (failed,) = spooled.told.of(PrintJobFailed)
    assert isinstance(failed, PrintJobFailed)
    assert failed.reason == "the session ended before there was an answer"
    assert not [t for t in threading.enumerate() if t.name.startswith("x2go-printing")]
    assert list(spooled.session.local_folder.iterdir()) == []
