"""The print spool: what x2goprint(8) leaves there, and the jobs that come of it.

The server moves `job.pdf` into the spool, writes `job.pdf.notready` and renames it to
`job.pdf.ready`. Its first line is the name of the PDF, its second the title.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Final

from x2go_session.services.inbox import Inbox
from x2go_session.services.jobs import Job, JobQueue, Subject
from x2go_session.services.print_actions import (
    DEFAULT_TITLE,
    Document,
    PrintAction,
    pdf_name,
)
from x2go_session.services.spool import (
    Spool,
    SpoolError,
    SpoolMissing,
    plain_name,
    remove_tree,
)

log = logging.getLogger("x2go_session.services.printing")

READY: Final = ".ready"
# Two lines: a name of a file (255 bytes at most), and a title of any length in reason.
READY_LIMIT_BYTES: Final = 8192


class BadReadyFile(SpoolError):
    """A `.ready` file that does not say which document is meant."""


def parse_ready(content: bytes) -> tuple[str, str]:
    """Return the name of the PDF and the title that a `.ready` file holds.

    Without a title it is "X2Go Print Job". Raises `BadReadyFile` for a name that is
    none, or that is hidden or of a `.ready` file.
    """
    lines = content.decode(errors="replace").split("\n")
    name = lines[0].strip() if lines else ""
    title = lines[1].strip() if len(lines) > 1 else ""
    try:
        plain_name(name)
    except SpoolError as error:
        raise BadReadyFile(f"a print job without a document: {error}") from None
    if name.startswith(".") or name.endswith(READY):
        raise BadReadyFile(f"a print job with {name!r} for a document")
    return name, title or DEFAULT_TITLE


class PrintQueue:
    """Takes documents out of a print spool, and does with each what `action` says.

    `on_job` is told of each job and its states, `on_refused` of what is no job (why);
    both on threads of this queue. `action` may be exchanged at any time; it holds for
    what arrives then. The methods may be called from any thread.
    """

    def __init__(
        self,
        spool: Spool,
        action: PrintAction,
        on_job: Callable[[Job], None],
        on_refused: Callable[[str], None],
        past: Iterable[Job] = (),
    ) -> None:
        self.action = action
        self._spool = spool
        self._on_refused = on_refused
        self._inbox = Inbox("printing", self._take, settle_s=0.0)
        self._queue = JobQueue("printing", on_job, past)

    @property
    def jobs(self) -> list[Job]:
        """The last hundred jobs that are over, then those that are not."""
        return self._queue.jobs

    def arrived(self, name: str) -> None:
        """Say that the spool has an entry of this name now. Never blocks.

        Only a `.ready` file makes a job, and each makes one, however often it is named.
        """
        if name.endswith(READY):
            self._inbox.add(name)

    def scan(self) -> None:
        """Take what came while nobody looked."""
        for name in self._spool.names():
            self.arrived(name)

    def close(self, timeout_s: float) -> None:
        """Take no more jobs, let those that run end, and remove what is left."""
        self._inbox.close(timeout_s)
        self._queue.close(timeout_s)
        self._spool.clean()

    def _take(self, name: str) -> None:
        try:
            content = self._spool.read(name, READY_LIMIT_BYTES)
        except SpoolMissing:
            return  # somebody said so twice
        except SpoolError as error:
            self._refuse(error)
            return
        try:
            pdf, title = parse_ready(content)
            path = self._spool.take(pdf, pdf_name(title))
        except SpoolError as error:
            self._refuse(error)
            return
        action = self.action

        def work(stop: threading.Event) -> str:
            try:
                return action.run(Document(path, title, stop))
            finally:
                remove_tree(path.parent)

        self._queue.add(Subject(title, path, action.name), work)

    def _refuse(self, error: SpoolError) -> None:
        log.warning("print job refused: %s", error)
        self._on_refused(str(error))
