"""The table of forwards: which open belongs to which request."""

from __future__ import annotations

import pytest

from rtunnel.addresses import parse_bind
from rtunnel.errors import PortInUse, ProtocolError
from rtunnel.forwards import (
    FORWARDED_STREAMLOCAL,
    FORWARDED_TCPIP,
    Forward,
    ForwardTable,
    Verdict,
)
from rtunnel.wire import string, u32


def forward(bind: int | str | tuple[str, int]) -> Forward:
    return Forward(parse_bind(bind))


def table(*forwards: Forward) -> ForwardTable:
    made = ForwardTable()
    for entry in forwards:
        made.add(entry)
    return made


def test_an_open_matches_the_address_and_port_as_requested() -> None:
    web, other = forward(("web.example", 80)), forward(("db.example", 80))
    forwards = table(web, other)
    assert forwards.match(FORWARDED_TCPIP, "db.example", 80) is other
    assert forwards.match(FORWARDED_TCPIP, "web.example", 80) is web


def test_an_open_for_a_port_that_was_never_requested_is_rejected() -> None:
    forwards = table(forward(8080))
    assert forwards.match(FORWARDED_TCPIP, "localhost", 8081) is Verdict.REJECT


def test_an_open_for_another_address_of_the_same_port_is_rejected() -> None:
    forwards = table(forward(("192.0.2.1", 8080)))
    assert forwards.match(FORWARDED_TCPIP, "192.0.2.2", 8080) is Verdict.REJECT


@pytest.mark.parametrize("wildcard", ["*", "", "0.0.0.0", "::"])
@pytest.mark.parametrize("told", ["", "0.0.0.0", "::", "192.0.2.7", "server.example"])
def test_a_wildcard_matches_by_port(wildcard: str, told: str) -> None:
    everywhere = forward((wildcard, 8080))
    assert table(everywhere).match(FORWARDED_TCPIP, told, 8080) is everywhere


@pytest.mark.parametrize("told", ["localhost", "127.0.0.1", "::1"])
def test_localhost_matches_both_loopback_addresses(told: str) -> None:
    local = forward(8080)
    assert table(local).match(FORWARDED_TCPIP, told, 8080) is local


def test_two_loopback_addresses_are_not_the_same() -> None:
    four = forward(("127.0.0.1", 8080))
    assert table(four).match(FORWARDED_TCPIP, "::1", 8080) is Verdict.REJECT


def test_an_ip_address_matches_however_it_is_written() -> None:
    six = forward(("2001:db8::1", 8080))
    told = "2001:0db8:0:0::0001"
    assert table(six).match(FORWARDED_TCPIP, told, 8080) is six


def test_the_exact_address_comes_before_a_wildcard() -> None:
    everywhere, one = forward(("*", 8080)), forward(("192.0.2.1", 8080))
    assert table(everywhere, one).match(FORWARDED_TCPIP, "192.0.2.1", 8080) is one


def test_an_open_is_parked_while_a_request_for_port_0_is_unanswered() -> None:
    any_port = forward(0)
    forwards = table(forward(8080), any_port)
    assert forwards.match(FORWARDED_TCPIP, "localhost", 4711) is Verdict.PARK
    any_port.resolve(u32(4711))
    assert forwards.match(FORWARDED_TCPIP, "localhost", 4711) is any_port
    assert forwards.match(FORWARDED_TCPIP, "localhost", 4712) is Verdict.REJECT


def test_an_open_for_port_0_matches_the_only_request_for_port_0() -> None:
    any_port = forward(0)
    any_port.resolve(u32(4711))
    forwards = table(forward(8080), any_port)
    assert forwards.match(FORWARDED_TCPIP, "localhost", 0) is any_port
    another = forward(0)
    forwards.add(another)
    another.resolve(u32(4712))
    assert forwards.match(FORWARDED_TCPIP, "localhost", 0) is Verdict.REJECT


def test_a_socket_path_matches_exactly() -> None:
    path = forward("/run/app.sock")
    forwards = table(path, forward(0))
    assert forwards.match(FORWARDED_STREAMLOCAL, "/run/app.sock", 0) is path
    assert forwards.match(FORWARDED_STREAMLOCAL, "/run/b.sock", 0) is Verdict.REJECT


def test_the_same_bind_twice_is_refused_here_already() -> None:
    forwards = table(forward(8080))
    with pytest.raises(PortInUse, match="8080"):
        forwards.add(forward(8080))


def test_a_port_the_server_chose_is_not_requested_again() -> None:
    any_port = forward(0)
    any_port.resolve(u32(4711))
    with pytest.raises(PortInUse, match="4711"):
        table(any_port).add(forward(4711))


def test_port_0_may_be_requested_many_times() -> None:
    assert len(table(forward(0), forward(0), forward(0))) == 3


def test_a_forward_keeps_matching_until_its_cancel_is_answered() -> None:
    old, new = forward(8080), forward(8080)
    forwards = table(old)
    forwards.mark_cancelling(old)
    forwards.add(new)
    assert forwards.match(FORWARDED_TCPIP, "localhost", 8080) is old
    forwards.remove(old)
    assert forwards.match(FORWARDED_TCPIP, "localhost", 8080) is new


def test_the_cancel_names_the_requested_address_and_the_allocated_port() -> None:
    any_port = forward(("*", 0))
    assert any_port.request() == ("tcpip-forward", string("") + u32(0))
    any_port.resolve(u32(4711))
    assert any_port.cancel_request() == (
        "cancel-tcpip-forward",
        string("") + u32(4711),
    )
    assert str(any_port) == "*:4711"


def test_a_socket_path_is_requested_and_cancelled_by_its_path() -> None:
    path = forward("/run/app.sock")
    assert path.request() == (
        "streamlocal-forward@openssh.com",
        string("/run/app.sock"),
    )
    assert path.cancel_request() == (
        "cancel-streamlocal-forward@openssh.com",
        string("/run/app.sock"),
    )
    assert path.port == 0


@pytest.mark.parametrize("reply", [b"", b"\0\0", u32(0), u32(65536)])
def test_a_reply_without_a_real_port_is_a_protocol_error(reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        forward(0).resolve(reply)
