"""Reverse tunnels through Debian's dropbear.

It has no AES-GCM, so the pump runs and not the engine; its window is 24 KiB.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rtunnel import Tunnel
from rtunnel.tunnel import ListenerState
from tests.support.interop import ChosenPort, HalfClose, Interop
from tests.support.other_servers import DropbearServer
from tests.support.ports import free_port, listens
from tests.support.sshd import wait_until
from tests.support.tunnels import Target, echo, read_end, read_exactly, visit


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DropbearServer]:
    with DropbearServer(tmp_path_factory.mktemp("dropbear")) as running:
        yield running


class TestDropbear(Interop, HalfClose, ChosenPort):
    auto_backend = "pump"
    version = "SSH-2.0-dropbear_"

    # It refuses every cancel, also that of `ssh -O cancel`: before mkj/dropbear#414
    # (April 2026) it did not find what it listens on. So the port stays, until the
    # connection ends; whoever comes there is turned away.
    def test_a_cancel_that_is_refused_closes_the_listener_all_the_same(
        self, tunnel: Tunnel, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Target(echo) as target:
            closed = tunnel.listen(free_port(), target.spec)
            kept = tunnel.listen(free_port(), target.spec)
            with visit(kept.port) as sock:
                closed.close()
                assert closed.state is ListenerState.CLOSED
                assert f"cancel failed: listener={closed.port}" in caplog.text
                with visit(closed.port) as unwanted:
                    assert read_end(unwanted) in (b"", None)
                sock.sendall(b"after")
                assert read_exactly(sock, 5) == b"after"
            assert target.accepted == 1
        tunnel.close()
        wait_until(lambda: not listens(closed.port))
