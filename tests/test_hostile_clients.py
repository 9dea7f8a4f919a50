"""A client that has logged in, and breaks rules: at the gateway, and at a server.

The server is `rtunnel.Transport` in server mode. Either has one channel open with the
hostile client when it begins; at the gateway, another client is there, too, and has to
outlive it.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import paramiko
import pytest
from paramiko.message import Message

import rtunnel
from rtunnel.errors import RequestTimeout
from rtunnel.gateway.settings import Rights
from rtunnel.ssh import guards, outbox, seams
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.inbound import PeerDead
from rtunnel.window import MAX_PACKET_BYTES, RECEIVE_WINDOW_BYTES
from rtunnel.wire import Reader, boolean, string, u32
from tests.support.gateways import GatewayServer
from tests.support.hostile import (
    GCM,
    HostileTransport,
    bounded_memory,
    nothing_left,
)
from tests.support.pair import Host
from tests.support.sshd import wait_until
from tests.support.tunnels import TIMEOUT_S, read_all, read_exactly, visit

PROTOCOL_ERROR: Final = 2
PROHIBITED, UNKNOWN_TYPE, SHORTAGE = 1, 3, 4
LISTENERS_MAX: Final = 5
CHANNELS_MAX: Final = 20
# As many messages of 30,000 bytes are more than the process may grow by.
COUNT: Final = 3000
SIDES = u32(2**21) + u32(2**15)
DATA, EOF, CLOSE = (
    seams.MSG_CHANNEL_DATA,
    seams.MSG_CHANNEL_EOF,
    seams.MSG_CHANNEL_CLOSE,
)
# Every message of a channel, behind its number.
FIELDS = {
    seams.MSG_CHANNEL_OPEN_CONFIRMATION: u32(5) + SIDES,
    seams.MSG_CHANNEL_OPEN_FAILURE: u32(1) + string("no") + string(""),
    seams.MSG_CHANNEL_WINDOW_ADJUST: u32(1000),
    DATA: string(b"data"),
    seams.MSG_CHANNEL_EXTENDED_DATA: u32(1) + string(b"data"),
    EOF: b"",
    CLOSE: b"",
    seams.MSG_CHANNEL_REQUEST: string("x@test") + boolean(True),
    seams.MSG_CHANNEL_SUCCESS: b"",
    seams.MSG_CHANNEL_FAILURE: b"",
}


class HostileGuest(HostileTransport):
    """The client: it records what it is told, and answers nothing by itself."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.get_security_options().ciphers = GCM  # what the engine needs
        self.messages: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self.disconnect: tuple[int, str] | None = None
        table = seams.handler_table(self)
        for kind in range(seams.MSG_GLOBAL_REQUEST, seams.MSG_CHANNEL_FAILURE + 1):
            table[kind] = self._recorder(kind)
        self._parse_disconnect = self._on_disconnect

    def _recorder(self, kind: int) -> seams.Handler:
        return lambda message: self.messages.put((kind, seams.payload(message)))

    def _on_disconnect(self, message: Message) -> None:
        fields = Reader(seams.payload(message))
        self.disconnect = (fields.u32(), fields.text())

    def tell(self, kind: int, payload: bytes = b"") -> bool:
        """Send any message; False if the other side has hung up."""
        with contextlib.suppress(EOFError, OSError):
            self.say(kind, payload)
        return bool(self.is_active())

    def next(self, *kinds: int) -> tuple[int, Reader]:
        """Wait for the next message of one of these types; leave out others."""
        while True:
            kind, payload = self.messages.get(timeout=TIMEOUT_S)
            if kind in kinds:
                return kind, Reader(payload)

    def said_of(self, number: int, last: int) -> list[int]:
        """Return the types of what is said of a channel, up to one of this type."""
        said = []
        while True:
            kind, payload = self.messages.get(timeout=TIMEOUT_S)
            if kind in FIELDS and Reader(payload).u32() == number:
                said.append(kind)
                if kind == last:
                    return said

    def settle(self) -> None:
        """Wait until all was read and answered; forget the answers."""
        self.say(seams.MSG_GLOBAL_REQUEST, string("barrier@test") + boolean(True))
        self.next(seams.MSG_REQUEST_FAILURE)

    @contextlib.contextmanager
    def reading_nothing(self) -> Iterator[None]:
        """Read no more: its thread is held up by the next answer that comes."""
        read_on = threading.Event()
        table = seams.handler_table(self)
        for kind in (seams.MSG_REQUEST_FAILURE, seams.MSG_CHANNEL_FAILURE):
            table[kind] = lambda message: read_on.wait()
        try:
            yield
        finally:
            read_on.set()

    def expect_disconnect(self, text: str) -> None:
        """Wait for a DISCONNECT for a protocol error, and a line with `text` in it."""
        wait_until(lambda: self.disconnect is not None)
        assert self.disconnect is not None
        code, why = self.disconnect
        assert (code, text in why) == (PROTOCOL_ERROR, True), self.disconnect
        assert "\n" not in why


class Scene:
    """A hostile client, and its channel: `number` is the other side's, 7 is its own."""

    guest: HostileGuest
    number: int
    end: socket.socket | paramiko.Channel

    def open(self, ours: int) -> tuple[int, socket.socket | paramiko.Channel]:
        """Open a channel; return the other side's number, and its end of it."""
        raise NotImplementedError

    def data(self, data: bytes) -> bool:
        """Send CHANNEL_DATA; False if the other side has hung up."""
        return self.guest.tell(DATA, u32(self.number) + string(data))

    def receive(self, count: int) -> bytes:
        """Return what has come over the channel."""
        return read_exactly(self.end, count)

    def check_goes_on(self) -> None:
        """The channel still carries bytes, both ways."""
        self.data(b"still here")
        assert self.receive(10) == b"still here"
        self.end.sendall(b"and there")
        while True:  # what is said of other channels comes in between
            _, fields = self.guest.next(DATA)
            if fields.u32() == 7:
                assert fields.string() == b"and there"
                return


class Visited:
    """A client of a gateway, which has a port there, and one visitor."""

    def __init__(self, server: GatewayServer) -> None:
        self.guest = HostileGuest(
            socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
        )
        self.guest.start_client(timeout=TIMEOUT_S)
        key = paramiko.Ed25519Key.from_private_key_file(str(server.user_key))
        self.guest.auth_publickey(server.user, key)
        self.guest.say(
            seams.MSG_GLOBAL_REQUEST,
            string("tcpip-forward") + boolean(True) + string("localhost") + u32(0),
        )
        self.port = self.guest.next(seams.MSG_REQUEST_SUCCESS)[1].u32()
        self.number, self.visitor = self.visit(7)

    def arrive(self) -> tuple[int, socket.socket]:
        """Have a visitor come; return the gateway's number of the channel, and it."""
        visitor = socket.socket()
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        visitor.settimeout(TIMEOUT_S)
        visitor.connect(("127.0.0.1", self.port))
        _, fields = self.guest.next(seams.MSG_CHANNEL_OPEN)
        assert fields.text() == "forwarded-tcpip"
        return fields.u32(), visitor

    def visit(self, ours: int) -> tuple[int, socket.socket]:
        """Have a visitor come, and let it in."""
        number, visitor = self.arrive()
        self.guest.say(
            seams.MSG_CHANNEL_OPEN_CONFIRMATION, u32(number) + u32(ours) + SIDES
        )
        return number, visitor

    def close(self) -> None:
        self.visitor.close()
        self.guest.close()
        self.guest.join(TIMEOUT_S)


class AtGateway(Scene):
    """A gateway with two clients, of which one is hostile."""

    def __init__(self, server: GatewayServer) -> None:
        self.server = server
        self.hostile = Visited(server)
        self.other = Visited(server)
        self.guest = self.hostile.guest
        self.number, self.end = self.hostile.number, self.hostile.visitor

    def open(self, ours: int) -> tuple[int, socket.socket]:
        return self.hostile.visit(ours)

    def fill_sockets_soon(self) -> None:
        """Leave the clients' sockets with small buffers on the gateway's side."""
        for session in self.server.gateway._sessions:
            session.transport.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, 65536
            )

    def check_others_go_on(self) -> None:
        """The other client's visitor hears it, and it gets another one."""
        number, visitor = self.other.visit(8)
        with visitor:
            for each, where in (
                (self.other.number, self.other.visitor),
                (number, visitor),
            ):
                self.other.guest.say(DATA, u32(each) + string(b"and others"))
                assert read_exactly(where, 10) == b"and others"

    def check_nothing_listens(self) -> None:
        """The port of the hostile client has gone with it."""

        def is_closed() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", self.hostile.port)) != 0

        wait_until(is_closed)

    def close(self) -> None:
        self.check_others_go_on()
        self.hostile.close()
        self.check_nothing_listens()
        self.other.close()


class AtServer(Scene):
    """A `rtunnel.Transport` in server mode, with a session open."""

    def __init__(self, backend: str) -> None:
        ours, theirs = socket.socketpair()
        self.server = rtunnel.Transport(theirs, backend=backend)
        self.server.add_server_key(paramiko.ECDSAKey.generate())
        self.guest = HostileGuest(ours)
        self.server.start_server(threading.Event(), Host())
        self.guest.start_client(timeout=TIMEOUT_S)
        self.guest.auth_none("guest")
        assert self.server.engine_status.active == (backend == "engine")
        self.number, self.end = self.open(7)

    def open(self, ours: int) -> tuple[int, paramiko.Channel]:
        self.guest.say(seams.MSG_CHANNEL_OPEN, string("session") + u32(ours) + SIDES)
        _, fields = self.guest.next(seams.MSG_CHANNEL_OPEN_CONFIRMATION)
        assert fields.u32() == ours
        channel = self.server.accept(TIMEOUT_S)
        assert channel is not None
        channel.settimeout(TIMEOUT_S)
        return fields.u32(), channel

    def close(self) -> None:
        for transport in (self.guest, self.server):
            transport.close()
            transport.join(TIMEOUT_S)


@pytest.fixture
def gateway(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AtGateway]:
    monkeypatch.setenv("RTUNNEL_BACKEND", backend)
    rights = Rights(listeners_max=LISTENERS_MAX, channels_max=CHANNELS_MAX)
    with nothing_left(), GatewayServer(tmp_path, rights=rights) as server:
        scene = AtGateway(server)
        yield scene
        scene.close()


@pytest.fixture
def server(backend: str) -> Iterator[AtServer]:
    with nothing_left():
        scene = AtServer(backend)
        yield scene
        scene.close()


@pytest.fixture(params=["gateway", "server"])
def scene(request: pytest.FixtureRequest, backend: str) -> Scene:
    found: Scene = request.getfixturevalue(request.param)
    return found


# Windows (RFC 4254, section 5.2).


def test_data_over_the_window_ends_the_connection(scene: Scene) -> None:
    # Nobody reads; what the sockets take on the way is credited, and no more.
    with bounded_memory():
        for _ in range(2000):
            if not scene.data(bytes(MAX_PACKET_BYTES)):
                break
        scene.guest.expect_disconnect("window")


def test_a_packet_over_the_maximum_ends_the_connection(scene: Scene) -> None:
    scene.data(bytes(MAX_PACKET_BYTES + 1))
    scene.guest.expect_disconnect("maximum packet")


def test_a_window_that_overflows_ends_the_connection(scene: Scene) -> None:
    for _ in range(2):
        scene.guest.tell(
            seams.MSG_CHANNEL_WINDOW_ADJUST, u32(scene.number) + u32(2**32 - 1)
        )
    scene.guest.expect_disconnect("2^32")


def test_an_open_with_packets_of_0_bytes_ends_the_connection(scene: Scene) -> None:
    scene.guest.tell(
        seams.MSG_CHANNEL_OPEN, string("session") + u32(2) + u32(2**21) + u32(0)
    )
    scene.guest.expect_disconnect("0 bytes")


@pytest.mark.parametrize("kind", [0, 1, 2, 2**32 - 1])
def test_extended_data_is_dropped_and_credited(gateway: AtGateway, kind: int) -> None:
    window = RECEIVE_WINDOW_BYTES
    piece = u32(gateway.number) + u32(kind) + string(bytes(MAX_PACKET_BYTES))
    for _ in range(2 * RECEIVE_WINDOW_BYTES // MAX_PACKET_BYTES):
        while window < MAX_PACKET_BYTES:
            _, fields = gateway.guest.next(seams.MSG_CHANNEL_WINDOW_ADJUST)
            assert fields.u32() == 7
            window += fields.u32()
        gateway.guest.say(seams.MSG_CHANNEL_EXTENDED_DATA, piece)
        window -= MAX_PACKET_BYTES
    gateway.check_goes_on()


# Channels and answers that are not there.


def test_messages_for_channels_that_never_were_are_dropped(scene: Scene) -> None:
    for kind, fields in FIELDS.items():
        for number in (scene.number + 50, 0x40000001, 2**32 - 1):
            scene.guest.say(kind, u32(number) + fields)
    scene.guest.settle()
    scene.check_goes_on()


def test_answers_that_nobody_waits_for_are_dropped(scene: Scene) -> None:
    for _ in range(100):
        scene.guest.say(seams.MSG_REQUEST_SUCCESS, u32(1))
        scene.guest.say(seams.MSG_REQUEST_FAILURE)
        for kind in (
            seams.MSG_CHANNEL_OPEN_CONFIRMATION,
            seams.MSG_CHANNEL_OPEN_FAILURE,
            seams.MSG_CHANNEL_SUCCESS,
            seams.MSG_CHANNEL_FAILURE,
        ):
            scene.guest.say(kind, u32(scene.number) + FIELDS[kind])
    scene.guest.settle()
    scene.check_goes_on()


def test_a_reply_that_never_comes_is_a_timeout_and_the_rest_goes_on(
    server: AtServer,
) -> None:
    with pytest.raises(RequestTimeout, match="did not answer"):
        Connection.of(server.server).request("question", timeout_s=0.05)
    server.check_goes_on()


def test_a_client_that_refused_a_visitor_has_no_channel_for_it(
    gateway: AtGateway,
) -> None:
    number, visitor = gateway.hostile.arrive()
    with visitor:
        refusal = FIELDS[seams.MSG_CHANNEL_OPEN_FAILURE]
        gateway.guest.say(seams.MSG_CHANNEL_OPEN_FAILURE, u32(number) + refusal)
        for kind, fields in FIELDS.items():
            gateway.guest.say(kind, u32(number) + fields)
        assert read_all(visitor) == b""
        gateway.guest.settle()
    gateway.check_goes_on()


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        (91, u32(9) + u32(2**21) + u32(0), "0 bytes"),
        (91, u32(9) + u32(2**21), "cut short"),
        (92, u32(1) + u32(2**32 - 1) + b"x", "cut short"),
    ],
    ids=["packets of 0 bytes", "a short CONFIRMATION", "a FAILURE that lies"],
)
def test_an_answer_that_breaks_a_rule_ends_the_connection_and_the_visit(
    gateway: AtGateway, kind: int, fields: bytes, why: str
) -> None:
    number, visitor = gateway.hostile.arrive()
    with visitor:
        gateway.guest.tell(kind, u32(number) + fields)
        gateway.guest.expect_disconnect(why)
        with contextlib.suppress(ConnectionResetError):
            assert visitor.recv(1) == b""


def test_visitors_whose_opens_are_not_answered_are_limited_and_end_with_the_client(
    gateway: AtGateway,
) -> None:
    with contextlib.ExitStack() as stack:
        waiting = [
            stack.enter_context(gateway.hostile.arrive()[1])
            for _ in range(CHANNELS_MAX - 1)  # one is there
        ]
        for _ in range(3):
            with visit(gateway.hostile.port) as one_too_many:
                assert read_all(one_too_many) == b""
        gateway.check_goes_on()
        gateway.guest.close()
        for visitor in waiting:
            with contextlib.suppress(ConnectionResetError):
                assert visitor.recv(1) == b""


# Ends, in every order and twice.


def test_data_eof_and_close_in_every_order_end_a_channel_once(scene: Scene) -> None:
    orders = [o for o in itertools.product((DATA, EOF, CLOSE), repeat=3) if CLOSE in o]
    for ours, order in enumerate(orders, 10):
        number, end = scene.open(ours)
        for kind in order:
            scene.guest.say(kind, u32(number) + FIELDS[kind])
        # What came before the first end is delivered.
        before = itertools.takewhile(lambda kind: kind == DATA, order)
        assert read_all(end) == b"data" * len(list(before)), order
        assert scene.guest.said_of(ours, CLOSE).count(EOF) <= 1
        for kind, fields in FIELDS.items():
            scene.guest.say(kind, u32(number) + fields)
        scene.guest.settle()
        end.close()
    scene.check_goes_on()


# Requests.


def test_requests_on_a_channel_are_refused_if_an_answer_is_wanted(
    scene: Scene,
) -> None:
    for kind in ("exec", "subsystem", "exit-status", "x@test", ""):
        for wants_reply in (False, True):
            fields = string(kind) + boolean(wants_reply) + string("refuse me")
            scene.guest.say(seams.MSG_CHANNEL_REQUEST, u32(scene.number) + fields)
        _, fields_back = scene.guest.next(
            seams.MSG_CHANNEL_FAILURE, seams.MSG_CHANNEL_SUCCESS
        )
        assert fields_back.u32() == 7
    assert scene.guest.is_active()
    scene.check_goes_on()


# Floods.


def test_messages_that_mean_nothing_cost_nothing(scene: Scene) -> None:
    number = u32(scene.number)
    large = string(bytes(30_000))
    for kind, payload in (
        (2, large),  # IGNORE
        (4, boolean(True) + large + string("")),  # DEBUG
        (192, large),  # PING
        (seams.MSG_GLOBAL_REQUEST, string("hostkeys-00@openssh.com") + boolean(False)),
        (seams.MSG_CHANNEL_WINDOW_ADJUST, number + u32(0)),
        (DATA, number + string(b"")),
        (seams.MSG_CHANNEL_EXTENDED_DATA, number + u32(1) + string(b"")),
    ):
        with bounded_memory():
            for _ in range(COUNT if large in payload else COUNT // 3):
                scene.guest.say(kind, payload)
            scene.guest.settle()
    scene.check_goes_on()


def test_packets_of_one_byte_arrive_and_are_bounded(scene: Scene) -> None:
    with bounded_memory():
        for _ in range(2 * COUNT):
            scene.data(b"x")
        scene.guest.settle()
    assert scene.receive(2 * COUNT) == b"x" * (2 * COUNT)
    scene.check_goes_on()


def test_a_flood_of_listens_gets_as_many_as_the_rights_have(
    gateway: AtGateway,
) -> None:
    ask = string("tcpip-forward") + boolean(True) + string("localhost") + u32(0)
    with bounded_memory():
        for _ in range(500):
            gateway.guest.say(seams.MSG_GLOBAL_REQUEST, ask)
        answers = [
            gateway.guest.next(seams.MSG_REQUEST_SUCCESS, seams.MSG_REQUEST_FAILURE)[0]
            for _ in range(500)
        ]
    # Either client had one before, and the limit is their user's.
    assert answers.count(seams.MSG_REQUEST_SUCCESS) == LISTENERS_MAX - 2
    gateway.check_goes_on()


def test_a_client_that_asks_and_never_reads_is_cut_off(
    gateway: AtGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What waits behind a socket that is full; the engine has a limit of its own.
    monkeypatch.setattr(outbox, "BACKLOG_MESSAGES", 2000)
    gateway.fill_sockets_soon()
    question = u32(gateway.number) + string("x@test") + boolean(True)

    def ask_on_and_on() -> None:
        while True:
            gateway.guest.say(seams.MSG_CHANNEL_REQUEST, question)

    with gateway.guest.reading_nothing(), bounded_memory():
        with pytest.raises((EOFError, OSError)):
            ask_on_and_on()
        gateway.check_nothing_listens()
    gateway.check_others_go_on()


@pytest.mark.parametrize("backend", ["pump", "python"])
def test_who_reads_nothing_for_as_long_as_it_may_be_silent_is_dead(
    server: AtServer,
) -> None:
    # Here the connection's own thread waits for room in the socket.
    server.server.set_keepalive(0.3, 2)
    question = u32(server.number) + string("x@test") + boolean(True)
    with server.guest.reading_nothing():
        while server.guest.tell(seams.MSG_CHANNEL_REQUEST, question):
            if not server.server.is_active():
                break
        wait_until(lambda: not server.server.is_active())
    assert isinstance(server.server.get_exception(), PeerDead)


def test_a_flood_of_opens_is_refused_one_by_one(gateway: AtGateway) -> None:
    where = string("127.0.0.1") + u32(1)
    kinds = ("session", "direct-tcpip", "x11", "nobody@test")
    numbered = list(enumerate(kinds * 250))
    with bounded_memory():
        for number, kind in numbered:
            gateway.guest.say(
                seams.MSG_CHANNEL_OPEN,
                string(kind) + u32(number) + SIDES + where + where,
            )
        for number, kind in numbered:
            _, fields = gateway.guest.next(seams.MSG_CHANNEL_OPEN_FAILURE)
            code = PROHIBITED if kind in kinds[:2] else UNKNOWN_TYPE
            assert (fields.u32(), fields.u32()) == (number, code)
    gateway.check_goes_on()


def test_opens_that_nobody_accepts_are_refused(
    server: AtServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guards.ACCEPT_QUEUE_MAX == 4096
    monkeypatch.setattr(guards, "ACCEPT_QUEUE_MAX", 20)
    with bounded_memory():
        for _ in range(100):
            server.guest.say(seams.MSG_CHANNEL_OPEN, string("session") + u32(1) + SIDES)
        answers = [
            server.guest.next(
                seams.MSG_CHANNEL_OPEN_CONFIRMATION, seams.MSG_CHANNEL_OPEN_FAILURE
            )
            for _ in range(100)
        ]
    refused = [it for kind, it in answers if kind == seams.MSG_CHANNEL_OPEN_FAILURE]
    assert len(refused) == 80
    for fields in refused:
        assert (fields.u32(), fields.u32()) == (1, SHORTAGE)
    server.check_goes_on()


# Lengths that lie.


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("tcpip-forward", 2**32 - 1),
        ("cancel-tcpip-forward", 5),
        ("kind", 2**31),
        ("open", 2**32 - 1),
        ("request", 5),
    ],
)
def test_a_length_that_lies_ends_the_connection(
    scene: Scene, kind: str, length: int
) -> None:
    lie = u32(length) + b"x"
    if kind == "open":
        scene.guest.tell(seams.MSG_CHANNEL_OPEN, lie)
    elif kind == "request":
        scene.guest.tell(seams.MSG_CHANNEL_REQUEST, u32(scene.number) + lie)
    elif kind == "kind":
        scene.guest.tell(seams.MSG_GLOBAL_REQUEST, lie)
    else:
        scene.guest.tell(seams.MSG_GLOBAL_REQUEST, string(kind) + boolean(True) + lie)
    scene.guest.expect_disconnect("the peer sent a m")  # message that is cut short


# Key exchange.


def test_new_keys_in_the_middle_of_a_transfer_lose_nothing(scene: Scene) -> None:
    sent = bytes(range(256)) * 64
    got = b""
    for _ in range(3):
        scene.data(sent)
        scene.guest.renegotiate_keys()
        scene.data(sent)
        got += scene.receive(2 * len(sent))
    assert got == sent * 6
    scene.check_goes_on()
