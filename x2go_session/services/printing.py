"""Printing: what the session prints is viewed, saved or printed on this machine.

The server mounts our spool folder, and a document that is complete is announced there
by a rename. The rename is asked of our own SFTP server: so there is nothing to poll.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

from rtunnel.errors import RTunnelError
from x2go_session.errors import ServiceError, X2GoError
from x2go_session.events import (
    QUESTION_TIMEOUT_S,
    Event,
    PrintJobArrived,
    PrintJobDone,
    PrintJobFailed,
    PrintQuestion,
)
from x2go_session.services import FileEvent, FileEventKind, FolderSharing, ShareKind
from x2go_session.services.jobs import Job, JobState
from x2go_session.services.print_actions import (
    Dialog,
    Document,
    PdfSave,
    PdfView,
    PrintAction,
    PrintActionError,
    print_action,
)
from x2go_session.services.print_queue import PrintQueue
from x2go_session.services.programs import STOP_GRACE_S
from x2go_session.services.questions import Questions
from x2go_session.services.spool import Spool
from x2go_session.session import Session

ANSWER_TIMEOUT_S: Final = QUESTION_TIMEOUT_S
# A job that is under way when the session ends gets what its program gets, and a bit.
STOP_TIMEOUT_S: Final = STOP_GRACE_S + 2.0


class Printing:
    """Does with each document of a session what `action` says.

    A document of which a `Dialog` asks in vain (nobody subscribed to the events, or
    answered in time) is saved. `action` may be exchanged at any time.
    """

    name: Final = "printing"
    port: Final = 0

    def __init__(
        self, sharing: FolderSharing, action: PrintAction | None = None
    ) -> None:
        self._sharing = sharing
        self._action: PrintAction = PdfView() if action is None else action
        self._session: Session | None = None
        self._spool: Spool | None = None
        self._queue: PrintQueue | None = None
        self._questions = Questions()
        self._past: list[Job] = []

    @property
    def environment(self) -> Mapping[str, str]:
        """Where programs of the session find the spool."""
        if self._session is None:
            return {}
        return {"X2GO_SPOOLDIR": f"{self._session.remote_folder}/spool"}

    @property
    def action(self) -> PrintAction:
        """What is done with each document; what is set holds for the next one."""
        return self._action

    @action.setter
    def action(self, action: PrintAction) -> None:
        self._action = action
        if self._queue is not None:
            self._queue.action = self._asking(action)

    @property
    def jobs(self) -> list[Job]:
        """The last hundred jobs that are over, then those that are not."""
        return self._queue.jobs if self._queue is not None else list(self._past)

    def start(self, session: Session) -> None:
        """Share the spool, and take what is in it already. Blocks.

        Raises `ServiceError` where folder sharing does not run, and what else sharing
        a folder raises.
        """
        if not self._sharing.port:
            raise ServiceError(
                "no printing: it needs folder sharing, which does not run"
            )
        folder = session.local_folder.resolve()
        self._session = session
        self._questions = Questions()
        self._spool = Spool(folder / "spool", folder / "printing")
        self._queue = PrintQueue(
            self._spool,
            self._asking(self._action),
            self._on_job,
            self._on_refused,
            self._past,
        )
        try:
            self._sharing.share(
                self._spool.folder, kind=ShareKind.PRINT_SPOOL, on_file=self._on_file
            )
        except BaseException:
            self.stop()
            raise
        self._queue.scan()

    def stop(self) -> None:
        """Unshare the spool, end the jobs, remove what is left of them. Blocks.

        A job that is under way has 5 s left; a viewer stays.
        """
        spool, queue = self._spool, self._queue
        if spool is not None:
            with contextlib.suppress(X2GoError, RTunnelError, OSError):
                self._sharing.unshare(spool.folder)
        self._questions.close()
        if queue is not None:
            queue.close(STOP_TIMEOUT_S)
            self._past = [job for job in queue.jobs if job.is_over]
        self._session, self._spool, self._queue = None, None, None

    def _asking(self, action: PrintAction) -> PrintAction:
        if isinstance(action, Dialog) and action.ask is None:
            return Dialog(self._ask)
        return action

    def _ask(self, document: Document) -> PrintAction | None:
        session = self._session
        if session is None:
            return None
        question = PrintQuestion(
            session=session.name,
            file=document.path,
            title=document.title,
            timeout_s=ANSWER_TIMEOUT_S,
        )
        answer = self._questions.ask(session.events, question, PdfSave())
        if answer is None:
            return None
        if isinstance(answer, str):
            return print_action(answer)
        if isinstance(answer, PrintAction):
            return answer
        raise PrintActionError(f"{answer!r} is no print action")

    def _on_file(self, event: FileEvent) -> None:
        queue, spool = self._queue, self._spool
        if queue is None or spool is None or event.path.parent != spool.folder:
            return
        if event.kind is not FileEventKind.REMOVED:
            queue.arrived(event.path.name)

    def _on_job(self, job: Job) -> None:
        session = self._session
        if session is None:
            return
        title, action = job.subject.title, job.subject.action
        event: Event
        if job.state is JobState.WAITING:
            event = PrintJobArrived(
                session=session.name, file=job.subject.file, title=title
            )
        elif job.state is JobState.DONE:
            event = PrintJobDone(
                session=session.name, title=title, action=action, target=job.detail
            )
        elif job.is_over:
            event = PrintJobFailed(
                session=session.name, title=title, action=action, reason=job.detail
            )
        else:
            return
        session.events.emit(event)

    def _on_refused(self, reason: str) -> None:
        session = self._session
        if session is not None:
            session.events.emit(
                PrintJobFailed(
                    session=session.name,
                    title="",
                    action=self._action.name,
                    reason=reason,
                )
            )
