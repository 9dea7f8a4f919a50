"""Reverse tunnels through an asyncssh server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel import Tunnel
from tests.support.interop import Cancel, ChosenPort, HalfClose, Interop
from tests.support.other_servers import AsyncsshServer
from tests.support.tunnels import Target, say


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncsshServer]:
    with AsyncsshServer(tmp_path_factory.mktemp("asyncssh")) as running:
        yield running


class TestAsyncssh(Interop, HalfClose, ChosenPort, Cancel):
    auto_backend = "engine"
    version = "SSH-2.0-AsyncSSH_"

    def test_it_can_listen_on_a_unix_socket(
        self, tunnel: Tunnel, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "remote.sock")
        with Target(say(b"through a path")) as target:
            listener = tunnel.listen(path, target.spec)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                assert sock.makefile("rb").read() == b"through a path"
            listener.close()
            with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError):  # noqa: PT011
                sock.connect(path)
