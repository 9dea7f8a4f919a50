"""The MIME box: files that programs of the session drop, and what is done with them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from x2go_session.services.inbox import Inbox
from x2go_session.services.jobs import Job, JobQueue, Subject
from x2go_session.services.mime_actions import MimeAction, refusal
from x2go_session.services.spool import Spool, SpoolError, file_name, remove_tree

log = logging.getLogger("x2go_session.services.mimebox")

# Programs touch a file before they write it, or set its times after they closed it.
SETTLE_S: Final = 0.5
FALLBACK_NAME: Final = "file"


class MimeQueue:
    """Takes complete files out of a MIME box, and does with each what `action` says.

    `on_job` is told of each job and its states, `on_refused` of each file that is not
    taken (name, reason); both on threads of this queue. `action` may be exchanged at
    any time; it holds for what arrives then. The methods may be called from any
    thread.
    """

    def __init__(
        self,
        spool: Spool,
        action: MimeAction,
        extensions: Sequence[str],
        on_job: Callable[[Job], None],
        on_refused: Callable[[str, str], None],
        settle_s: float = SETTLE_S,
        past: Iterable[Job] = (),
    ) -> None:
        self.action = action
        self._spool = spool
        self._extensions = tuple(extensions)
        self._on_refused = on_refused
        self._queue = JobQueue("mimebox", on_job, past)
        self._inbox = Inbox("mimebox", self._settled, settle_s)

    @property
    def jobs(self) -> list[Job]:
        """The last hundred jobs that are over, then those that are not."""
        return self._queue.jobs

    def arrived(self, name: str) -> None:
        """Say that a file of this name was closed, or renamed to it. Never blocks."""
        self._inbox.add(name)

    def scan(self) -> None:
        """Take what came while nobody looked."""
        for name in self._spool.names():
            self.arrived(name)

    def close(self, timeout_s: float) -> None:
        """Take no more files, let jobs that run end, and remove what is left."""
        self._inbox.close(timeout_s)
        self._queue.close(timeout_s)
        self._spool.clean()

    def _settled(self, name: str) -> None:
        reason = refusal(name, self._extensions)
        if reason is not None:
            self._refuse(name, reason)
            return
        safe_name = file_name(name, FALLBACK_NAME, blank=" ")
        try:
            path = self._spool.take(name, safe_name)
        except SpoolError as error:
            # Renamed or removed since: then there is nothing to do, or another call.
            log.debug("file not taken: %s", error)
            return
        # What became of the name may be another type.
        reason = refusal(safe_name, self._extensions)
        if reason is not None:
            remove_tree(path.parent)
            self._on_refused(name, reason)
            return
        action = self.action

        def work(stop: threading.Event) -> str:
            try:
                return action.run(path, stop)
            finally:
                remove_tree(path.parent)

        self._queue.add(Subject(name, path, action.name), work)

    def _refuse(self, name: str, reason: str) -> None:
        if name.startswith("."):
            # Being written under a temporary name; the rename makes it a job.
            log.debug("hidden file left alone")
            return
        self._spool.remove(name)
        self._on_refused(name, reason)
