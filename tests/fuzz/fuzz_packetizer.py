"""Packets of paramiko and of the engine, in any pieces, and with a bit flipped.

Input: messages that are sent in clear, and sealed behind new keys (AES-GCM). What a
packetizer sends, another one has to read as the same messages, whatever the pieces are
in which it arrives; a flipped bit behind the keys ends the connection with an error.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import paramiko
from paramiko.message import Message
from paramiko.packet import NeedRekeyException

from tests.fuzz.harness import Input, fuzz, watched

with watched():
    from rtunnel.ssh.packetizer import EnginePacketizer, PeerFault, why_no_engine

KEY, IV = bytes(range(32)), bytes(12)
MOST_MESSAGES = 24
# Held while keys are exchanged, or a reply that would belong to a channel of ours.
NOT_FOR_US = {20, *range(90, 101)}


def new_keys(packetizer: EnginePacketizer, *, sealing: bool) -> None:
    """Have the packetizer change to AES-GCM in one direction."""
    packetizer.stage_key(KEY, sealing=sealing)
    if sealing:
        packetizer.set_outbound_cipher(
            None, 16, None, 16, b"", aead=True, iv_out=IV
        )  # fmt: skip
    else:
        packetizer.set_inbound_cipher(None, 16, None, 16, b"", aead=True, iv_in=IV)


def sent_by(speak: Callable[[EnginePacketizer], None]) -> bytes:
    """Return what a packetizer puts on the wire."""
    near, far = socket.socketpair()
    packetizer = EnginePacketizer(near)
    with near, far:
        speak(packetizer)
        packetizer.drain()
        packetizer.finish()
        near.shutdown(socket.SHUT_WR)
        wire = b""
        while part := far.recv(1 << 20):
            wire += part
    return wire


def messages_of(data: Input) -> list[bytes]:
    """Read some messages: short ones as they are, long ones of one byte."""
    found = []
    for _ in range(data.byte() % MOST_MESSAGES):
        kind = bytes([data.byte()])
        if kind[0] in NOT_FOR_US or kind == b"\0":
            kind = b"\2"  # IGNORE
        size = data.byte()
        found.append(kind + (data.bytes(size) if size < 200 else bytes([size]) * 4000))
    return found


def heard(wire: bytes, clear: int, cuts: list[int]) -> tuple[list[bytes], str]:
    """Read the wire as `clear` messages and, behind new keys, all others."""
    near, far = socket.socketpair()
    packetizer = EnginePacketizer(near)

    def write() -> None:
        at = 0
        for size in cuts:
            far.sendall(wire[at : at + size])
            at += size
        far.sendall(wire[at:])
        far.shutdown(socket.SHUT_WR)

    writer = threading.Thread(target=write)
    with near, far:
        writer.start()
        found: list[bytes] = []
        end = ""
        try:
            while True:
                if len(found) == clear:
                    new_keys(packetizer, sealing=False)
                    new_keys(packetizer, sealing=True)
                kind, message = packetizer.read_message()
                found.append(bytes([kind]) + message.asbytes())
        except EOFError:
            end = "EOF"
        except PeerFault:
            end = "fault"
        except (paramiko.SSHException, NeedRekeyException):
            end = "error"
        finally:
            packetizer.close()
            writer.join()
            packetizer.finish()
    return found, end


def test(data: bytes) -> None:
    """Send, cut, flip, and read."""
    given = Input(data)
    clear, sealed = messages_of(given), messages_of(given)
    flip = given.number() if given.byte() & 1 else -1
    cuts = [1 + given.byte() for _ in range(given.byte() % 16)]
    border = 0

    def speak(packetizer: EnginePacketizer) -> None:
        nonlocal border
        for message in clear:
            packetizer.send_message(Message(message))
        new_keys(packetizer, sealing=True)
        for message in sealed:
            packetizer.send_message(Message(message))

    wire = bytearray(sent_by(speak))
    border = len(
        sent_by(lambda p: [p.send_message(Message(m)) for m in clear] and None)
    )
    if flip < 0 or not wire:
        assert heard(bytes(wire), len(clear), cuts) == (clear + sealed, "EOF")
        return
    wire[flip % len(wire)] ^= 1 << flip % 8
    found, end = heard(bytes(wire), len(clear), cuts)
    if flip % len(wire) >= border:  # authenticated: nothing that was touched comes out
        assert end in ("fault", "EOF")
        assert found == (clear + sealed)[: len(found)]
        assert len(found) < len(clear) + len(sealed)


if __name__ == "__main__":
    near, far = socket.socketpair()
    with near, far:
        assert why_no_engine(near) is None
    fuzz(test)
