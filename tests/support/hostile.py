"""A peer that breaks rules: any message, in any state, or bytes that are no message.

The keys are exchanged by paramiko's parts, so that what goes wrong is only what the
test does. `HostileServer` is met by a client of ours, `HostileClient` meets a server of
ours; both record what they are sent, and answer nothing by themselves.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import paramiko
import pytest
from paramiko.message import Message
from paramiko.packet import Packetizer

import rtunnel
from rtunnel.errors import ConnectionLost
from rtunnel.ssh import seams
from rtunnel.ssh.connection import Connection
from rtunnel.wire import Reader, string, u32
from tests.support.peer import ScriptedPeer
from tests.support.sshd import wait_until
from tests.support.tunnels import TIMEOUT_S, read_exactly

KEXINIT, NEWKEYS = 20, 21
PORT: Final = 8080
GCM = ("aes128-gcm@openssh.com",)
# One cipher for each way in which a packet is framed and protected.
CTR_WITH_MAC = (("aes128-ctr",), ("hmac-sha2-256",))
CTR_WITH_MAC_OVER_CIPHERTEXT = (("aes128-ctr",), ("hmac-sha2-256-etm@openssh.com",))

# What the process may grow by while a peer floods it. Every flood of the tests is many
# times as much, and what one connection may hold by its limits is less than half.
GROWTH_MAX_BYTES: Final = 64 * 1024 * 1024

Tamper = Callable[[bytes], bytes]


class HostilePacketizer(Packetizer):
    """Seals what it is told to, and spoils it as it is told to."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        # What is done to the next packet on the wire, to the next one with the newest
        # keys, and to the next one before it is sealed.
        self.tamper: Tamper | None = None
        self.tamper_sealed: Tamper | None = None
        self.misframe: Tamper | None = None
        # What is said right before our next message of a type, and right behind it.
        self.before: dict[int, Callable[[], None]] = {}
        self.behind: dict[int, Callable[[], None]] = {}
        self.compressor: Any = None

    def send_message(self, data: Message) -> None:
        kind = data.asbytes()[0]
        if kind in self.before:
            self.before.pop(kind)()
        if self.tamper_sealed is not None and kind != NEWKEYS:
            self.tamper, self.tamper_sealed = self.tamper_sealed, None
        super().send_message(data)
        if kind in self.behind:
            self.behind.pop(kind)()

    def write_all(self, out: bytes) -> None:
        tamper, self.tamper = self.tamper, None
        try:
            super().write_all(tamper(out) if tamper else out)
        except EOFError:
            # Its own thread goes on reading: the DISCONNECT may still be there.
            if not isinstance(threading.current_thread(), paramiko.Transport):
                raise

    def _build_packet(self, payload: bytes) -> bytes:
        misframe, self.misframe = self.misframe, None
        packet: bytes = super()._build_packet(payload)  # type: ignore[misc]
        return misframe(packet) if misframe else packet

    def set_outbound_compressor(self, compressor: Any) -> None:
        self.compressor = compressor
        super().set_outbound_compressor(compressor)

    def send_from(self, number: int) -> None:
        """Go on as if so many packets had been sent before."""
        names: Any = self
        names._Packetizer__sequence_number_out = number


class HostileTransport(paramiko.Transport):
    """One of the ends; `also` are types of message that the tests want to see."""

    packetizer: HostilePacketizer

    def __init__(self, sock: Any, *, strict: bool = True, **options: Any) -> None:
        kwargs = {"packetizer_class": HostilePacketizer, "strict_kex": strict}
        super().__init__(sock, **kwargs, **options)

    def say(self, kind: int, payload: bytes = b"") -> None:
        """Send any message now, key exchange or not."""
        self.packetizer.send_message(Message(bytes([kind]) + payload))

    def say_bytes(self, data: bytes) -> None:
        """Send bytes that are no packet."""
        self.packetizer.write_all(data)


class HostileServer(ScriptedPeer):
    """The server's end; `client` is an `rtunnel.Transport` with the backend named.

    With `meet` False the handshake is the test's: `meet()`.
    """

    transport: HostileTransport

    def __init__(
        self,
        backend: str,
        *,
        strict: bool = True,
        algorithms: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
        meet: bool = True,
        **options: Any,
    ) -> None:
        self.unimplemented: list[int] = []
        self._algorithms = algorithms
        super().__init__(
            partial(rtunnel.Transport, backend=backend, **options),
            partial(HostileTransport, strict=strict),
            meet=meet,
        )

    def prepare(self) -> None:
        """Want the algorithms of the test."""
        if self._algorithms is not None:
            ciphers, macs = self._algorithms
            security = self.transport.get_security_options()
            security.ciphers, security.digests = ciphers, macs
        table = seams.handler_table(self.transport)
        table[3] = lambda message: self.unimplemented.append(message.get_int())

    @property
    def victim(self) -> rtunnel.Transport:
        """The client, which is ours."""
        assert isinstance(self.client, rtunnel.Transport)
        return self.client

    def say(self, kind: int, payload: bytes = b"") -> None:
        """Send any message now, key exchange or not."""
        self.transport.say(kind, payload)

    def ignore_kexinit(self) -> None:
        """Answer no key exchange from here on."""
        table = seams.handler_table(self.transport)
        for kind in (KEXINIT, *range(30, 42)):
            table[kind] = lambda message: None
        self.transport._expect_packet = lambda *kinds: None

    def hold_rekey(self) -> None:
        """Have the client begin a key exchange, and let it never end."""
        self.ignore_kexinit()
        threading.Thread(
            target=self._renegotiate, name="renegotiate", daemon=True
        ).start()
        wait_until(lambda: self.victim.packetizer._holding)

    def _renegotiate(self) -> None:
        with contextlib.suppress(paramiko.SSHException, EOFError):
            self.client.renegotiate_keys()

    def open_session(
        self, window: int = 2**21, max_packet: int = 2**15
    ) -> tuple[int, paramiko.Channel]:
        """Have the client open a session; return its number and its channel."""
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(self.client.open_session)
            fields = self.expect(seams.MSG_CHANNEL_OPEN)
            assert fields.text() == "session"
            number = fields.u32()
            answer = u32(number) + u32(3) + u32(window) + u32(max_packet)
            self.say(seams.MSG_CHANNEL_OPEN_CONFIRMATION, answer)
            channel = opening.result(TIMEOUT_S)
        channel.settimeout(TIMEOUT_S)
        return number, channel

    def expect_disconnect(self, code: int, text: str) -> None:
        """Wait for the client's DISCONNECT: this code, and a line with `text` in it."""
        wait_until(lambda: self.disconnect is not None)
        assert self.disconnect is not None
        got, why = self.disconnect
        assert (got, text in why) == (code, True), self.disconnect
        assert "\n" not in why


class HostileClient:
    """A client of a gateway, with its keys exchanged; it has not logged in."""

    def __init__(self, port: int) -> None:
        self.transport = HostileTransport(("127.0.0.1", port))
        self.answers: list[int] = []
        self.transport.get_security_options().ciphers = GCM  # what the engine needs
        self.transport.start_client(timeout=TIMEOUT_S)
        table = seams.handler_table(self.transport)
        for kind in (3, 6, 51, 52, 60, 81, 82, 91, 92):
            table[kind] = self._recorder(kind)

    def _recorder(self, kind: int) -> seams.Handler:
        return lambda message: self.answers.append(kind)

    def say(self, kind: int, payload: bytes = b"") -> None:
        """Send any message now; the gateway may have hung up."""
        with contextlib.suppress(EOFError):
            self.transport.say(kind, payload)

    def begin_userauth(self) -> None:
        """Ask for the service, as everybody does first (RFC 4253, section 10)."""
        self.say(5, string("ssh-userauth"))

    def wait_refused(self) -> None:
        """Wait until all was refused, or the gateway has hung up."""
        refused = {seams.MSG_REQUEST_FAILURE, 92}
        wait_until(
            lambda: not self.transport.is_active() or refused & set(self.answers)
        )
        granted = {seams.MSG_REQUEST_SUCCESS, 91}
        assert not granted & set(self.answers)

    def __enter__(self) -> HostileClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.transport.close()
        self.transport.join(TIMEOUT_S)


class Served:
    """A tunnel with one port, on a connection with a hostile server.

    `other` is a channel that was open before the hostilities and has to outlive them
    where the connection does.
    """

    def __init__(self, peer: HostileServer, backend: str) -> None:
        self.peer = peer
        self.backend = backend
        table = seams.handler_table(peer.transport)
        record = table[seams.MSG_GLOBAL_REQUEST]
        table[seams.MSG_GLOBAL_REQUEST] = lambda message: peer.grant()
        self.tunnel = rtunnel.Tunnel(peer.client, backend=backend)
        assert self.tunnel.backend == backend
        self.listener = self.tunnel.listen(PORT)
        table[seams.MSG_GLOBAL_REQUEST] = record
        self.other, self.other_conn = self.open(1)

    def open(
        self, number: int, window: int = 2**21, max_packet: int = 2**15
    ) -> tuple[int, socket.socket]:
        """Have a visitor come; return our number of the channel, and its socket."""
        self.peer.open_forwarded(
            PORT, number=number, window=window, max_packet=max_packet
        )
        local_id = self.peer.expect_confirmation(number)
        conn, _ = self.listener.accept(TIMEOUT_S)
        conn.settimeout(TIMEOUT_S)
        return local_id, conn

    def data(self, channel: int, data: bytes) -> None:
        """Send CHANNEL_DATA."""
        self.peer.say(seams.MSG_CHANNEL_DATA, u32(channel) + string(data))

    def settle(self) -> None:
        """Wait until all was read; answers to it are in `peer.messages` then."""
        seen = threading.Event()
        table = seams.handler_table(self.peer.transport)
        original = table[seams.MSG_REQUEST_FAILURE]

        def answered(message: Message) -> None:
            table[seams.MSG_REQUEST_FAILURE] = original
            seen.set()

        table[seams.MSG_REQUEST_FAILURE] = answered
        self.peer.say(seams.MSG_GLOBAL_REQUEST, string("barrier@test") + b"\1")
        assert seen.wait(TIMEOUT_S)

    def check_goes_on(self) -> None:
        """The other channel still carries bytes, both ways."""
        self.data(self.other, b"still here")
        assert read_exactly(self.other_conn, 10) == b"still here"
        self.other_conn.sendall(b"and there")
        while True:  # what is said of other channels comes in between
            kind, payload = self.peer.messages.get(timeout=TIMEOUT_S)
            fields = Reader(payload)
            if kind == seams.MSG_CHANNEL_DATA and fields.u32() == 1:
                assert fields.string() == b"and there"
                return

    def drain(self) -> list[tuple[int, Reader]]:
        """Return what the client has said since this was last looked at."""
        said = []
        while not self.peer.messages.empty():
            kind, payload = self.peer.messages.get()
            said.append((kind, Reader(payload)))
        return said

    def said_until(self, last: int, number: int) -> list[tuple[int, Reader]]:
        """Return what is said up to a message of this type for the peer's channel.

        The readers are behind the number of the channel.
        """
        said = []
        while True:
            kind, payload = self.peer.messages.get(timeout=TIMEOUT_S)
            fields = Reader(payload)
            said.append((kind, fields))
            if fields.u32() == number and kind == last:
                return said

    def channels(self) -> int:
        """Return how many channels the backend has."""
        engine = self.peer.victim.packetizer.engine
        if self.backend == "engine":
            assert engine is not None
            count: int = engine.stats()[2]
            return count
        backend: Any = Connection.of(self.peer.client).backend
        return len(backend._channels)

    def expect_end(self, code: int, text: str) -> None:
        """The connection ends: the peer is told why, and so is the user."""
        self.peer.expect_disconnect(code, text)
        with pytest.raises(ConnectionLost) as caught:
            self.tunnel.wait(TIMEOUT_S)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.code == code

    def close(self) -> None:
        self.other_conn.close()
        # Let the cancel be answered, which is waited for.
        table = seams.handler_table(self.peer.transport)
        table[seams.MSG_GLOBAL_REQUEST] = lambda message: self.peer.grant()
        self.tunnel.close()
        self.peer.close()
        assert self.listener.stats().connections_open == 0

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Assert that the block leaves no thread and no descriptor behind."""
    threads, descriptors = set(threading.enumerate()), _open_files()
    yield
    wait_until(lambda: not set(threading.enumerate()) - threads)
    wait_until(lambda: _open_files() <= descriptors)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def bounded_memory(most_bytes: int = GROWTH_MAX_BYTES) -> Iterator[None]:
    """Assert that the process grows by no more than this, at the worst moment."""
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the high-water mark starts anew (proc(5))
    before = _kib("VmRSS")
    yield
    assert (_kib("VmHWM") - before) * 1024 < most_bytes


def _kib(name: str) -> int:
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(name + ":"):
                return int(line.split()[1])
    raise AssertionError(name)
