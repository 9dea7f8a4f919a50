"""The private names of paramiko that are used exist in the one installed here."""

from __future__ import annotations

import socket
from typing import Any

import paramiko

from rtunnel.ssh import seams


def test_every_private_name_exists() -> None:
    assert list(seams.missing_names()) == []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport: Any = paramiko.Transport(ours)
        for name in seams.TRANSPORT_ATTRIBUTES:
            assert hasattr(transport, name), name
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
