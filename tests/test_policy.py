"""The rules of a listener: read, checked, and applied to addresses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.policy import Policy


@pytest.mark.parametrize(
    ("rules", "address", "admitted"),
    [
        ({}, "192.0.2.1", True),
        ({}, "", True),
        ({"allow": ["192.0.2.0/24"]}, "192.0.2.1", True),
        ({"allow": ["192.0.2.0/24"]}, "198.51.100.1", False),
        ({"allow": ["192.0.2.1"]}, "192.0.2.1", True),
        ({"allow": ["192.0.2.1"]}, "::ffff:192.0.2.1", True),
        ({"allow": ["::1"]}, "::1", True),
        ({"allow": ["fe80::/10"]}, "fe80::1%eth0", True),
        ({"allow": ["::/0"]}, "192.0.2.1", False),
        ({"deny": ["192.0.2.0/24"]}, "192.0.2.1", False),
        ({"deny": ["192.0.2.0/24"]}, "::ffff:192.0.2.1", False),
        ({"deny": ["192.0.2.0/24"]}, "198.51.100.1", True),
        ({"allow": ["192.0.2.0/24"], "deny": ["192.0.2.1"]}, "192.0.2.1", False),
        ({"allow": ["192.0.2.0/24"], "deny": ["192.0.2.1"]}, "192.0.2.2", True),
        # Nobody knows who that is.
        ({"allow": ["0.0.0.0/0"]}, "UNKNOWN", False),
        ({"deny": ["192.0.2.1"]}, "UNKNOWN", False),
    ],
)
def test_a_visitor_is_admitted_by_its_address(
    rules: dict[str, Any], address: str, admitted: bool
) -> None:
    assert Policy.of(**rules).admits(address) is admitted


@pytest.mark.parametrize(
    ("permits", "host", "port", "permitted"),
    [
        (None, "anywhere", 1, True),
        (["any"], "anywhere", 1, True),
        (["none"], "anywhere", 1, False),
        ([], "anywhere", 1, False),
        (["db:5432"], "db", 5432, True),
        (["db:5432"], "DB.", 5432, True),
        (["db:5432"], "db", 5433, False),
        (["db:5432"], "db2", 5432, False),
        (["db:*"], "db", 1, True),
        (["*:80"], "anywhere", 80, True),
        (["*:80"], "anywhere", 81, False),
        (["[::1]:80"], "::1", 80, True),
        (["[::1]:80"], "0:0:0:0:0:0:0:1", 80, True),
        (["127.0.0.1:80"], "localhost", 80, False),  # names are not looked up
        (["a:1", "b:2"], "b", 2, True),
    ],
)
def test_a_place_is_permitted_as_the_visitor_names_it(
    permits: list[str] | None, host: str, port: int, permitted: bool
) -> None:
    assert Policy.of(permit_open=permits).permits(host, port) is permitted


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"allow": ["somewhere"]}, "allow: 'somewhere'.*192.0.2.0/24"),
        ({"deny": ["192.0.2.1/24"]}, "deny: 192.0.2.1/24 has host bits set"),
        ({"allow": "192.0.2.1"}, r"allow is a list of texts: \['192.0.2.1'\]"),
        ({"max_connections": 0}, "max_connections is a number from 1"),
        ({"max_connections": True}, "max_connections is a number"),
        ({"rate_bytes_per_s": 0}, "rate_bytes_per_s is a number from 1"),
        ({"rate_bytes_per_s": 10**12}, "rate_bytes_per_s is at most"),
        ({"idle_timeout_s": 0}, "idle_timeout_s is a time"),
        ({"idle_timeout_s": float("nan")}, "idle_timeout_s is a time"),
        ({"connect_timeout_s": float("inf")}, "connect_timeout_s is a time"),
        ({"priority": "highest"}, "unknown priority 'highest'"),
        ({"proxy_protocol": 3}, "versions 1 and 2, not 3"),
        ({"permit_open": ["db"]}, "expected host:port"),
        ({"permit_open": ["db:http"]}, "'http' is no port number"),
        ({"permit_open": ["db:0"]}, "1 to 65535"),
        ({"permit_open": ["any", "db:1"]}, "'any' stands alone"),
        ({"permit_open": "db:1"}, "permit_open is a list"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_the_reason(
    rules: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Policy.of(**rules)


@given(st.text(max_size=40))
def test_any_address_of_a_visitor_is_admitted_or_not_never_anything_else(
    address: str,
) -> None:
    assert Policy.of(deny=["192.0.2.1"]).admits(address) in (True, False)
