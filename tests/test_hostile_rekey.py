"""A peer that exchanges keys at the worst moment, or never ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from rtunnel.ssh import packetizer, seams
from rtunnel.wire import string, u32
from tests.support.hostile import HostileServer, Served, nothing_left
from tests.support.sshd import wait_until
from tests.support.tunnels import background, noise, read_exactly

PROTOCOL_ERROR, KEY_EXCHANGE_FAILED = 2, 3
KEXINIT, NEWKEYS = 20, 21
PIECE = 32 * 1024


@pytest.fixture
def served(backend: str) -> Iterator[Served]:
    with nothing_left(), HostileServer(backend) as peer, Served(peer, backend) as it:
        yield it


@pytest.mark.parametrize("who", ["peer", "we", "both"])
def test_keys_change_in_mid_transfer_and_no_byte_is_lost(
    served: Served, who: str
) -> None:
    data = noise(40 * PIECE)
    client = served.peer.victim
    before = client.packetizer.rekeys

    def send() -> None:
        for at in range(0, len(data), PIECE):
            piece = u32(served.other) + string(data[at : at + PIECE])
            # As RFC 4253, section 7.1 has it: no data in an exchange of ours.
            seams.send(served.peer.transport, bytes([94]) + piece)
            if at == 10 * PIECE and who in ("peer", "both"):
                # On its own thread, which looks at this behind each message.
                served.peer.transport.packetizer._trigger_rekey()
                served.peer.client.send_ignore()
            if at == 10 * PIECE and who in ("we", "both"):
                threading.Thread(target=client.renegotiate_keys, daemon=True).start()

    with background(send):
        assert read_exactly(served.other_conn, len(data)) == data
    wait_until(lambda: client.packetizer.rekeys > before)
    served.check_goes_on()


def test_a_rekey_that_never_ends_ends_the_connection(backend: str) -> None:
    assert packetizer.KEX_TIMEOUT_S == 120
    with nothing_left(), HostileServer(backend) as peer, Served(peer, backend) as it:
        peer.victim.packetizer.kex_timeout_s = 0.3
        peer.hold_rekey()
        it.expect_end(KEY_EXCHANGE_FAILED, "ended no key exchange in 0.3 s")


def test_a_rekey_that_the_peer_begins_and_never_ends_ends_the_connection(
    backend: str,
) -> None:
    with nothing_left(), HostileServer(backend) as peer, Served(peer, backend) as it:
        peer.victim.packetizer.kex_timeout_s = 0.3
        peer.ignore_kexinit()
        peer.transport._send_kex_init()
        it.expect_end(KEY_EXCHANGE_FAILED, "ended no key exchange in 0.3 s")


def test_data_of_the_peer_goes_on_until_its_own_kexinit(served: Served) -> None:
    served.peer.hold_rekey()
    served.data(served.other, b"before your keys")
    assert read_exactly(served.other_conn, 16) == b"before your keys"


@pytest.mark.parametrize("kind", [90, 93, 94, 97, 80, 2])
def test_nothing_but_key_exchange_may_follow_a_kexinit(
    served: Served, kind: int
) -> None:
    served.peer.ignore_kexinit()
    served.peer.transport._send_kex_init()
    served.peer.say(kind, u32(served.other) + string(b"data"))
    if kind == 2:  # RFC 4253, section 7.1 leaves IGNORE out
        assert served.peer.disconnect is None
        return
    served.expect_end(PROTOCOL_ERROR, "xpecting")


def test_newkeys_without_an_exchange_end_the_connection(served: Served) -> None:
    served.peer.say(NEWKEYS)
    served.expect_end(PROTOCOL_ERROR, "NEWKEYS")


def test_a_second_kexinit_ends_the_connection(served: Served) -> None:
    served.peer.ignore_kexinit()
    served.peer.transport._send_kex_init()
    served.peer.transport._send_kex_init()
    served.expect_end(PROTOCOL_ERROR, "xpecting")
