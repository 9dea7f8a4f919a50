"""The private names of paramiko that are used exist in the one installed here."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import paramiko
import pytest

from rtunnel.ssh import seams
from tests.support.sshd import Sshd


def test_every_private_name_exists() -> None:
    assert list(seams.missing_names()) == []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport: Any = paramiko.Transport(ours)
        for name in seams.TRANSPORT_ATTRIBUTES:
            assert hasattr(transport, name), name
        channel: Any = paramiko.Channel(0)
        channel._set_transport(transport)
        channel._set_window(2**21, 2**15)
        channel._set_remote_channel(1, 2**21, 2**15)
        for name in seams.CHANNEL_ATTRIBUTES:
            assert hasattr(channel, name), name
        channel.closed = True  # nothing is sent for it
        transport.packetizer.close()


def test_the_tables_have_an_entry_for_every_message_that_is_taken_over() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport: Any = paramiko.Transport(ours)
        assert {81, 82, 90, 91, 92} <= set(seams.handler_table(transport))
        assert set(range(93, 101)) <= set(transport._channel_handler_table)
        transport.packetizer.close()


def test_an_object_in_the_map_of_channels_needs_only_unlink() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport: Any = paramiko.Transport(ours)
        ends: list[bool] = []
        watch = seams.watch_end(transport, lambda: ends.append(True))
        transport.active = True
        transport.close()
        assert ends == [True]
        del watch
        assert list(transport._channels.values()) == []


# Another paramiko, then a tunnel on it: arguments are port, user and key.
OTHER_PARAMIKO = """
import logging, socket, sys
import paramiko
from paramiko.packet import Packetizer

{change}

import rtunnel

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
with rtunnel.Transport(("127.0.0.1", int(sys.argv[1]))) as transport:
    key = paramiko.Ed25519Key.from_private_key_file(sys.argv[3])
    transport.connect(username=sys.argv[2], pkey=key)
    with rtunnel.Tunnel(transport) as tunnel:
        print("backend", tunnel.backend)
        greet = lambda conn, visitor: conn.sendall(b"served")
        listener = tunnel.listen(("127.0.0.1", 0), to=greet)
        with socket.create_connection(("127.0.0.1", listener.port)) as visitor:
            print(visitor.makefile().read())
"""

OTHER_ARGUMENTS = """
stock = Packetizer.set_outbound_cipher
def changed(self, *arguments, tag_bytes=16, **named):
    return stock(self, *arguments, **named)
Packetizer.set_outbound_cipher = changed
"""
RENAMED = """
Packetizer._start_rekey = Packetizer._trigger_rekey
del Packetizer._trigger_rekey
"""
WITHOUT_A_NAME = """
del paramiko.Transport._queue_incoming_channel
"""


def on_other_paramiko(sshd: Sshd, change: str) -> subprocess.CompletedProcess[str]:
    script = OTHER_PARAMIKO.format(change=change)
    arguments = (str(sshd.port), sshd.user, str(sshd.user_key))
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (OTHER_ARGUMENTS, "Packetizer.set_outbound_cipher of paramiko {} has other"),
        (RENAMED, "Packetizer._trigger_rekey of paramiko {} is gone"),
    ],
)
def test_a_paramiko_that_the_engine_does_not_fit_into_gets_a_portable_backend(
    sshd: Sshd, change: str, reason: str
) -> None:
    done = on_other_paramiko(sshd, change)
    told, *rest = done.stdout.splitlines()
    assert told.startswith("WARNING the engine does not run, a portable backend does: ")
    assert reason.format(paramiko.__version__) in told
    assert rest == ["backend pump", "served"]


def test_a_paramiko_that_no_backend_runs_on_is_an_error_that_names_the_versions(
    sshd: Sshd,
) -> None:
    done = on_other_paramiko(sshd, WITHOUT_A_NAME)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert "BackendUnavailable" in error
    assert "has no Transport._queue_incoming_channel" in error
    assert "paramiko>=3.5,<6" in error
