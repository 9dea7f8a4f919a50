"""OpenSSH's forward-control.sh for remote forwards: who may listen where.

How a refusal reads is in test_tunnel_refusals.py; this is the whole table.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rtunnel.errors import ForwardingDenied
from tests.support.other_servers import connect
from tests.support.ports import bound, free_port
from tests.support.sshd import Sshd
from tests.support.tunnels import Target, ask, say

REMOTE_ALLOWED = ("yes", "remote")


def permit_listen(where: str, port: int) -> tuple[list[str], str]:
    """Return options of sshd and of the key that allow this port only."""
    if where == "sshd_config":
        return [f"PermitListen {port}"], ""
    if where == "authorized_keys":
        return [], f'permitlisten="{port}"'
    return [], ""


@pytest.mark.parametrize("allow", ["yes", "remote", "local", "no"])
@pytest.mark.parametrize(
    ("where", "matches"),
    [
        ("nowhere", True),
        ("sshd_config", True),
        ("sshd_config", False),
        ("authorized_keys", True),
        ("authorized_keys", False),
    ],
)
def test_a_port_is_served_exactly_where_both_settings_allow_it(
    tmp_path: Path, allow: str, where: str, matches: bool
) -> None:
    port = free_port()
    options, key_options = permit_listen(where, port if matches else free_port())
    options.append(f"AllowTcpForwarding {allow}")
    with (
        Sshd(tmp_path, *options, key_options=key_options) as sshd,
        connect(sshd) as tunnel,
        Target(say(b"let in")) as target,
    ):
        if allow in REMOTE_ALLOWED and matches:
            assert ask(tunnel.listen(port, target.spec).port) == b"let in"
            return
        with pytest.raises(ForwardingDenied, match=f"listening on {port}"):
            tunnel.listen(port, target.spec)
        assert not bound(port)
        # A refusal ends nothing but itself.
        assert tunnel.transport.is_active()
        assert tunnel.listeners == []


@pytest.mark.parametrize(
    ("key_options", "allowed"),
    [
        ("no-port-forwarding", False),
        ("restrict", False),
        ("restrict,port-forwarding", True),
        ('restrict,permitlisten="{port}"', False),
        ('restrict,port-forwarding,permitlisten="{port}"', True),
        ('restrict,port-forwarding,permitlisten="{other}"', False),
        ('permitlisten="{other}",permitlisten="localhost:{port}"', True),
        ('permitlisten="127.0.0.1:{port}"', False),
    ],
)
def test_the_options_of_a_key_say_what_it_may_do(
    tmp_path: Path, key_options: str, allowed: bool
) -> None:
    port, other = free_port(), free_port()
    with (
        Sshd(tmp_path, key_options=key_options.format(port=port, other=other)) as sshd,
        connect(sshd) as tunnel,
        Target(say(b"let in")) as target,
    ):
        if allowed:
            assert ask(tunnel.listen(port, target.spec).port) == b"let in"
            return
        with pytest.raises(ForwardingDenied):
            tunnel.listen(port, target.spec)


@pytest.mark.parametrize("tcp", ["yes", "remote", "local"])
@pytest.mark.parametrize("paths", ["yes", "remote", "local", "no"])
def test_a_socket_path_is_served_exactly_where_ports_are_allowed_too(
    tmp_path: Path, paths: str, tcp: str
) -> None:
    path = tmp_path / "remote.sock"
    options = [f"AllowStreamLocalForwarding {paths}", f"AllowTcpForwarding {tcp}"]
    with Sshd(tmp_path, *options) as sshd, connect(sshd) as tunnel:
        if paths in REMOTE_ALLOWED and tcp in REMOTE_ALLOWED:
            tunnel.listen(str(path), "localhost:1")
            assert path.exists()
            return
        with pytest.raises(ForwardingDenied) as caught:
            tunnel.listen(str(path), "localhost:1")
        for place in ("AllowStreamLocalForwarding", "AllowTcpForwarding"):
            assert place in str(caught.value)
        assert not path.exists()
