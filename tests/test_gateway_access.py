"""Who gets into the gateway, and what they may have there: certificates and users."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel.errors import ConfigError
from rtunnel.gateway import Gateway
from rtunnel.gateway.binding import TcpPlace, addresses_for
from rtunnel.gateway.certificates import BadCertificate, UserCertificate
from rtunnel.gateway.settings import GatewayPorts, Rights, User
from rtunnel.gateway.users import Users
from rtunnel.ssh.keys import read_public_file
from tests.support.gateways import GatewayServer, Guest
from tests.support.other_servers import connect, run
from tests.support.ports import free_port, listens, wait_listening
from tests.support.sshd import wait_until
from tests.support.tunnels import ask, read_all, say

LOGGED_IN = "Authenticated to 127.0.0.1"


class Authority:
    """Who signs certificates."""

    def __init__(self, folder: Path) -> None:
        self.key = folder / "authority"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        self.public = self.key.with_suffix(".pub").read_text()

    def certify(self, guest: Guest, *options: str, names: str = "guest") -> None:
        """Give a guest a certificate, which ssh finds beside the key."""
        principals = ("-n", names) if names else ()
        public = guest.user_key.with_suffix(".pub")
        run(
            *("ssh-keygen", "-q", "-s", str(self.key), "-I", "an id"),
            *(*principals, *options, str(public)),
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextlib.contextmanager
def gateway_of(authority: Authority, options: str = "") -> Iterator[Gateway]:
    line = f"cert-authority{options} {authority.public}"
    with Gateway(authorized_keys=[line]) as gateway:
        yield gateway


# Certificates.


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_certificate_of_every_kind_of_key_lets_in(
    authority: Authority, tmp_path: Path, kind: str
) -> None:
    guest = Guest(tmp_path, kind=kind)
    authority.certify(guest)
    with (
        gateway_of(authority) as gateway,
        guest.meet(gateway).serving(say(b"certified")) as ssh,
    ):
        assert ask(ssh.port()) == b"certified"


REFUSED = [
    ("", ("-n", "somebody"), "it is not for guest"),
    ("", (), "it is not for guest"),
    (',principals="admin"', ("-n", "guest"), "it is not for admin"),
    ("", ("-n", "guest", "-V", "20200101:20200102"), "it has expired"),
    ("", ("-n", "guest", "-V", "20990101:20990102"), "it is not valid yet"),
    (
        "",
        ("-n", "guest", "-O", "source-address=10.0.0.0/8"),
        "it may not be used from 127.0.0.1",
    ),
    (
        "",
        ("-n", "guest", "-O", "critical:made-up@example.org=1"),
        "critical options that are not known: made-up@example.org",
    ),
    (',from="10.0.0.0/8"', ("-n", "guest"), "it may not be used from 127.0.0.1"),
]


@pytest.mark.parametrize(("line", "options", "reason"), REFUSED)
def test_a_certificate_that_is_not_for_this_user_here_and_now_is_refused(
    authority: Authority,
    tmp_path: Path,
    line: str,
    options: tuple[str, ...],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    guest = Guest(tmp_path)
    authority.certify(guest, *options, names="")
    with gateway_of(authority, line) as gateway, guest.meet(gateway).forward(1) as ssh:
        assert ssh.status() == 255
        assert "Permission denied (publickey)" in ssh.said
    assert reason in caplog.text


def test_a_certificate_of_a_host_is_none_of_a_user(
    authority: Authority, tmp_path: Path
) -> None:
    # ssh(1) does not even show it.
    guest = Guest(tmp_path)
    authority.certify(guest, "-h")
    blob = read_public_file(tmp_path / "guest_key-cert.pub")
    with pytest.raises(BadCertificate, match="a host's certificate"):
        UserCertificate.read(blob).check(("guest",), "127.0.0.1", 0.0)


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    right, other = Authority(tmp_path), Authority(tmp_path / "other")
    guest = Guest(tmp_path)
    other.certify(guest)
    with gateway_of(right) as gateway, guest.meet(gateway).forward(1) as ssh:
        assert ssh.status() == 255


def test_the_key_of_an_authority_is_no_key_to_log_in_with(
    authority: Authority, tmp_path: Path
) -> None:
    guest = Guest(tmp_path)
    guest.user_key = authority.key
    with gateway_of(authority) as gateway, guest.meet(gateway).forward(1) as ssh:
        assert ssh.status() == 255


def test_principals_of_the_line_are_the_names_that_count(
    authority: Authority, tmp_path: Path
) -> None:
    guest = Guest(tmp_path)
    authority.certify(guest, names="ops,dev")
    with (
        gateway_of(authority, ',principals="dev,others"') as gateway,
        guest.meet(gateway).serving(say(b"dev")) as ssh,
    ):
        assert ask(ssh.port()) == b"dev"


def test_a_certificate_without_the_right_to_forward_forwards_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    guest = Guest(tmp_path)
    authority.certify(guest, "-O", "no-port-forwarding")
    with (
        gateway_of(authority) as gateway,
        guest.meet(gateway).forward(1, "0", "-v") as s,
    ):
        assert s.status() == 255
        assert "port forwarding is disabled for this key" in s.said


def test_a_new_certificate_of_the_same_name_takes_the_port_over(
    authority: Authority, tmp_path: Path
) -> None:
    first, second = Guest(tmp_path), Guest(tmp_path, "renewed")
    second.user = first.user
    for guest in (first, second):
        authority.certify(guest)
    with (
        gateway_of(authority) as gateway,
        first.meet(gateway).serving(say(b"1")) as old,
    ):
        port = old.port()
        with second.meet(gateway).serving(say(b"2"), str(port), "-v") as new:
            wait_until(lambda: "remote forward success" in new.said)
            assert ask(port) == b"2"


# Users.


def test_users_have_their_own_keys_and_ports(tmp_path: Path) -> None:
    alice, bob = Guest(tmp_path, "alice"), Guest(tmp_path, "bob")
    ports = [free_port(), free_port()]
    users = [
        User(guest.user, (guest.public,), Rights(ports=(range(port, port + 1),)))
        for guest, port in zip((alice, bob), ports, strict=True)
    ]
    with Gateway(users=users) as gateway:
        with alice.meet(gateway).forward(1, str(ports[0])):
            wait_listening(ports[0])
        with alice.forward(1, str(ports[1]), "-v") as ssh:
            assert ssh.status() == 255
            assert f"port {ports[1]} is disabled on this gateway" in ssh.said
        bob.meet(gateway)
        bob.user = "alice"
        with bob.forward(1) as ssh:
            assert ssh.status() == 255
            assert "Permission denied" in ssh.said


def test_port_0_is_one_of_the_ports_of_the_user(tmp_path: Path) -> None:
    guest, port = Guest(tmp_path), free_port()
    rights = Rights(ports=(range(80, 81), range(port, port + 1)))
    users = [User(guest.user, (guest.public,), rights)]
    with Gateway(users=users) as gateway, guest.meet(gateway).forward(1) as ssh:
        assert ssh.port() == port


def test_keys_may_be_in_a_file_for_each_user(tmp_path: Path) -> None:
    alice, bob = Guest(tmp_path, "alice"), Guest(tmp_path, "bob")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "alice").write_text(alice.public)
    with Gateway(authorized_keys=[tmp_path / "keys" / "%u"]) as gateway:
        with alice.meet(gateway).serving(say(b"alice")) as ssh:
            assert ask(ssh.port()) == b"alice"
        # One that comes later is found.
        (tmp_path / "keys" / "bob").write_text(bob.public)
        with bob.meet(gateway).serving(say(b"bob")) as ssh:
            assert ask(ssh.port()) == b"bob"


@pytest.mark.parametrize("name", ["../keys/alice", "..", "", "a/b", "alice\0"])
def test_a_name_that_is_a_path_leads_to_no_file(tmp_path: Path, name: str) -> None:
    alice = Guest(tmp_path, "alice")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "alice").write_text(alice.public)
    users = Users([tmp_path / "keys" / "%u"], Rights())
    blob = read_public_file(alice.user_key.with_suffix(".pub"))
    assert users.login("alice", blob, "") is not None
    assert users.login(name, blob, "") is None


@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1"])
def test_a_client_has_the_same_address_on_every_kind_of_socket(
    tmp_path: Path, address: str
) -> None:
    guest = Guest(tmp_path)
    line = f'from="127.0.0.1,::1" {guest.public}'
    with (
        Gateway((address, 0), authorized_keys=[line]) as gateway,
        meet_as(guest, gateway).serving(say(b"hello"), "0", *via(address)) as ssh,
    ):
        assert ask(ssh.port()) == b"hello"
        (connection,) = gateway.status().connections
        assert connection.name == f"guest@{address or '127.0.0.1'}"


def meet_as(guest: Guest, gateway: Gateway) -> Guest:
    guest.meet(gateway)
    guest.known_hosts.write_text(
        f"gateway {gateway.known_hosts_line().split(' ', 1)[1]}"
    )
    return guest


def via(address: str) -> tuple[str, ...]:
    """Return flags with which ssh connects there instead."""
    name = ("-o", "HostKeyAlias=gateway")
    return (*name, "-o", f"Hostname={address}") if address else name


# Where ports listen.


@pytest.mark.parametrize(
    ("rule", "wish", "addresses"),
    [
        ("no", "0.0.0.0", ("127.0.0.1", "::1")),
        ("yes", "localhost", ("0.0.0.0", "::")),
        ("clientspecified", "", ("0.0.0.0", "::")),
        ("clientspecified", "*", ("0.0.0.0", "::")),
        ("clientspecified", "localhost", ("127.0.0.1", "::1")),
        ("clientspecified", "127.0.0.9", ("127.0.0.9",)),
        ("clientspecified", "0.0.0.0", ("0.0.0.0",)),
    ],
)
def test_gateway_ports_say_where_a_port_listens(
    rule: str, wish: str, addresses: tuple[str, ...]
) -> None:
    assert addresses_for(GatewayPorts(rule), wish) == addresses


def test_places_overlap_if_some_visitors_would_come_to_both() -> None:
    loopback = TcpPlace(("127.0.0.1", "::1"), 80)
    assert loopback.overlaps(TcpPlace(("127.0.0.1",), 80))
    assert loopback.overlaps(TcpPlace(("0.0.0.0", "::"), 80))
    assert not loopback.overlaps(TcpPlace(("127.0.0.9",), 80))
    assert not loopback.overlaps(TcpPlace(("127.0.0.1",), 81))


def test_a_client_may_choose_the_address_if_the_gateway_lets_it(tmp_path: Path) -> None:
    port = free_port()
    rights = Rights(gateway_ports=GatewayPorts.CHOSEN)
    with (
        GatewayServer(tmp_path, rights=rights) as server,
        server.serving(say(b"nine"), f"127.0.0.9:{port}", "-v") as ssh,
    ):
        wait_until(lambda: "remote forward success" in ssh.said)
        with socket.create_connection(("127.0.0.9", port), 20.0) as sock:
            assert read_all(sock) == b"nine"
        assert not listens(port)


@pytest.mark.parametrize("address", ["name.example", "192.0.2.1"])
def test_an_address_that_is_not_the_gateways_is_refused(
    tmp_path: Path, address: str
) -> None:
    rights = Rights(gateway_ports=GatewayPorts.CHOSEN)
    with (
        GatewayServer(tmp_path, rights=rights) as server,
        server.forward(1, f"{address}:{free_port()}", "-v") as ssh,
    ):
        assert ssh.status() == 255
        assert "cannot listen on" in ssh.said


def test_one_client_may_have_a_port_of_two_addresses_and_give_one_back(
    tmp_path: Path,
) -> None:
    port = free_port()
    rights = Rights(gateway_ports=GatewayPorts.CHOSEN)
    with GatewayServer(tmp_path, rights=rights) as server, connect(server) as tunnel:
        one = tunnel.listen(("127.0.0.1", port), say(b"one"))
        two = tunnel.listen(("127.0.0.9", port), say(b"two"))
        assert ask(port) == b"one"
        one.close()
        assert not listens(port)
        with socket.create_connection(("127.0.0.9", port), 20.0) as sock:
            assert read_all(sock) == b"two"
        two.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ports": (range(5),)}, "no range of ports"),
        ({"socket_folder": Path("/nowhere")}, "socket paths does not exist"),
        ({"socket_folder": Path("/" + "x" * 300)}, "socket paths does not exist"),
        ({"listeners_max": -1}, "listeners_max"),
        ({"rate_bytes_per_s": 10}, "at least 1500"),
        ({"proxy_protocol": 3}, "1 or 2, not 3"),
        ({"permit_open": ("localhost",)}, "expected host:port"),
        ({"permit_open": ("localhost:0",)}, "expected host:port"),
    ],
)
def test_rights_that_make_no_sense_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Rights(**settings)  # type: ignore[arg-type]
