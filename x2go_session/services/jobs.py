"""Jobs that files of the server give us: some at a time, and a history of the last."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Final

log = logging.getLogger("x2go_session.services.jobs")

# What X2Go clients remember.
HISTORY_LIMIT: Final = 100
# A desktop shows a handful of dialogs and viewers; whatever comes beyond waits.
RUNNING_LIMIT: Final = 8
# No user prints that much at once: a server that is broken, or hostile.
WAITING_LIMIT: Final = 1000


class JobState(Enum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    # The session ended before the job began.
    DROPPED = "dropped"


_TABLE: Final = {
    JobState.WAITING: frozenset(
        {JobState.RUNNING, JobState.FAILED, JobState.DROPPED},
    ),
    JobState.RUNNING: frozenset({JobState.DONE, JobState.FAILED}),
    JobState.DONE: frozenset[JobState](),
    JobState.FAILED: frozenset[JobState](),
    JobState.DROPPED: frozenset[JobState](),
}
_OVER: Final = frozenset(state for state, ways in _TABLE.items() if not ways)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a job is about. The file is there until the job is over."""

    title: str
    file: Path
    action: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was at one moment; `detail` says what was done, or why not."""

    number: int
    subject: Subject
    arrived: datetime
    state: JobState = JobState.WAITING
    detail: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in _OVER


Work = Callable[[threading.Event], str]
"""Does a job, and returns what was done; the event is set when it should hurry."""


class JobQueue:
    """Runs jobs on threads of its own, and tells `on_change` of each new state.

    For what may take long: a dialog, a printer, a viewer. `on_change` is called without
    a lock on the thread of the job, or that of `add` or `close`. `past` are jobs of a
    queue before this one. The methods may be called from any thread.
    """

    def __init__(
        self, name: str, on_change: Callable[[Job], None], past: Iterable[Job] = ()
    ) -> None:
        self._name = name
        self._on_change = on_change
        self._stop = threading.Event()
        # Protected by _lock.
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Work]] = deque()
        self._live: dict[int, Job] = {}
        self._history: deque[Job] = deque(past, maxlen=HISTORY_LIMIT)
        self._count = max((job.number for job in self._history), default=0)
        self._threads: set[threading.Thread] = set()

    @property
    def jobs(self) -> list[Job]:
        """The last hundred jobs that are over, then those that are not."""
        with self._lock:
            return [*self._history, *self._live.values()]

    def add(self, subject: Subject, work: Work) -> None:
        """Have `work` done as soon as a thread is free. Never blocks.

        Dropped after `close`, and failed if a thousand wait already.
        """
        with self._lock:
            self._count += 1
            job = Job(self._count, subject, datetime.now(UTC))
            self._live[job.number] = job
            full = len(self._waiting) >= WAITING_LIMIT
            closed = self._stop.is_set()
            if not full and not closed:
                self._waiting.append((job.number, work))
        if closed:
            self._move(job.number, JobState.DROPPED, "the session is over")
        elif full:
            self._move(job.number, JobState.FAILED, f"{WAITING_LIMIT} jobs wait")
        else:
            self._on_change(job)
            self._start_thread()

    def close(self, timeout_s: float) -> None:
        """Drop what has not begun; wait for what has, `timeout_s` for each."""
        with self._lock:
            self._stop.set()
            dropped = list(self._waiting)
            self._waiting.clear()
            threads = list(self._threads)
        for number, _ in dropped:
            self._move(number, JobState.DROPPED, "the session is over")
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout_s)

    def _start_thread(self) -> None:
        with self._lock:
            if not self._waiting or len(self._threads) >= RUNNING_LIMIT:
                return
            thread = threading.Thread(
                target=self._run, name=f"x2go-{self._name}", daemon=True
            )
            self._threads.add(thread)
            thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                number, work = self._waiting.popleft()
            self._move(number, JobState.RUNNING)
            try:
                detail = work(self._stop)
            except Exception as error:
                log.warning("job failed: queue=%s job=%d", self._name, number)
                self._move(number, JobState.FAILED, str(error) or repr(error))
            else:
                self._move(number, JobState.DONE, detail)

    def _move(self, number: int, state: JobState, detail: str = "") -> None:
        with self._lock:
            job = self._live[number]
            if state not in _TABLE[job.state]:
                raise ValueError(f"a job cannot go from {job.state} to {state}")
            job = replace(job, state=state, detail=detail)
            if job.is_over:
                del self._live[number]
                self._history.append(job)
            else:
                self._live[number] = job
        self._on_change(job)
