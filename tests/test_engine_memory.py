"""Memory that the engine does not get for a message: the sender is told so.

In a process of its own, whose address space is limited: nothing here is simulated.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

MIB = 2**20

# Nobody reads what is sent, so that the send queue grows to the limit of memory, or to
# its own maximum of 16 MiB.
BEGIN = """
    import resource, socket
    from paramiko.message import Message
    from rtunnel import _engine
    from rtunnel.errors import DisconnectCode
    from rtunnel.ssh.inbound import PeerFault
    from rtunnel.ssh.packetizer import EnginePacketizer

    def leave_room(room_bytes):
        with open("/proc/self/statm") as file:
            size_bytes = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size_bytes + room_bytes, hard))

    _engine.load_libcrypto()
    ours, theirs = socket.socketpair()
    big = bytes([192]) + bytes(200_000)
"""
ENGINE = """
    engine = _engine.Engine(ours.fileno())
    engine.set_seal_key(bytes(16), bytes(12))
    def fill():
        while True:
            engine.send(big)
"""
PACKETIZER = """
    packetizer = EnginePacketizer(ours)
    packetizer.stage_key(bytes(16), sealing=True)
    packetizer.set_outbound_cipher(iv_out=bytes(12))
    def fill():
        while True:
            packetizer.send_message(Message(big))
"""
SHORT = 4 * MIB
PLENTY = 256 * MIB


def said_by(*script: str) -> list[str]:
    """Run the pieces of a program one behind the other; return the lines it prints."""
    program = "\n".join(map(textwrap.dedent, script))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_message_without_memory_is_refused_and_a_later_one_is_sent() -> None:
    script = f"""
        try:
            leave_room({SHORT})
            fill()
        except MemoryError:
            print("no memory")
        leave_room({PLENTY})
        engine.send(big)
        try:
            fill()
        except BufferError as error:
            print(error)
    """
    said = said_by(BEGIN, ENGINE, script)
    assert said == ["no memory", "the peer does not read what it asks for"]


def test_a_message_that_no_packet_holds_is_refused_by_itself() -> None:
    script = """
        try:
            engine.send(bytes(2**20))
        except ValueError as error:
            print(error)
        engine.send(big)
    """
    assert said_by(BEGIN, ENGINE, script) == ["the engine refused an argument"]


def test_the_peer_is_not_blamed_for_memory_that_is_ours() -> None:
    script = """
        leave_room({room})
        try:
            fill()
        except PeerFault as error:
            print(error.code.name, "-", error)
    """
    assert said_by(BEGIN, PACKETIZER, script.format(room=SHORT)) == [
        "BY_APPLICATION - out of memory"
    ]
    assert said_by(BEGIN, PACKETIZER, script.format(room=PLENTY)) == [
        "PROTOCOL_ERROR - the peer does not read what it asks for"
    ]
