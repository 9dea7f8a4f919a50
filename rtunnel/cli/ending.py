"""End a command at SIGINT or SIGTERM: at once, and wherever its main thread waits.

A handler of Python runs on the main thread, between two of its instructions. A signal
that comes after the last look at them, but before the thread sleeps on a lock
(`Event.wait`, `Thread.join`), wakes nobody: CPython would run the handler when the
lock is given, which here is when the connection ends. What does happen at once is the
write to the wakeup descriptor. So a thread reads that, and sends the signal to the
main thread again until the handler has run.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Final

from rtunnel.cli.exit_status import ExitStatus

ENDING: Final = (signal.SIGINT, signal.SIGTERM)
# Who is told to end is gone within 2 s, whatever the server does. Closing waits for
# the server's answers; past this limit the kernel closes instead.
CLOSE_LIMIT_S: Final = 1.5
SEND_AGAIN_S: Final = 0.05
NO_OTHERS: Final[Mapping[int, Callable[[], None]]] = {}


class ToldToEnd(BaseException):
    """SIGINT or SIGTERM came. Not an Exception: nothing on the way may catch it."""


@contextmanager
def told_to_end_by_signals(
    others: Mapping[int, Callable[[], None]] = NO_OTHERS,
) -> Iterator[None]:
    """Raise `ToldToEnd` on the main thread at the first SIGINT or SIGTERM.

    From then on the process has `CLOSE_LIMIT_S` to clean up and end; more signals
    change nothing. A disposition "ignore" that a shell left for a job in the
    background is overruled: there is no other way to end a command cleanly. Main
    thread only.

    What `others` has for a signal is called when that comes, on another thread: it
    must not block.
    """
    told = threading.Event()
    main = threading.get_ident()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def handle(number: int, frame: FrameType | None) -> None:
        if not told.is_set():
            told.set()
            raise ToldToEnd

    def leave_to_watcher(number: int, frame: FrameType | None) -> None:
        """Do nothing: that there is a handler makes Python write the number."""

    def watch() -> None:
        while (number := reader.recv(1)) and number[0] not in ENDING:
            if number[0] in others:
                others[number[0]]()
        if not number:
            return
        limit = threading.Timer(CLOSE_LIMIT_S, os._exit, (ExitStatus.ENDED,))
        limit.daemon = True
        limit.start()
        while not told.wait(SEND_AGAIN_S):
            signal.pthread_kill(main, number[0])

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    numbers = (*ENDING, *others)
    handlers = [
        signal.signal(each, handle if each in ENDING else leave_to_watcher)
        for each in numbers
    ]
    try:
        yield
    finally:
        # Told to end, the process ends: its handlers stay, and swallow what follows.
        if not told.is_set():
            for each, handler in zip(numbers, handlers, strict=True):
                signal.signal(each, handler)
        signal.set_wakeup_fd(before)
        writer.close()
        watcher.join()
        reader.close()
