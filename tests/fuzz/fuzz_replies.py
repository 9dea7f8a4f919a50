"""What an X2Go server's commands answer: any text is read, or is a `ControlError`.

What comes out is safe to go on with: names fit into file names and command lines, and
ports are ports.
"""

from __future__ import annotations

import contextlib

from tests.fuzz.harness import fuzz, watched

with watched():
    from x2go_session import replies
    from x2go_session.errors import ControlError
    from x2go_session.session import Ports

SAFE = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@-")


def check(name: str, ports: Ports) -> None:
    """A session that was believed."""
    assert name
    assert set(name) <= SAFE, name
    for port in (ports.graphics, ports.sound, ports.sharing):
        assert 0 <= port <= replies.HIGHEST_PORT


def test(data: bytes) -> None:
    """Read the text as every answer."""
    lines = data.decode(errors="replace").split("\n")
    for info in replies.sessions(lines):
        check(info.name, info.ports)
        assert info.type
        assert info.command in info.name
    with contextlib.suppress(ControlError):
        agent = replies.started_agent(lines)
        check(agent.name, agent.ports)
    with contextlib.suppress(ControlError):
        check("name", replies.resumed_ports(lines, "name"))
    for desktop in replies.desktops(lines):
        assert set(desktop.user) <= SAFE
    replies.mounts(lines)
    replies.features(lines)
    replies.versions(lines)


if __name__ == "__main__":
    fuzz(test)
