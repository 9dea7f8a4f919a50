"""What was wrong in other SSH implementations, tried on this one.

Each test has the name of the advisory. Those without one here have no counterpart: no
SCP, GSSAPI or certificate authority of that kind, or no such code.
"""

from __future__ import annotations

import base64
import contextlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest

from rtunnel.ssh import packetizer as packetizer_module
from rtunnel.ssh import seams
from rtunnel.ssh.connection import Connection
from rtunnel.wire import boolean, string, u32
from tests.support.gateways import GatewayServer, Guest
from tests.support.hostile import (
    NEWKEYS,
    PORT,
    HostileClient,
    HostileServer,
    Served,
    bounded_memory,
    nothing_left,
)
from tests.support.sshd import wait_until

PROTOCOL_ERROR, MAC_ERROR, COMPRESSION_ERROR = 2, 5, 6
USERAUTH_REQUEST, USERAUTH_FAILURE, USERAUTH_SUCCESS = 50, 51, 52
USERAUTH_PK_OK = 60
EXT_INFO = 7
LISTEN = string("tcpip-forward") + boolean(True) + string("") + u32(0)


@pytest.fixture
def served(backend: str) -> Iterator[Served]:
    with nothing_left(), HostileServer(backend) as peer, Served(peer, backend) as it:
        yield it


# Key exchange.


def test_cve_2023_48795_terrapin_a_packet_cannot_be_taken_away(backend: str) -> None:
    with nothing_left(), HostileServer(backend, meet=False) as peer:
        packetizer = peer.transport.packetizer
        # One slipped in before the keys, one left out behind them: the numbers fit.
        packetizer.before[NEWKEYS] = lambda: peer.say(2, string(b""))
        packetizer.behind[NEWKEYS] = lambda: setattr(
            packetizer, "tamper_sealed", lambda packet: b""
        )
        with pytest.raises(paramiko.SSHException):
            peer.meet()
        assert not peer.client.is_authenticated()
        assert peer.victim.agreed_on_strict_kex  # type: ignore[attr-defined]


def test_cve_2023_46445_no_extensions_are_taken_before_the_keys(backend: str) -> None:
    with nothing_left(), HostileServer(backend, meet=False) as peer:
        extensions = u32(1) + string("server-sig-algs") + string("ssh-rsa")
        packetizer = peer.transport.packetizer
        packetizer.before[NEWKEYS] = lambda: peer.say(EXT_INFO, extensions)
        with pytest.raises(paramiko.SSHException):
            peer.meet()
        assert not peer.client.server_extensions  # type: ignore[attr-defined]


def test_cve_2026_55199_a_count_of_extensions_that_lies_takes_no_time(
    served: Served,
) -> None:
    served.peer.say(EXT_INFO, u32(2**32 - 1))
    served.expect_end(PROTOCOL_ERROR, "cut short")


def test_cve_2025_22869_a_slow_key_exchange_queues_no_more_than_so_much(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packetizer_module, "HELD_MESSAGES_MAX", 2000)
    served.peer.hold_rekey()
    ask = string("x") + boolean(True)
    with bounded_memory(), contextlib.suppress(EOFError):
        for _ in range(10_000):
            served.peer.say(seams.MSG_GLOBAL_REQUEST, ask)
        served.expect_end(PROTOCOL_ERROR, "key exchange")


def test_cve_2025_26466_pings_are_not_queued(served: Served) -> None:
    served.peer.hold_rekey()
    with bounded_memory():
        for _ in range(5000):
            served.peer.say(192, string(bytes(30_000)))
        wait_until(lambda: len(served.peer.unimplemented) == 5000)


# Packets.


@pytest.mark.parametrize("length", [2**31, 2**32 - 4])
def test_cve_2024_43410_no_length_is_believed_before_login(
    backend: str, length: int
) -> None:
    with nothing_left(), HostileServer(backend, meet=False) as peer:
        peer.transport.packetizer.misframe = lambda packet: u32(length) + packet[4:]
        with bounded_memory(), pytest.raises(paramiko.SSHException):
            peer.meet()


@pytest.mark.parametrize("length", [2, 2**31, 2**32 - 1])
def test_cve_2019_3855_and_cve_2026_55200_lengths_do_not_overflow(
    served: Served, length: int
) -> None:
    data = u32(served.other) + u32(length) + b"x"
    served.peer.say(seams.MSG_CHANNEL_DATA, data)
    served.expect_end(PROTOCOL_ERROR, "the peer sent a")


def test_cve_2026_46702_a_bomb_is_not_inflated() -> None:
    with nothing_left(), HostileServer("pump", meet=False) as peer:
        peer.client.use_compression()
        peer.transport.use_compression()
        peer.meet()
        packetizer = peer.transport.packetizer
        wait_until(lambda: packetizer.compressor is not None)
        stream = packetizer.compressor.z
        bomb = b"".join(stream.compress(bytes(2**20)) for _ in range(64))
        bomb += stream.flush(zlib.Z_FULL_FLUSH)
        packetizer.set_outbound_compressor(lambda data: bomb)
        with bounded_memory():
            peer.say(2)
            peer.expect_disconnect(COMPRESSION_ERROR, "inflates")


# Channels and requests.


def test_cve_2026_39830_unsolicited_replies_block_nothing(served: Served) -> None:
    for _ in range(100):
        served.peer.grant()
        served.peer.refuse()
    served.settle()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(Connection.of(served.peer.client).request, "question")
        served.peer.expect_request("question")
        served.peer.grant(b"answer")
        assert asked.result(20) == b"answer"
    served.check_goes_on()


def test_cve_2026_39827_rejected_channels_leave_nothing(served: Served) -> None:
    channels = served.channels()
    for _ in range(500):
        served.peer.open_forwarded(PORT + 1)
        served.peer.expect_open_failure()
    assert served.channels() == channels
    served.check_goes_on()


@pytest.mark.parametrize("kind", [91, 92, 99, 100])
def test_cve_2026_56855_an_answer_blocks_no_channel_that_stands(
    served: Served, kind: int
) -> None:
    for _ in range(50):
        served.peer.say(kind, u32(served.other) + u32(1) * 3 + string(""))
    served.check_goes_on()


def test_asyncssh_2_24_packets_of_0_bytes_are_no_endless_loop(served: Served) -> None:
    served.peer.open_forwarded(PORT, number=9, max_packet=0)
    served.expect_end(PROTOCOL_ERROR, "0 bytes")


# Logging in, at the gateway.


@pytest.fixture
def gateway(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GatewayServer]:
    monkeypatch.setenv("RTUNNEL_BACKEND", backend)
    with nothing_left(), GatewayServer(tmp_path) as server:
        yield server


@pytest.fixture
def client(gateway: GatewayServer) -> Iterator[HostileClient]:
    with HostileClient(gateway.port) as hostile:
        yield hostile


def test_cve_2018_10933_nobody_lets_himself_in(client: HostileClient) -> None:
    client.begin_userauth()
    client.say(USERAUTH_SUCCESS)
    client.say(seams.MSG_GLOBAL_REQUEST, LISTEN)
    client.wait_refused()


def test_cve_2018_7750_nothing_is_open_before_the_login(client: HostileClient) -> None:
    client.begin_userauth()
    client.say(
        seams.MSG_CHANNEL_OPEN, string("session") + u32(1) + u32(2**21) + u32(2**15)
    )
    client.wait_refused()


@pytest.mark.parametrize("kind", [81, 82, 91, 92, 93, 94, 97, 98, 192])
def test_messages_of_a_connection_before_the_login_let_nobody_in(
    client: HostileClient, gateway: GatewayServer, kind: int
) -> None:
    client.begin_userauth()
    client.say(kind, u32(0) + u32(1) * 3)
    client.say(seams.MSG_GLOBAL_REQUEST, LISTEN)
    client.wait_refused()
    with gateway.forward(1) as ssh:  # and others come in as before
        assert ssh.port()


@pytest.mark.parametrize("claims", ["its own key", "the key that was shown"])
def test_cve_2024_45337_a_key_that_was_only_shown_lets_nobody_in(
    client: HostileClient, gateway: GatewayServer, tmp_path: Path, claims: str
) -> None:
    shown = base64.b64decode(gateway.public.split()[1])
    stranger = paramiko.Ed25519Key.from_private_key_file(
        str(Guest(tmp_path, "stranger").user_key)
    )
    client.begin_userauth()

    def request(signed: bool, blob: bytes) -> bytes:
        head = string(gateway.user) + string("ssh-connection") + string("publickey")
        return head + boolean(signed) + string("ssh-ed25519") + string(blob)

    client.say(USERAUTH_REQUEST, request(False, shown))
    wait_until(lambda: USERAUTH_PK_OK in client.answers)  # it would do
    claimed = request(True, stranger.asbytes() if "own" in claims else shown)
    session: bytes = client.transport.session_id  # type: ignore[attr-defined]
    signed = string(session) + bytes([USERAUTH_REQUEST]) + claimed
    signature = stranger.sign_ssh_data(signed).asbytes()
    client.say(USERAUTH_REQUEST, claimed + string(signature))
    wait_until(lambda: USERAUTH_FAILURE in client.answers)
    assert USERAUTH_SUCCESS not in client.answers
