"""Programs of the desktop: a viewer, a printer's command, started with a file."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO, Final

from x2go_session.errors import ServiceError

# xdg-open and its like return at once; whoever opens the file in the end comes later.
LAUNCH_WAIT_S: Final = 20.0
# At the end of a session, for a program that is printing.
STOP_GRACE_S: Final = 5.0
POLL_S: Final = 0.05
# Of what a program wrote to stderr, for the message about its failure.
TAIL_BYTES: Final = 300


class ProgramError(ServiceError):
    """A program could not be started, or said that it failed."""


class ProgramMissing(ProgramError):
    """There is no such program on this machine."""


def split(command: str) -> list[str]:
    """Return the words of a command, which may be quoted as in a shell.

    Raises `ProgramError` for one without words, or with an open quote.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ProgramError(f"cannot understand {command!r}: {error}") from None
    if not words:
        raise ProgramError("the command is empty: name a program")
    return words


def run(argv: Sequence[str], stop: threading.Event) -> None:
    """Run a program to its end; after `stop` it has 5 s left.

    Blocks meanwhile. Raises `ProgramMissing`; `ProgramError` if its exit status is
    not 0, or if it had to be ended.
    """
    with tempfile.TemporaryFile() as errors:
        process = _start(argv, errors)
        while (status := _wait(process, POLL_S)) is None and not stop.is_set():
            pass
        if status is None:
            status = _wait(process, STOP_GRACE_S)
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise ProgramError(f"{argv[0]} was ended, since the session is over")
        if status:
            errors.seek(0)
            tail = errors.read()[-TAIL_BYTES:].decode(errors="replace")
            raise ProgramError(_failure(argv[0], status, " ".join(tail.split())))


def launch(
    argv: Sequence[str], stop: threading.Event, wait_s: float = LAUNCH_WAIT_S
) -> None:
    """Start a program that shows a file, and wait until it does not need it any more.

    That is when it ended, but not before `wait_s`: it may have started another one.
    `stop` ends the waiting, not the program: the user looks at a document. Raises
    `ProgramMissing`; `ProgramError` if its exit status is not 0.
    """
    deadline = time.monotonic() + wait_s
    process = _start(argv, subprocess.DEVNULL)
    while (status := _wait(process, POLL_S)) is None:
        if stop.is_set():
            # Waited for in the end, so that no zombie stays.
            threading.Thread(
                target=process.wait, name=f"x2go-left-{process.pid}", daemon=True
            ).start()
            return
    if status:
        raise ProgramError(_failure(argv[0], status, ""))
    stop.wait(max(0.0, deadline - time.monotonic()))


def _start(argv: Sequence[str], errors: int | IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise ProgramMissing(
            f"there is no {argv[0]} on this machine: install it, or name another"
        ) from None
    except OSError as error:
        raise ProgramError(f"cannot start {argv[0]}: {error.strerror}") from error


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _failure(program: str, status: int, said: str) -> str:
    how = f"status {status}" if status > 0 else f"signal {-status}"
    return f"{program} ended with {how}" + (f": {said}" if said else "")
