"""A forward that a real sshd refuses: each cause reads differently."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtunnel import Tunnel
from rtunnel.errors import ForwardingDenied, PortInUse
from tests.support.sshd import Sshd
from tests.support.tunnels import PORT_0, Target, echo, open_tunnel


def test_a_port_where_something_listens_is_in_use(tunnel: Tunnel) -> None:
    with Target(echo) as taken:
        with pytest.raises(PortInUse, match=f"port {taken.port} is already in use"):
            tunnel.listen(("127.0.0.1", taken.port), "localhost:1")
        assert tunnel.listeners == []


def test_a_port_held_by_another_session_is_in_use(sshd: Sshd, tunnel: Tunnel) -> None:
    with open_tunnel(sshd, "python") as other:
        port = other.listen(PORT_0, "localhost:1").port
        with pytest.raises(PortInUse):
            tunnel.listen(("127.0.0.1", port), "localhost:1")
    tunnel.listen(("127.0.0.1", port), "localhost:1")


def test_a_port_of_this_tunnel_is_refused_without_asking(tunnel: Tunnel) -> None:
    port = tunnel.listen(PORT_0, "localhost:1").port
    with pytest.raises(PortInUse, match="this connection already listens"):
        tunnel.listen(("127.0.0.1", port), "localhost:1")


def test_a_socket_path_where_something_listens_is_in_use(
    tmp_path: Path, backend: str
) -> None:
    with (
        Sshd(tmp_path, "StreamLocalBindUnlink no") as sshd,
        open_tunnel(sshd, backend) as tunnel,
        open_tunnel(sshd, backend) as other,
    ):
        path = str(tmp_path / "app.sock")
        other.listen(path, "localhost:1")
        with pytest.raises(PortInUse, match=r"app\.sock is already in use"):
            tunnel.listen(path, "localhost:1")
        with pytest.raises(ForwardingDenied, match="StreamLocalBindUnlink"):
            tunnel.listen("/no/such/folder/app.sock", "localhost:1")


@pytest.mark.parametrize(
    ("options", "key_options"),
    [
        (["AllowTcpForwarding no"], ""),
        (["AllowTcpForwarding local"], ""),
        (["DisableForwarding yes"], ""),
        (["PermitListen none"], ""),
        (["PermitListen 127.0.0.1:1"], ""),
        ([], "restrict"),
        ([], "no-port-forwarding"),
        ([], 'permitlisten="127.0.0.1:1"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_the_server_forbids_is_denied_and_tells_where_to_look(
    tmp_path: Path, options: list[str], key_options: str
) -> None:
    with (
        Sshd(tmp_path, *options, key_options=key_options) as sshd,
        open_tunnel(sshd, "python") as tunnel,
    ):
        with pytest.raises(ForwardingDenied) as caught:
            tunnel.listen(PORT_0, "localhost:1")
        for place in ("AllowTcpForwarding", "PermitListen", "permitlisten"):
            assert place in str(caught.value)


def test_restrict_with_port_forwarding_is_allowed(tmp_path: Path) -> None:
    with (
        Sshd(tmp_path, key_options="restrict,port-forwarding") as sshd,
        open_tunnel(sshd, "python") as tunnel,
    ):
        assert tunnel.listen(PORT_0, "localhost:1").port
