"""MIME box: what programs of the session drop is opened or saved on this machine.

The server mounts our folder. A file is complete when its writer closed it, which our
own SFTP server knows.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rtunnel.errors import RTunnelError
from x2go_session.errors import ServiceError, X2GoError
from x2go_session.events import (
    Event,
    MimeFileArrived,
    MimeFileDone,
    MimeFileFailed,
    SaveAsQuestion,
)
from x2go_session.services import FileEvent, FileEventKind, FolderSharing, ShareKind
from x2go_session.services.jobs import Job, JobState
from x2go_session.services.mime_actions import MimeAction, Open, SaveAs
from x2go_session.services.mime_queue import SETTLE_S, MimeQueue
from x2go_session.services.questions import Questions
from x2go_session.services.spool import Spool
from x2go_session.session import Session

STOP_TIMEOUT_S: Final = 5.0


class MimeBox:
    """Does with each file that a session drops what `action` says.

    `extensions` are the only types that are taken; without any, all are but those that
    may run. A file that is not taken is removed. `action` may be exchanged at any time.
    """

    name: Final = "mimebox"
    port: Final = 0

    def __init__(
        self,
        sharing: FolderSharing,
        action: MimeAction | None = None,
        extensions: Sequence[str] = (),
        settle_s: float = SETTLE_S,
    ) -> None:
        self._sharing = sharing
        self._action: MimeAction = Open() if action is None else action
        self._extensions = tuple(extensions)
        self._settle_s = settle_s
        self._session: Session | None = None
        self._spool: Spool | None = None
        self._queue: MimeQueue | None = None
        self._questions = Questions()
        self._past: list[Job] = []

    @property
    def environment(self) -> Mapping[str, str]:
        """Where programs of the session find the box."""
        if self._session is None:
            return {}
        return {"X2GO_MIMEBOX": f"{self._session.remote_folder}/mimebox"}

    @property
    def action(self) -> MimeAction:
        """What is done with each file; what is set holds for the next one."""
        return self._action

    @action.setter
    def action(self, action: MimeAction) -> None:
        self._action = action
        if self._queue is not None:
            self._queue.action = self._asking(action)

    @property
    def jobs(self) -> list[Job]:
        """The last hundred jobs that are over, then those that are not."""
        return self._queue.jobs if self._queue is not None else list(self._past)

    def start(self, session: Session) -> None:
        """Share the box, and take what is in it already. Blocks.

        Raises `ServiceError` where folder sharing does not run, and what else sharing
        a folder raises.
        """
        if not self._sharing.port:
            raise ServiceError(
                "no MIME box: it needs folder sharing, which does not run"
            )
        folder = session.local_folder.resolve()
        self._session = session
        self._questions = Questions()
        self._spool = Spool(folder / "mimebox", folder / "received")
        self._queue = MimeQueue(
            self._spool,
            self._asking(self._action),
            self._extensions,
            self._on_job,
            self._on_refused,
            self._settle_s,
            self._past,
        )
        try:
            self._sharing.share(
                self._spool.folder, kind=ShareKind.MIMEBOX, on_file=self._on_file
            )
        except BaseException:
            self.stop()
            raise
        self._queue.scan()

    def stop(self) -> None:
        """Unshare the box, end the jobs, remove what is left of them. Blocks.

        A program that shows a file stays.
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

    def _asking(self, action: MimeAction) -> MimeAction:
        if isinstance(action, SaveAs) and action.ask is None:
            return SaveAs(self._ask)
        return action

    def _ask(self, file: Path, _: threading.Event) -> Path | None:
        session = self._session
        if session is None:
            return None
        question = SaveAsQuestion(session=session.name, file=file)
        return self._questions.ask(session.events, question, None)

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
        name, action = job.subject.title, job.subject.action
        event: Event
        if job.state is JobState.WAITING:
            event = MimeFileArrived(session=session.name, file=job.subject.file)
        elif job.state is JobState.DONE:
            event = MimeFileDone(session=session.name, name=name, action=action)
        elif job.is_over:
            event = MimeFileFailed(session=session.name, name=name, reason=job.detail)
        else:
            return
        session.events.emit(event)

    def _on_refused(self, name: str, reason: str) -> None:
        session = self._session
        if session is not None:
            session.events.emit(
                MimeFileFailed(session=session.name, name=name, reason=reason)
            )
