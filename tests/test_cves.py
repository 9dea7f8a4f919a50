"""What was wrong in other SSH implementations, tried on this one.

Each test has the name of the advisory. These have their tests elsewhere:

- CVE-2019-3856, CVE-2019-3863 (counts of questions): `test_userauth.py`.
- CVE-2019-3857, CVE-2019-3859, CVE-2019-3862 (messages that are cut short) and
  CVE-2019-3861 (padding): `test_hostile_packets.py`.
- CVE-2019-3858, CVE-2019-3860 (empty replies of SFTP servers): `test_sftp_client.py`.
- CVE-2025-5318 (handles that a server of SFTP never gave): the fuzzer `sftp`.
- CVE-2025-32728 (forwarding of the agent that a key may not have):
  `test_gateway_switches.py`.

These have no counterpart here:

- CVE-2025-47914: agents that do not check the size of requests. There is no agent here:
  the gateway passes bytes on to the client's.
- CVE-2026-39828: the rights of a first factor are lost when a second one succeeds. At
  the gateway one key is the whole login, and there is no partial success.
- CVE-2025-8114, CVE-2025-8277: memory that libssh does not check, or does not free, in
  a key exchange. Keys are exchanged by paramiko, in Python.
- CVE-2026-0964 and asyncssh 2.23.1, names of files that leave the folder: there is no
  SCP. Those of SFTP are tested in `test_x2go_sftp.py`.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from rtunnel.errors import HostKeyRevoked
from rtunnel.gateway import Gateway
from rtunnel.ssh import packetizer as packetizer_module
from rtunnel.ssh import seams
from rtunnel.ssh.agent import Agent, AgentError
from rtunnel.ssh.config import resolve
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.hostkeys import HOST_KEY_ALGORITHMS, HostKeyChecker
from rtunnel.ssh.identities import signature_algorithm
from rtunnel.ssh.options import HostKeyQuestion, Options
from rtunnel.wire import boolean, string, u32
from tests.support.gateways import GatewayServer, Guest
from tests.support.hostile import (
    NEWKEYS,
    PORT,
    HostileClient,
    HostileServer,
    HostileTransport,
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


def test_cve_2026_78662_a_channel_that_is_not_decided_blocks_nothing(
    served: Served,
) -> None:
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(served.peer.client.open_session)
        fields = served.peer.expect(seams.MSG_CHANNEL_OPEN)
        assert fields.text() == "session"
        number = u32(fields.u32())
        with bounded_memory():
            for _ in range(5000):
                served.peer.say(
                    seams.MSG_CHANNEL_REQUEST, number + string("x") + boolean(False)
                )
                served.peer.say(seams.MSG_CHANNEL_WINDOW_ADJUST, number + u32(0))
            served.settle()
        served.check_goes_on()
        served.peer.say(
            seams.MSG_CHANNEL_OPEN_FAILURE, number + u32(1) + string("") + string("")
        )
        with pytest.raises(paramiko.ChannelException):
            opening.result(20)
    served.check_goes_on()


# Host keys.


def _keygen(*arguments: object) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, arguments)], check=True)


def _checker(
    known: Path, prompt: Callable[[HostKeyQuestion], bool] | None = None
) -> HostKeyChecker:
    options = Options(config_file="none", known_hosts=known)
    return HostKeyChecker(resolve("web", options), prompt)


@pytest.mark.parametrize("error", [MemoryError, OSError, EOFError, KeyboardInterrupt])
def test_cve_2025_26465_an_error_while_a_key_is_checked_is_no_yes(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def fail(question: HostKeyQuestion) -> bool:
        raise error

    known = tmp_path / "known_hosts"
    with pytest.raises(error):
        _checker(known, fail).check(paramiko.ECDSAKey.generate())
    assert not known.exists()


def test_cve_2026_42508_a_revoked_authority_vouches_for_nobody(tmp_path: Path) -> None:
    for name in ("authority", "host"):
        _keygen("-t", "ed25519", "-N", "", "-f", tmp_path / name)
    _keygen("-s", tmp_path / "authority", "-I", "x", "-h", tmp_path / "host.pub")
    key = paramiko.Ed25519Key.from_private_key_file(str(tmp_path / "host"))
    key.load_certificate(str(tmp_path / "host-cert.pub"))
    authority = (tmp_path / "authority.pub").read_text()
    known = tmp_path / "known_hosts"
    known.write_text(f"@cert-authority * {authority}")
    _checker(known).check(key)
    known.write_text(f"@cert-authority * {authority}@revoked * {authority}")
    with pytest.raises(HostKeyRevoked, match="authority"):
        _checker(known).check(key)


# Agents.


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (bytes([6]), "refused"),  # SUCCESS, which answers other questions
        (bytes([5]), "refused"),  # FAILURE
        (bytes([255]), "refused"),
        (bytes([12]), "cut short"),
        (bytes([14]), "cut short"),
        (bytes([12]) + u32(2**32 - 1), "4294967295 keys"),
        (bytes([12]) + u32(1) + u32(2**32 - 1), "cut short"),
        (bytes([14]) + u32(2**32 - 1) + b"x", "cut short"),
    ],
)
def test_cve_2025_47913_an_agent_may_answer_what_it_likes(
    tmp_path: Path, answer: bytes, why: str
) -> None:
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Agent(path) as agent:
            conn, _ = listener.accept()
            with conn:
                conn.sendall(string(answer))
                ask = (
                    partial(agent.sign, b"key", b"data", "ssh-ed25519")
                    if answer[0] == 14
                    else agent.keys
                )
                with pytest.raises(AgentError, match=why):
                    ask()


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


@pytest.mark.parametrize("strict", [True, False])
def test_cve_2023_46446_a_login_before_the_keys_ends_the_connection(
    gateway: GatewayServer, strict: bool
) -> None:
    """A login slipped in by somebody in between would be another user's session."""
    login = string("rogue") + string("ssh-connection") + string("none")
    sock = socket.create_connection(("127.0.0.1", gateway.port))
    rogue = HostileTransport(sock, strict=strict)
    rogue.packetizer.before[NEWKEYS] = lambda: rogue.say(USERAUTH_REQUEST, login)
    try:
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            rogue.start_client(timeout=20)  # the end may come behind the keys
        wait_until(lambda: not rogue.is_active())
        assert not rogue.is_authenticated()
    finally:
        rogue.close()
        rogue.join(20)


@pytest.mark.parametrize("kind", [USERAUTH_FAILURE, USERAUTH_PK_OK])
def test_cve_2018_1000805_what_only_servers_say_lets_nobody_in(
    client: HostileClient, kind: int
) -> None:
    client.begin_userauth()
    client.say(kind, string("") + string("") + string("") + u32(0))
    client.say(seams.MSG_GLOBAL_REQUEST, LISTEN)
    client.wait_refused()


def test_cve_2025_58181_a_count_of_gssapi_mechanisms_is_not_believed(
    client: HostileClient, gateway: GatewayServer
) -> None:
    client.begin_userauth()
    head = string(gateway.user) + string("ssh-connection") + string("gssapi-with-mic")
    with bounded_memory():
        client.say(USERAUTH_REQUEST, head + u32(2**32 - 1) + string(b"x"))
        wait_until(lambda: USERAUTH_FAILURE in client.answers)
    assert USERAUTH_SUCCESS not in client.answers


def test_cve_2026_48108_lines_before_the_version_are_bounded(
    gateway: GatewayServer,
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), 20) as sock:
        with bounded_memory(), contextlib.suppress(OSError):
            sock.sendall(b"no version\r\n" * 1000)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(4096):
                pass


def test_cve_2026_44405_no_sha_1_signs_for_an_rsa_key() -> None:
    blob = paramiko.RSAKey.generate(2048).asbytes()
    assert signature_algorithm(blob, (), None) == ("rsa-sha2-512", "rsa-sha2-512")
    assert signature_algorithm(blob, ("ssh-rsa",), None) is None
    assert signature_algorithm(blob, (), ("ssh-rsa",)) is None
    assert "ssh-rsa" not in HOST_KEY_ALGORITHMS


def test_cve_2026_44405_no_sha_1_signature_logs_in(tmp_path: Path) -> None:
    guest = Guest(tmp_path, "rsa", kind="rsa")
    blob = base64.b64decode(guest.public.split()[1])

    def request(client: HostileClient, algorithm: str) -> bytes:
        head = string("rsa") + string("ssh-connection") + string("publickey")
        claimed = head + boolean(True) + string(algorithm) + string(blob)
        session: bytes = client.transport.session_id  # type: ignore[attr-defined]
        signed = string(session) + bytes([USERAUTH_REQUEST]) + claimed
        hashed = hashes.SHA1() if algorithm == "ssh-rsa" else hashes.SHA512()
        key = serialization.load_ssh_private_key(guest.user_key.read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        signature = key.sign(signed, padding.PKCS1v15(), hashed)
        return claimed + string(string(algorithm) + string(signature))

    with nothing_left(), Gateway(authorized_keys=[guest.public]) as gateway:
        for algorithm, answer in (
            ("ssh-rsa", USERAUTH_FAILURE),
            ("rsa-sha2-512", USERAUTH_SUCCESS),
        ):
            with HostileClient(gateway.port) as client:
                client.begin_userauth()
                client.say(USERAUTH_REQUEST, request(client, algorithm))
                wait_until(lambda: answer in client.answers)  # noqa: B023


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
