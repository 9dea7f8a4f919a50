"""A peer whose packets are wrong: bad lengths, padding, tags, compression, order.

On every backend, and for each way in which a packet may be framed: in the clear, with
AES-GCM (by the engine, and by Python), with a MAC over the clear text, and with one
over the cipher text.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
import pytest

from rtunnel.ssh import inbound, seams
from rtunnel.ssh.packetizer import BANNER_LINE_MAX_BYTES
from rtunnel.wire import string, u32
from tests.support.hostile import (
    CTR_WITH_MAC,
    CTR_WITH_MAC_OVER_CIPHERTEXT,
    KEXINIT,
    NEWKEYS,
    HostileServer,
    Served,
    bounded_memory,
    nothing_left,
)
from tests.support.sshd import wait_until

PROTOCOL_ERROR, MAC_ERROR, COMPRESSION_ERROR = 2, 5, 6
IGNORE, UNIMPLEMENTED, DEBUG, EXT_INFO, USERAUTH_REQUEST = 2, 3, 4, 7, 50
IGNORED = string(bytes(100))

# What opens the packets, and how they are protected.
FRAMINGS: dict[str, tuple[str, Any]] = {
    "engine, gcm": ("engine", None),
    "pump, gcm": ("pump", None),
    "python, gcm": ("python", None),
    "python, mac": ("python", CTR_WITH_MAC),
    "pump, etm": ("pump", CTR_WITH_MAC_OVER_CIPHERTEXT),
}


@pytest.fixture(params=FRAMINGS)
def framing(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def peer(framing: str) -> Iterator[HostileServer]:
    backend, algorithms = FRAMINGS[framing]
    with nothing_left(), HostileServer(backend, algorithms=algorithms) as hostile:
        yield hostile


def flip(at: int) -> Callable[[bytes], bytes]:
    """Return what changes one bit of a packet on the wire."""

    def spoil(packet: bytes) -> bytes:
        changed = bytearray(packet)
        changed[at] ^= 1
        return bytes(changed)

    return spoil


# Behind the length: padding length, payload, last byte of the ciphertext, tag or MAC.
@pytest.mark.parametrize("at", [4, 20, -33, -1], ids=str)
def test_one_changed_bit_is_an_integrity_error(peer: HostileServer, at: int) -> None:
    packetizer = peer.transport.packetizer
    packetizer.tamper = flip(at)
    peer.say(IGNORE, IGNORED)
    peer.expect_disconnect(MAC_ERROR, "failed its integrity check")


def test_a_packet_that_comes_twice_ends_the_connection(peer: HostileServer) -> None:
    peer.transport.packetizer.tamper = lambda packet: packet * 2
    peer.say(IGNORE, IGNORED)
    wait_until(lambda: peer.disconnect is not None)
    assert peer.disconnect is not None
    # Where the length is sealed, too, it is the first that makes no sense.
    assert peer.disconnect[0] in (PROTOCOL_ERROR, MAC_ERROR)


@pytest.mark.parametrize("length", [0, 1, 11, 17, 2**18 + 16, 2**31, 2**32 - 16])
def test_a_length_that_lies_is_refused_before_anything_is_waited_for(
    peer: HostileServer, framing: str, length: int
) -> None:
    with bounded_memory():
        if framing == "python, mac":  # where the length is sealed, too
            peer.transport.packetizer.misframe = lambda packet: u32(length) + packet[4:]
        else:
            peer.transport.packetizer.tamper = lambda packet: u32(length) + packet[4:]
        peer.say(IGNORE, IGNORED)
        peer.expect_disconnect(PROTOCOL_ERROR, "packet length")


@pytest.mark.parametrize("padding", [0, 3, 107, 255])
def test_padding_that_lies_is_refused(peer: HostileServer, padding: int) -> None:
    peer.transport.packetizer.misframe = lambda packet: (
        packet[:4] + bytes([padding]) + packet[5:]
    )
    peer.say(IGNORE, string(bytes(80)))
    peer.expect_disconnect(PROTOCOL_ERROR, "padding")


def test_a_packet_without_a_payload_is_refused(peer: HostileServer) -> None:
    peer.transport.packetizer.misframe = lambda packet: (
        packet[:4] + bytes([len(packet) - 5]) + packet[5:]
    )
    peer.say(IGNORE, string(bytes(80)))
    peer.expect_disconnect(PROTOCOL_ERROR, "padding")


def test_a_stream_that_ends_inside_a_packet_is_a_lost_connection(
    peer: HostileServer,
) -> None:
    peer.transport.packetizer.tamper = lambda packet: packet[: len(packet) // 2]
    peer.say(IGNORE, IGNORED)
    peer.transport.close()
    wait_until(lambda: not peer.client.is_active())
    assert isinstance(peer.client.get_exception(), EOFError)


def test_noise_is_no_packet(peer: HostileServer) -> None:
    peer.transport.say_bytes(b"\xff" * 64 + os.urandom(4096))
    wait_until(lambda: peer.disconnect is not None)
    assert peer.disconnect is not None
    assert peer.disconnect[0] in (PROTOCOL_ERROR, MAC_ERROR)


# Numbers of packets.


@pytest.mark.parametrize("framing", ["python, mac", "pump, etm"], indirect=True)
def test_numbers_of_packets_go_on_from_0_behind_2_to_the_32(
    peer: HostileServer,
) -> None:
    # A MAC covers the number: where the two ends differ, nothing is taken.
    peer.client.packetizer._reader.sequence = 2**32 - 2
    peer.transport.packetizer.send_from(2**32 - 2)
    for _ in range(4):
        peer.say(200)
    wait_until(lambda: len(peer.unimplemented) == 4)
    assert peer.unimplemented == [2**32 - 2, 2**32 - 1, 0, 1]
    peer.expect_nothing()


def test_the_engine_counts_from_0_behind_2_to_the_32() -> None:
    with nothing_left(), HostileServer("engine") as peer:
        engine = peer.victim.packetizer.engine
        assert engine is not None
        engine.set_sequence_in(2**32 - 2)
        engine.set_sequence_out(2**32 - 2)
        for _ in range(4):
            peer.say(200)
        wait_until(lambda: len(peer.unimplemented) == 4)
        assert peer.unimplemented == [2**32 - 2, 2**32 - 1, 0, 1]
        peer.expect_nothing()


# Before there are keys.


@pytest.fixture
def stranger(backend: str) -> Iterator[HostileServer]:
    """A peer that has still to be met."""
    with nothing_left(), HostileServer(backend, meet=False) as hostile:
        yield hostile


def meet(peer: HostileServer) -> str:
    """Exchange keys, which fails; return why."""
    with pytest.raises(paramiko.SSHException) as caught:
        peer.meet()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 4, 2**18 + 12, 2**31 + 4, 2**32 - 4])
def test_a_length_that_lies_is_refused_in_the_clear_too(
    stranger: HostileServer, length: int
) -> None:
    stranger.transport.packetizer.misframe = lambda packet: u32(length) + packet[4:]
    with bounded_memory():
        assert "packet length" in meet(stranger)
    stranger.expect_disconnect(PROTOCOL_ERROR, "packet length")


def test_padding_that_lies_is_refused_in_the_clear_too(
    stranger: HostileServer,
) -> None:
    stranger.transport.packetizer.misframe = lambda packet: (
        (packet[:4] + b"\xff" + packet[5:])
        if len(packet) < 255
        else packet[:4] + b"\0" + packet[5:]
    )
    assert "padding" in meet(stranger)


def test_a_banner_without_an_end_is_refused(stranger: HostileServer) -> None:
    flood = b"x" * 2**16
    sock = stranger.transport.sock

    def talk() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(flood)

    thread = threading.Thread(target=talk)
    thread.start()
    with bounded_memory(), pytest.raises(paramiko.SSHException, match="line of more"):
        stranger.client.start_client(timeout=20)
    thread.join()
    assert BANNER_LINE_MAX_BYTES == 8192


# Strict key exchange (Terrapin): nothing but the exchange itself until NEWKEYS.

PLACES = {
    "before KEXINIT": ("before", KEXINIT),
    "behind KEXINIT": ("behind", KEXINIT),
    "before NEWKEYS": ("before", NEWKEYS),
}
STRAYS = {
    "IGNORE": (IGNORE, string(b"")),
    "DEBUG": (DEBUG, b"\0" + string(b"") + string(b"")),
    "UNIMPLEMENTED": (UNIMPLEMENTED, u32(0)),
    "EXT_INFO": (EXT_INFO, u32(0)),
    "USERAUTH_REQUEST": (USERAUTH_REQUEST, string(b"") * 3),
    "a type that nobody knows": (200, b""),
}


def slip_in(peer: HostileServer, place: str, kind: int, payload: bytes) -> None:
    when, what = PLACES[place]
    hooks = getattr(peer.transport.packetizer, when)
    hooks[what] = lambda: peer.say(kind, payload)


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("place", PLACES)
def test_a_stray_message_ends_a_strict_key_exchange(place: str, stray: str) -> None:
    with nothing_left(), HostileServer("auto", meet=False) as peer:
        slip_in(peer, place, *STRAYS[stray])
        meet(peer)
        peer.expect_disconnect(PROTOCOL_ERROR, "")
        assert not peer.client.is_authenticated()


@pytest.mark.parametrize("stray", ["IGNORE", "DEBUG"])
def test_a_key_exchange_that_is_not_strict_may_be_talked_into(stray: str) -> None:
    with nothing_left(), HostileServer("auto", strict=False, meet=False) as peer:
        slip_in(peer, "before NEWKEYS", *STRAYS[stray])
        peer.meet()
        assert peer.client.is_authenticated()


def test_a_packet_that_is_taken_away_behind_the_keys_is_noticed(backend: str) -> None:
    # What Terrapin does: a packet slipped in before the keys is to hide that one behind
    # them is missing. With strict key exchange the numbers start anew.
    with nothing_left(), HostileServer(backend, meet=False) as peer:
        peer.transport.packetizer.behind[NEWKEYS] = lambda: setattr(
            peer.transport.packetizer, "tamper_sealed", lambda packet: b""
        )
        meet(peer)
        peer.expect_disconnect(MAC_ERROR, "integrity")


# Compression.


@pytest.fixture
def squeezed(backend: str) -> Iterator[HostileServer]:
    if backend == "engine":
        backend = "auto"  # the engine does not run with compression
    with nothing_left(), HostileServer(backend, meet=False) as peer:
        peer.client.use_compression()
        peer.transport.use_compression()
        peer.meet()
        wait_until(lambda: peer.transport.packetizer.compressor is not None)
        assert not peer.victim.engine_status.active
        yield peer


def test_packets_that_are_inflated_are_taken(squeezed: HostileServer) -> None:
    squeezed.say(IGNORE, string(bytes(200_000)))
    squeezed.expect_nothing()


def test_a_compression_bomb_is_not_inflated(squeezed: HostileServer) -> None:
    # 100 MiB, which take 100 KiB on the wire, in the stream that has begun.
    packetizer = squeezed.transport.packetizer
    stream = packetizer.compressor.z
    bomb = b"".join(stream.compress(bytes(2**20)) for _ in range(100))
    bomb += stream.flush(zlib.Z_FULL_FLUSH)
    packetizer.set_outbound_compressor(lambda data: bomb)
    with bounded_memory():
        squeezed.say(IGNORE)
        squeezed.expect_disconnect(COMPRESSION_ERROR, "inflates to more than")
    assert inbound.INFLATED_MAX_BYTES == 2**18


def test_what_cannot_be_inflated_is_refused(squeezed: HostileServer) -> None:
    squeezed.transport.packetizer.set_outbound_compressor(lambda data: b"no zlib" * 9)
    squeezed.say(IGNORE, string(b""))
    squeezed.expect_disconnect(COMPRESSION_ERROR, "cannot be inflated")


def test_a_bomb_of_empty_blocks_is_a_packet_without_a_payload(
    squeezed: HostileServer,
) -> None:
    empty = b"\0\0\0\xff\xff"  # RFC 1951, section 3.2.4
    squeezed.transport.packetizer.set_outbound_compressor(lambda data: empty)
    squeezed.say(IGNORE, string(b""))
    squeezed.expect_disconnect(COMPRESSION_ERROR, "cannot be inflated")


# Messages that are too short for what they say.


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (seams.MSG_GLOBAL_REQUEST, u32(2**32 - 1) + b"x"),
        (seams.MSG_GLOBAL_REQUEST, string(b"\xff\xfe") + b"\1"),
        (seams.MSG_CHANNEL_OPEN, string(b"x11")),
        (seams.MSG_CHANNEL_DATA, b"\0"),
        (seams.MSG_CHANNEL_DATA, b""),
        (EXT_INFO, u32(2**32 - 1)),
        (NEWKEYS, b""),
        (KEXINIT, bytes(16)),
        (KEXINIT, bytes(16) + u32(2**31)),
    ],
)
def test_a_message_that_is_cut_short_ends_the_connection(
    backend: str, kind: int, payload: bytes
) -> None:
    with nothing_left(), HostileServer(backend) as peer, Served(peer, backend) as it:
        peer.say(kind, payload)
        it.expect_end(PROTOCOL_ERROR, "the peer sent")
