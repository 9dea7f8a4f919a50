"""The file of `rtunnel run`: every mistake is found, and has its line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.addresses import TcpBind, UnixBind
from rtunnel.errors import ConfigError
from rtunnel.supervisor import Config, ServerConfig, TunnelConfig, check, load
from rtunnel.toml_file import lines_of, parse
from tests.support.command import ROOT
from tests.support.supervising import toml

GOOD = """\
[servers.edge]
destination = "user@host"

[servers.edge.tunnels.web]
listen = 8080
to = "localhost:3000"
"""


def read(text: str) -> Config:
    return parse(text.encode(), Config, Path("t.toml"))


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value).splitlines()


def test_a_good_file_becomes_servers_and_tunnels() -> None:
    config = read(GOOD)
    edge = config.servers["edge"]
    assert edge.destination == "user@host"
    assert edge.tunnels["web"].listen == TcpBind("localhost", 8080)
    assert edge.tunnels["web"].to == "localhost:3000"
    assert config.tunnel_count == 1


def test_the_example_in_the_project_is_right() -> None:
    config = load(ROOT / "examples" / "tunnels.toml")
    assert config.tunnel_count == 3
    assert config.servers["edge"].tunnels["database"].listen == UnixBind(
        "/run/tunnel/db.sock"
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'to = "localhost:3000"',
            'too = "localhost:3000"',
            [
                "t.toml:4: servers.edge.tunnels.web: to is missing",
                "t.toml:6: servers.edge.tunnels.web: unknown key 'too'; "
                "did you mean to?",
            ],
        ),
        (
            "[servers.edge]",
            "[server.edge]",
            [
                "t.toml:1: unknown key 'server'; did you mean servers?",
                "t.toml:4: servers.edge: destination is missing",
            ],
        ),
        (
            "listen = 8080",
            "listen = 80800",
            [
                "t.toml:5: servers.edge.tunnels.web.listen: cannot understand bind "
                "80800: a port is a number from 0 to 65535"
            ],
        ),
        (
            "listen = 8080",
            "listen = true",
            [
                "t.toml:5: servers.edge.tunnels.web.listen: cannot understand bind "
                "True: expected a port, (address, port) or a socket path"
            ],
        ),
        (
            "listen = 8080",
            "listen = [8080]",
            [
                "t.toml:5: servers.edge.tunnels.web.listen: expected a port, an "
                "address with a port, or a socket path"
            ],
        ),
        (
            'to = "localhost:3000"',
            "to = 3000",
            [
                "t.toml:6: servers.edge.tunnels.web.to: expected a text, as "
                '"localhost:3000"'
            ],
        ),
        (
            'destination = "user@host"',
            'destination = "user@host"\nkeepalive_interval_s = -1',
            [
                "t.toml:3: servers.edge.keepalive_interval_s: input should be "
                "greater than 0"
            ],
        ),
        (
            "[servers.edge.tunnels.web]",
            '[servers.edge.tunnels."two words"]',
            [
                't.toml:4: servers.edge.tunnels."two words": a name has letters, '
                "digits, '_', '.' and '-', and 64 of them at most"
            ],
        ),
        (
            'to = "localhost:3000"',
            'to = "localhost:3000"\nallow = [\n  "10.0.0.0/8",\n  "10.0.0.1/8",\n]',
            [
                "t.toml:7: servers.edge.tunnels.web.allow[1]: 10.0.0.1/8 has host "
                "bits set: expected an address, or a network as 192.0.2.0/24"
            ],
        ),
        (
            'to = "localhost:3000"',
            'to = "localhost:3000"\nhealth = { check = "http", pth = "/" }',
            [
                "t.toml:7: servers.edge.tunnels.web.health: unknown key 'pth'; "
                "did you mean path?"
            ],
        ),
        (
            'to = "localhost:3000"',
            'to = "localhost:3000"\nhealth = { path = "no slash" }',
            [
                "t.toml:7: servers.edge.tunnels.web.health.path: the path of a page "
                "begins with / and has no spaces"
            ],
        ),
        (
            'to = "localhost:3000"',
            'to = "socks"\nhealth = {}',
            [
                "t.toml:7: servers.edge.tunnels.web.health: only a host and port, or "
                "a Unix socket, can be checked"
            ],
        ),
        (
            'to = "localhost:3000"',
            'to = "localhost:3000"\npermit_open = ["*:443"]',
            [
                "t.toml:7: servers.edge.tunnels.web.permit_open: this is a rule for "
                'to = "socks"'
            ],
        ),
        (
            'to = "localhost:3000"',
            'to = "socks"\nproxy_protocol = 2',
            [
                "t.toml:7: servers.edge.tunnels.web.proxy_protocol: only a host and "
                "port, or a Unix socket, takes it"
            ],
        ),
        (
            'to = "localhost:3000"',
            'to = "socks"\npermit_open = ["nonsense"]',
            [
                "t.toml:4: servers.edge.tunnels.web: cannot understand permit_open "
                "'nonsense': expected host:port; put IPv6 in brackets"
            ],
        ),
        (
            "listen = 8080",
            'listen = "/run/s"\ndeny = ["::/0"]',
            [
                "t.toml:6: servers.edge.tunnels.web.deny: visitors of a Unix socket "
                "have no address: the permissions of the socket decide"
            ],
        ),
        (
            'destination = "user@host"',
            'destination = "user@host"\nretry = { first_s = 10, max_s = 1 }',
            [
                "t.toml:3: servers.edge.retry: the longest wait (1 s) is below the "
                "first (10 s)"
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_told_with_its_line(
    old: str, new: str, expected: list[str]
) -> None:
    assert old in GOOD
    assert mistakes(GOOD.replace(old, new)) == expected


def test_a_key_that_is_like_no_other_is_answered_with_all_there_are() -> None:
    (line,) = mistakes("xyzzy = 1\n" + GOOD)
    assert line == "t.toml:1: unknown key 'xyzzy'; known are servers, status"


def test_two_tunnels_cannot_listen_on_the_same_port_of_a_server() -> None:
    more = GOOD.replace("tunnels.web", "tunnels.two").partition("\n\n")[2]
    assert mistakes(f"{GOOD}{more}") == [
        "t.toml:8: servers.edge.tunnels.two.listen: 8080 is what the tunnel edge.web "
        "listens on already"
    ]
    assert mistakes(GOOD + GOOD.replace("edge", "same")) == [
        "t.toml:11: servers.same.tunnels.web.listen: 8080 is what the tunnel edge.web "
        "listens on already"
    ]
    assert read(f"{GOOD}{more}".replace("8080", "0")).tunnel_count == 2
    other = GOOD.replace("edge", "other").replace("host", "elsewhere")
    assert read(GOOD + other).tunnel_count == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[servers\n", "t.toml:1: "),
        ("a = 1\nb = \n", "t.toml:2: "),
        ("a = 1\na = 2\n", "t.toml:"),
        ("a = [\n1,\n", "t.toml:"),
        ('a = """\nx\n', "t.toml:"),
    ],
)
def test_what_is_not_toml_is_told_with_its_line(text: str, expected: str) -> None:
    (line,) = mistakes(text)
    assert line.startswith(expected)
    assert re.match(r"t\.toml:\d+: \S", line)


def test_bytes_that_are_no_text_are_told_with_their_line() -> None:
    with pytest.raises(ConfigError, match=r"t.toml:2: this is not UTF-8 text"):
        parse(b"a = 1\nb = '\xff'\n", Config, Path("t.toml"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.toml: No such file"):
        load(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)


def test_a_file_that_is_far_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\0" * (1 << 20) + b"\0")
    with pytest.raises(ConfigError, match="more than 1 MiB: is it the right file"):
        load(path)


def test_a_relative_path_begins_at_the_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(
        GOOD.replace(
            "\n\n", '\nidentity_files = ["key", "~/.ssh/k", "/k"]\nknown_hosts="h"\n\n'
        )
    )
    edge = load(path).servers["edge"]
    assert edge.identity_files == (str(tmp_path / "key"), "~/.ssh/k", "/k")
    assert edge.known_hosts == str(tmp_path / "h")


def test_what_ssh_config_refuses_is_found_by_check(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(
        GOOD.replace(
            "\n\n",
            '\nconfig_file = "none"\nidentity_files = ["missing"]\n'
            'ssh_options = { RekeyLimt = "1G" }\n\n',
        )
    )
    option, key = check(path, load(path))
    assert option == (
        f"{path}:1: servers.edge: -o RekeyLimt=1G: no option RekeyLimt here; "
        "did you mean RekeyLimit?"
    )
    assert key == (
        f"{path}:4: servers.edge.identity_files: there is no file "
        f"{tmp_path / 'missing'}"
    )


@pytest.mark.parametrize("name", ["/" + "x" * 300, "~no-such-user/id"])
def test_a_key_that_cannot_be_looked_at_is_not_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(GOOD.replace("\n\n", f'\nidentity_files = ["{name}"]\n\n'))
    assert any("there is no file" in problem for problem in check(path, load(path)))


def test_nobody_is_asked_for_anything() -> None:
    options = read(GOOD).servers["edge"].connect_options
    assert options == {"ssh_options": {"BatchMode": "yes"}}


def test_what_does_not_concern_the_connection_needs_no_other_one() -> None:
    edge = read(GOOD).servers["edge"]
    other = read(GOOD.replace("8080", "9090")).servers["edge"]
    assert edge != other
    assert edge.connects_like(other)
    slower = GOOD.replace("\n\n", "\nkeepalive_interval_s = 5\n\n")
    assert not edge.connects_like(read(slower).servers["edge"])


def test_a_configuration_can_be_made_in_code() -> None:
    web = TunnelConfig(listen=8080, to="localhost:3000")
    edge = ServerConfig(destination="user@host", tunnels={"web": web})
    assert Config(servers={"edge": edge}) == read(GOOD)


# Lines of keys.

KEYS = st.text("ab'\" .#[=", min_size=1, max_size=4)
LEAVES = st.one_of(
    st.integers(0, 9),
    st.text("a\"'\\\n#[]=", max_size=8),
    st.lists(st.integers(0, 9), max_size=3),
)
TABLES = st.dictionaries(
    KEYS,
    st.one_of(LEAVES, st.dictionaries(KEYS, st.one_of(LEAVES), max_size=3)),
    max_size=4,
)


@given(TABLES)
def test_every_key_of_any_document_has_the_line_where_it_stands(
    table: dict[str, object],
) -> None:
    text = toml(table)  # a key in each line
    assert tomllib.loads(text) == table
    lines = text.split("\n")
    for place, line in lines_of(text).items():
        *tables, key = [part for part in place if isinstance(part, str)]
        found = tomllib.loads(lines[line - 1])
        for table_name in tables if lines[line - 1].startswith("[") else []:
            found = found[table_name]
        assert key in found


def test_statements_may_take_several_lines() -> None:
    text = (
        "# [a]\n"
        'b = """\n'
        "[c]\n"
        'd = 1"""\n'
        "e = [ # ]\n"
        "  1,\n"
        "  { f = 2 },\n"
        "]\n"
        "[[g.h]]\n"
        "i.j = 3\n"
        "[[g.h]]\n"
        "i = 4\n"
        "[g.h.k]\n"
        "l = 5\n"
    )
    assert lines_of(text) == {
        ("b",): 2,
        ("e",): 5,
        ("e", 0): 5,
        ("e", 1): 5,
        ("e", 1, "f"): 5,
        ("g",): 9,
        ("g", "h"): 9,
        ("g", "h", 0): 9,
        ("g", "h", 0, "i"): 10,
        ("g", "h", 0, "i", "j"): 10,
        ("g", "h", 1): 11,
        ("g", "h", 1, "i"): 12,
        ("g", "h", 1, "k"): 13,
        ("g", "h", 1, "k", "l"): 14,
    }
