"""Who goes first on a connection that several listeners share."""

from __future__ import annotations

import socket

import pytest

from rtunnel.ssh.relay import Priority
from tests.support.sshd import Sshd
from tests.support.tunnels import PORT_0, open_tunnel


@pytest.mark.parametrize("priority", ["auto", "interactive", "bulk"])
def test_a_listener_serves_with_every_priority(sshd: Sshd, priority: Priority) -> None:
    with open_tunnel(sshd, "engine") as tunnel:
        listener = tunnel.listen(
            PORT_0, to=lambda conn: conn.sendall(b"served"), priority=priority
        )
        assert listener.priority == priority
        with socket.create_connection(("127.0.0.1", listener.port)) as visitor:
            assert visitor.recv(6) == b"served"


def test_an_unknown_priority_is_refused_by_name(sshd: Sshd) -> None:
    wrong: Priority = "urgent"  # type: ignore[assignment]
    with (
        open_tunnel(sshd, "engine") as tunnel,
        pytest.raises(ValueError, match=r"'urgent'.*auto, interactive, bulk"),
    ):
        tunnel.listen(PORT_0, priority=wrong)
