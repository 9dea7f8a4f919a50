"""Secrets leave the memory of the engine when they are not needed any more.

Another process looks, since whoever searches its own memory finds what it searches for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MASK = 0xA5
# Everything here is in place: a copy that Python makes would be found, too.
HOLDER = """
import ctypes, socket, sys
from rtunnel import _engine

MASK, LENGTH, BYTES_HEADER = 0xA5, 32, bytes.__basicsize__ - 1

def unmasked(masked):
    made = bytes(bytearray(LENGTH))
    for i, byte in enumerate(bytes.fromhex(masked)):
        ctypes.memset(id(made) + BYTES_HEADER + i, byte ^ MASK, 1)
    return made

def wipe(key):
    ctypes.memset(id(key) + BYTES_HEADER, 0, LENGTH)

def said(word):
    print(word, flush=True)
    sys.stdin.readline()

_engine.load_libcrypto(None)
ours, theirs = socket.socketpair()
engine = _engine.Engine(ours.fileno())
for masked, set_key in zip(sys.argv[1:], (engine.set_open_key, engine.set_seal_key)):
    key = unmasked(masked)
    set_key(key, bytes(12))
    wipe(key)
said("in use")
for set_key in (engine.set_open_key, engine.set_seal_key):
    set_key(bytes(LENGTH), bytes(12))
said("replaced")
for masked, set_key in zip(sys.argv[1:], (engine.set_open_key, engine.set_seal_key)):
    key = unmasked(masked)
    set_key(key, bytes(12))
    wipe(key)
said("in use")
engine.finish()
said("finished")
"""


def is_in_memory(pid: int, needle: bytes) -> bool:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            places, rights, *_, name = [*line.split(maxsplit=5), ""][:7]
            if "rw" not in rights or name.startswith("[v"):
                continue
            start, end = (int(place, 16) for place in places.split("-"))
            memory.seek(start)
            if needle in memory.read(end - start):
                return True
    return False


@contextmanager
def holder(*keys: bytes) -> Iterator[Iterator[tuple[str, list[bool]]]]:
    """Run the script above; yield what it says, and which keys it has then."""
    masked = [bytes(byte ^ MASK for byte in key).hex() for key in keys]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *masked],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def steps() -> Iterator[tuple[str, list[bool]]]:
        for line in process.stdout or ():
            yield line.strip(), [is_in_memory(process.pid, key) for key in keys]
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    with process:
        try:
            yield steps()
        finally:
            process.kill()


def test_a_key_is_gone_when_another_took_its_place_and_when_the_engine_ended() -> None:
    with holder(os.urandom(32), os.urandom(32)) as steps:
        assert list(steps) == [
            ("in use", [True, True]),
            ("replaced", [False, False]),
            ("in use", [True, True]),
            ("finished", [False, False]),
        ]
