"""One connection on one backend, with its scripted peer and its targets, as it is seen.

The peer sees messages, the targets see bytes and ends. What differs between backends
for good reasons, how data is cut into packets and when credit is given, is not in a
view; what a view has must be the same for all of them.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rtunnel.addresses import parse_bind
from rtunnel.errors import OpenFailureCode, RequestRefused, RTunnelError
from rtunnel.forwards import Forward
from rtunnel.ssh import seams
from rtunnel.ssh.arrivals import ChannelOpen
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.relay import Relay, RelayEnd
from rtunnel.wire import Reader, boolean, string, u32
from tests.support.peer import TIMEOUT_S, ScriptedPeer
from tests.support.sshd import wait_until
from tests.support.tunnels import transport_class

BARRIER = "barrier@test"
# What is said and written: of each byte it can be seen where it belongs.
STREAM = bytes(i * 167 + (i >> 8) & 255 for i in range(1 << 16)) * 46


class Ears(queue.Queue[tuple[int, bytes]]):
    """What the peer hears. While they are shut its transport reads nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()

    def put(self, *args: Any, **kwargs: Any) -> None:
        self.open.wait(TIMEOUT_S)
        super().put(*args, **kwargs)


@dataclass
class Visit:
    """One channel: what was said and heard on it, and what its target got."""

    port: int
    number: int  # of the peer
    window: int
    max_packet: int
    target: socket.socket
    ours: socket.socket
    local_id: int = -1
    relay: Relay | None = None
    ends: list[RelayEnd] = field(default_factory=list)
    # What the peer heard.
    heard: bytes = b""
    heard_end: str = ""  # then "EOF", then "EOF CLOSE", or "CLOSE"
    refused: int = 0
    failures: int = 0
    credit: int = 0
    # What the target got.
    reading: bool = True
    got: bytes = b""
    got_end: str = ""

    def read(self) -> None:
        """Take what has come to the target, unless it is slow."""
        while self.reading and not self.got_end and self.target.fileno() >= 0:
            try:
                data = self.target.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.got_end = "end"  # AF_UNIX tells resets in one backend's way only
                return
            self.got += data
            if not data:
                self.got_end = "end"


class World:
    """A connection of one backend to a peer that a test speaks for."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.peer = ScriptedPeer(transport_class(backend))
        self.ears = self.peer.messages = Ears()
        self.connection = Connection.of(self.peer.client, backend)
        self.visits: list[Visit] = []
        self.forwards: dict[int, Forward] = {}
        self.paused: set[int] = set()
        self.answers: list[str] = []
        self.requests: list[bytes] = []  # global ones that were heard, unanswered
        self.barriers = 0
        self.strange: list[int] = []  # messages that belong to nothing
        self._threads: list[threading.Thread] = []

    # What the peer hears.

    def collect(self) -> None:
        """Sort what the peer has heard so far; read what the targets got."""
        while True:
            try:
                kind, payload = self.peer.messages.get_nowait()
            except queue.Empty:
                break
            self._sort(kind, Reader(payload))
        for visit in self.visits:
            visit.read()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Collect until a condition is true."""

        def is_true_now() -> object:
            self.collect()
            return condition()

        wait_until(is_true_now, TIMEOUT_S)

    def _sort(self, kind: int, fields: Reader) -> None:
        if kind == seams.MSG_GLOBAL_REQUEST:
            self.requests.append(fields.string())
            return
        if kind in (seams.MSG_REQUEST_SUCCESS, seams.MSG_REQUEST_FAILURE):
            self.barriers += 1
            return
        number = fields.u32()
        found = [visit for visit in self.visits if visit.number == number]
        if not found or found[0].heard_end.endswith("CLOSE"):
            self.strange.append(kind)
            return
        visit = found[0]
        match kind:
            case seams.MSG_CHANNEL_OPEN_CONFIRMATION:
                visit.local_id = fields.u32()
                visit.credit = fields.u32()
            case seams.MSG_CHANNEL_OPEN_FAILURE:
                visit.refused = fields.u32()
            case seams.MSG_CHANNEL_WINDOW_ADJUST:
                visit.credit += fields.u32()
            case seams.MSG_CHANNEL_DATA:
                data = fields.string()
                assert 0 < len(data) <= visit.max_packet
                assert visit.heard_end == ""
                visit.heard += data
                assert len(visit.heard) <= visit.window
            case seams.MSG_CHANNEL_EOF:
                assert visit.heard_end == ""
                visit.heard_end = "EOF"
            case seams.MSG_CHANNEL_CLOSE:
                visit.heard_end = f"{visit.heard_end} CLOSE".strip()
            case seams.MSG_CHANNEL_FAILURE:
                visit.failures += 1
            case _:
                self.strange.append(kind)

    def view(self) -> dict[str, Any]:
        """What can be seen from outside, now."""
        self.collect()
        return {
            "answers": list(self.answers),
            "requests": list(self.requests),
            "strange": list(self.strange),
            "cut": self.peer.disconnect and self.peer.disconnect[0],
            "over": not self.peer.client.is_active(),
            "visits": [
                {
                    "refused": visit.refused,
                    "confirmed": visit.local_id >= 0,
                    "failures": visit.failures,
                    "heard": visit.heard,
                    "heard_end": visit.heard_end,
                    "got": visit.got,
                    "got_end": visit.got_end,
                    "ends": [end.reason for end in visit.ends],
                }
                for visit in self.visits
            ],
        }

    def barrier(self) -> None:
        """Wait until the client has read all that the peer has said."""
        wanted = self.barriers + 1
        self.peer.send(seams.MSG_GLOBAL_REQUEST, string(BARRIER) + boolean(True))
        self.wait_for(lambda: self.barriers >= wanted)

    # What the peer says.

    def say(self, kind: int, visit: Visit, fields: bytes = b"") -> None:
        """Say a message of a channel."""
        self.peer.send(kind, u32(visit.local_id) + fields)

    def open(self, port: int, window: int, max_packet: int) -> None:
        """Open a channel to a port, requested or not."""
        target, ours = socket.socketpair()
        target.setblocking(False)
        visit = Visit(port, 100 + len(self.visits), window, max_packet, target, ours)
        self.visits.append(visit)
        self.peer.open_forwarded(port, "localhost", visit.number, window, max_packet)
        self.wait_for(lambda: visit.refused or (visit.local_id >= 0 and visit.relay))
        if visit.refused:
            ours.close()

    # What we do.

    def _on_open(self, pending: ChannelOpen) -> None:
        visit = next(v for v in self.visits if v.number == pending.peer.remote_id)
        if visit.port in self.paused:
            pending.reject(OpenFailureCode.ADMINISTRATIVELY_PROHIBITED, "paused")
            return
        visit.relay = pending.accept(visit.ours, visit.ends.append)

    def _ask(self, question: Callable[[], object]) -> None:
        """Ask the peer something on another thread, and see that it was asked."""

        def ask() -> None:
            try:
                answer = question()
            except RequestRefused:
                self.answers.append("refused")
            except RTunnelError as error:
                self.answers.append(type(error).__name__)
            else:
                self.answers.append(repr(answer))

        asked = len(self.requests)
        thread = threading.Thread(target=ask)
        self._threads.append(thread)
        thread.start()
        self.wait_for(lambda: len(self.requests) > asked)

    def listen(self, port: int) -> None:
        """Have a port requested."""
        forward = self.forwards[port] = Forward(parse_bind(port))
        self._ask(
            lambda: self.connection.listen(forward, self._on_open, diagnose=False)
        )

    def cancel(self, port: int) -> None:
        """Have a port cancelled."""
        forward = self.forwards.pop(port)
        self._ask(lambda: self.connection.cancel(forward))

    def pause(self, port: int) -> None:
        """Turn visitors away and reset those that are here, as a listener does."""
        self.paused.add(port)
        for visit in self.visits:
            if visit.port == port and visit.relay is not None:
                visit.relay.reset()

    def request(self) -> None:
        """Ask a question that means nothing."""
        self._ask(lambda: self.connection.request("question@test"))

    def answer(self, granted: bool) -> None:
        """Have the peer answer the oldest question; none was asked: an unasked one."""
        if granted:
            self.peer.grant()
        else:
            self.peer.refuse()
        if self.requests:
            del self.requests[0]
            thread = self._threads.pop(0)
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()

    def lose(self) -> None:
        """Lose the connection under everything that goes on, and see it noticed."""
        self.peer.transport.close()
        wait_until(lambda: not self.peer.client.is_active(), TIMEOUT_S)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()

    def close(self) -> None:
        """End the connection and everything in it."""
        self.ears.open.set()
        self.peer.close()
        for visit in self.visits:
            visit.target.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
