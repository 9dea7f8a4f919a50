"""The one place from which messages of the connection protocol leave.

Theory of operation. paramiko's way to send waits while keys are exchanged (in slices of
0.1 s, for up to `clear_to_send_timeout`) and while the socket is full. Whoever waits
there must not be the transport's own thread, which has to read the key exchange to its
end, nor the reactor, which has other sockets to serve. So messages are queued, and one
thread sends them in order. Order is what the callers rely on: a request and its place
in the queue of replies, EOF behind data, nothing behind CLOSE.

Memory: data is bounded by its channel (see channel.py), which learns by `on_sent` when
to go on. Answers to the peer are not, if the peer asks without ever reading:
`BACKLOG_MESSAGES` ends such a connection.

A transport whose `_send_user_message` never blocks, but for channel data, says so by
an attribute `defers_user_messages`. Then there is no thread and messages go out
directly, unless a backend that sends data by this queue asked for it (`queue_all`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

from paramiko.ssh_exception import SSHException

from rtunnel.errors import DisconnectCode, ProtocolError
from rtunnel.ssh import seams
from rtunnel.ssh.disconnect import say_disconnect

log = logging.getLogger("rtunnel.ssh.outbox")

# Answers that may wait for a peer that does not read (x/crypto: CVE-2025-22869 was
# such a queue without an end).
BACKLOG_MESSAGES: Final = 65_536

_ATTRIBUTE: Final = "_rtunnel_outbox"


class Outbox:
    """The queue of messages to the peer, and the thread that sends them."""

    def __init__(self, transport: seams.AnyTransport) -> None:
        self._transport = transport
        self._direct = bool(getattr(transport, "defers_user_messages", False))
        # Everything below: protected by _ready. A leaf lock: nothing is called
        # while it is held, so any other lock may be.
        self._ready = threading.Condition(threading.Lock())
        self._queue: deque[tuple[bytes, Callable[[], object] | None]] = deque()
        self._answers = 0  # of them, the messages that nobody bounds
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._failure: ProtocolError | None = None

    @staticmethod
    def of(transport: seams.AnyTransport) -> Outbox:
        """Return the transport's outbox; the first call makes it."""
        outbox: Outbox = transport.__dict__.setdefault(_ATTRIBUTE, Outbox(transport))
        return outbox

    @property
    def failure(self) -> ProtocolError | None:
        """What the peer did wrong, when the connection was ended for it."""
        return self._failure

    def queue_all(self) -> None:
        """Let the thread send, whatever the transport says. Before the first `send`.

        For a backend that sends channel data: that waits for the key exchange and for
        room in the socket even there, and must not do so on the reactor's thread,
        which may hold the lock of a channel that the transport's thread wants.
        """
        self._direct = False

    def send(self, packet: bytes, on_sent: Callable[[], object] | None = None) -> None:
        """Queue one message (type byte first). Never blocks; any thread.

        `on_sent` is called when the message was handed to the kernel, on the
        sending thread. After the end of the connection nothing is sent.
        """
        if self._direct:
            seams.send(self._transport, packet)
            if on_sent is not None:
                on_sent()
            return
        with self._ready:
            if self._stopped:
                return
            self._queue.append((packet, on_sent))
            self._answers += on_sent is None
            overrun = self._answers > BACKLOG_MESSAGES
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="rtunnel-outbox", daemon=True
                )
                self._thread.start()
            elif len(self._queue) == 1:
                self._ready.notify_all()
        if overrun:
            log.error("peer does not read: waiting_messages=%d", BACKLOG_MESSAGES)
            self._failure = ProtocolError("the peer does not read what it asks for")
            self.stop()
            seams.abort(self._transport)

    def fail(self, error: ProtocolError) -> NoReturn:
        """End the connection with DISCONNECT, for something the peer did.

        Only for the transport's thread, which ends by the EOFError raised here. It
        waits a moment for the message to leave: the peer's log should have it.
        """
        with self._ready:
            self._failure = error
            self._stopped = True
            self._queue.clear()
            self._ready.notify_all()
        log.error("protocol error, disconnecting: %s", error)
        say_disconnect(lambda packet: seams.send_now(self._transport, packet), error)
        raise EOFError(str(error))

    def stop(self) -> None:
        """Drop what is queued and end the thread. Any thread, any number of times."""
        with self._ready:
            self._stopped = True
            self._queue.clear()
            self._ready.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, unless it is the caller."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._queue:
                    if self._stopped:
                        return
                    self._ready.wait()
                # Left in the queue while it is sent, so that `send` need not wake
                # a thread that is awake.
                packet, on_sent = self._queue[0]
            try:
                seams.send(self._transport, packet)
            except Exception as problem:
                # EOFError when the socket is gone; SSHException when the key
                # exchange does not end. Either way nothing more can be sent.
                log.debug("cannot send any more: error=%s", problem)
                if isinstance(problem, SSHException) and self._failure is None:
                    self._failure = ProtocolError(
                        str(problem), DisconnectCode.KEY_EXCHANGE_FAILED
                    )
                self.stop()
                seams.abort(self._transport)
                return
            if on_sent is not None:
                on_sent()
            with self._ready:
                self._answers -= on_sent is None
                if self._queue:
                    self._queue.popleft()
