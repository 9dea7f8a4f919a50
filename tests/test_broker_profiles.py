"""Files of session profiles, who is offered what, and which server is least busy."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rtunnel.errors import ConfigError
from x2go_session.broker.server.acl import Acl, ClientRule, Order, Rule, networks
from x2go_session.broker.server.balance import Load, choose
from x2go_session.broker.server.load import read_answer
from x2go_session.broker.server.profiles_file import Host, read_host, read_profiles

INI = """\
# Of an institute.
[DEFAULT]
command=TERMINAL
sshport=22
fullscreen=false
applications=TERMINAL,WWWBROWSER
user=BROKER_USER

[pool]
name=XFCE - pool
host=s-e1 (10.0.2.11), s-e2 (10.0.2.12:2222),s-e3
command=XFCE
acl-users-allow=tester
acl-users-deny=ALL
acl-groups-allow=students,admins
acl-groups-deny=ALL
acl-any-order=deny-allow
acl-clients-allow=10.1.0.0/16, fe80::/10
broker-session-autologin=true
broker-authorized-keys=/var/lib/keys/%u/authorized_keys
broker-agent-query-mode=SSH

[desk]
host=desk.example.org
sshport=2200
setdpi=0
"""
TOML = """\
[defaults]
command = "TERMINAL"
sshport = 22
fullscreen = false
applications = ["TERMINAL", "WWWBROWSER"]
user = "BROKER_USER"

[profiles.pool]
name = "XFCE - pool"
host = ["s-e1 (10.0.2.11)", "s-e2 (10.0.2.12:2222)", "s-e3"]
command = "XFCE"
acl-users-allow = ["tester"]
acl-users-deny = ["ALL"]
acl-groups-allow = ["students", "admins"]
acl-groups-deny = ["ALL"]
acl-any-order = "deny-allow"
acl-clients-allow = ["10.1.0.0/16", "fe80::/10"]
broker-session-autologin = true
broker-authorized-keys = "/var/lib/keys/%u/authorized_keys"

[profiles.desk]
host = ["desk.example.org"]
sshport = 2200
setdpi = 0
"""


def write(folder: Path, text: str, name: str = "profiles.conf") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "text"), [("p.conf", INI), ("p.toml", TOML)])
def test_profiles_are_read_from_either_form(
    tmp_path: Path, name: str, text: str
) -> None:
    found = read_profiles(write(tmp_path, text, name))
    assert list(found) == ["desk", "pool"]
    pool, desk = found["pool"], found["desk"]
    assert dict(pool.values) == {
        "name": "XFCE - pool",
        "host": ["s-e1", "s-e2", "s-e3"],
        "sshport": 22,
        "command": "XFCE",
        "fullscreen": False,
        "applications": ["TERMINAL", "WWWBROWSER"],
        "user": "BROKER_USER",
    }
    assert pool.hosts == (
        Host("s-e1", "10.0.2.11", 22),
        Host("s-e2", "10.0.2.12", 2222),
        Host("s-e3", "s-e3", 22),
    )
    assert pool.autologin is True
    assert pool.authorized_keys == "/var/lib/keys/%u/authorized_keys"
    assert pool.acl.groups == Rule(("students", "admins"), ("ALL",))
    assert desk.values["name"] == "desk"
    assert desk.values["setdpi"] == 0
    assert desk.hosts == (Host("desk.example.org", "desk.example.org", 2200),)
    assert (desk.autologin, desk.authorized_keys, desk.acl) == (None, None, Acl())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nhost=b\nacl-user-allow=x\n", ":3: .*did you mean acl-users-allow"),
        ("[a]\nhost=no host\n", ":2: .*no host"),
        ("[a]\nhost=b\nacl-clients-allow=somewhere\n", ":3: .*'somewhere' is no addr"),
        ("[a]\nhost=b\n\n[a]\n", ":4: .*already exists"),
        ("[a]\nhost=b\nhost=c\n", ":3: .*already exists"),
        ("[a]\nsshport=70000\n", ":2: .*65535"),
        ("[a]\nacl-any-order=never\n", ":2: "),
        ("host=b\n", ":1: "),
        ("[a]\nfullscreen=maybe\n", ":2: .*true or false"),
        ("[a]\nwidth=wide\n", ":2: .*whole number"),
        ("[a b]\nhost=c\n", ":1: .*no blanks"),
    ],
)
def test_a_mistake_is_said_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_profiles(write(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nothing"):
        read_profiles(tmp_path / "nothing")
    path = tmp_path / "p.conf"
    path.write_bytes(b"[a]\nname=\xff\n")
    with pytest.raises(ConfigError, match=r":2: .*UTF-8"):
        read_profiles(path)


def test_hosts_have_names_addresses_and_ports() -> None:
    assert read_host("srv", 22) == Host("srv", "srv", 22)
    assert read_host("srv ([2001:db8::1]:23)", 22) == Host("srv", "2001:db8::1", 23)
    assert read_host("srv (2001:db8::1)", 22) == Host("srv", "2001:db8::1", 22)
    host = Host("2001:db8::1", "2001:db8::1", 24)
    assert str(host) == "[2001:db8::1]:24"
    assert read_host(str(host), 22) == host
    for wrong in ("", "-oProxyCommand=x", "a b", "srv (a:99999)", "a;b", "srv ()"):
        with pytest.raises(ValueError, match=r"no host|no port"):
            read_host(wrong, 22)


# Who is offered what.


def test_a_profile_without_lists_is_for_all() -> None:
    assert Acl().allows("alice", [], "192.0.2.1")
    assert Acl().allows("alice", [], "")


def test_lists_of_clients_let_in_whom_they_allow_and_nobody_else() -> None:
    acl = Acl(clients=ClientRule(allow=networks("10.1.0.0/16")))
    assert acl.allows("alice", [], "10.1.2.3")
    assert acl.allows("alice", [], "::ffff:10.1.2.3")
    assert not acl.allows("alice", [], "10.2.0.1")
    assert not acl.allows("alice", [], "fe80::1%eth0")
    assert not acl.allows("alice", [], "")
    denied = ClientRule(networks("10.1.0.0/16"), networks("ALL"))
    assert not Acl(clients=denied).allows("alice", [], "10.1.2.3")
    allowed = ClientRule(denied.allow, denied.deny, Order.ALLOW_DENY)
    assert Acl(clients=allowed).allows("alice", [], "10.1.2.3")


def test_a_user_who_is_allowed_by_name_needs_no_group() -> None:
    users = Rule(("alice",), ("ALL",), Order.ALLOW_DENY)
    acl = Acl(users, Rule(("staff",)))
    assert acl.allows("alice", [], "")
    # Denied by name: no group helps.
    assert not acl.allows("bob", ["staff"], "")
    assert Acl(Rule(("alice",)), Rule(("staff",))).allows("bob", ["staff"], "")


def test_the_order_says_which_list_counts() -> None:
    groups = Rule(("staff",), ("ALL",))
    assert not Acl(groups=groups).allows("bob", ["staff"], "")
    groups = Rule(("staff",), ("ALL",), Order.ALLOW_DENY)
    assert Acl(groups=groups).allows("bob", ["staff"], "")
    assert not Acl(groups=groups).allows("bob", ["users"], "")
    assert not Acl(groups=Rule(deny=("guests",))).allows("bob", ["users"], "")


# Which server is least busy.


def test_the_least_busy_server_is_chosen() -> None:
    loads = {
        "a": Load(3.0, 4, 8),
        "b": Load(3.0, 8, 8),
        "c": Load(0.1, 2, 30),
    }
    assert choose(["a", "b", "c"], loads, {}, random.Random(1)) == "b"


def test_dead_servers_are_left_out_and_silent_ones_come_last() -> None:
    chance = random.Random(1)
    assert choose(["a", "b"], {}, {}, chance) is None
    assert choose(["a", "b"], {"b": None}, {}, chance) == "b"
    loads = {"b": None, "c": Load(9.0, 1, 9)}
    assert choose(["a", "b", "c"], loads, {}, chance) == "c"


def test_sessions_that_were_given_out_count_before_they_are_seen() -> None:
    loads = {name: Load(0.0, 2, 0) for name in "abc"}
    expected: dict[str, int] = {}
    for _ in range(30):
        picked = choose(list("abc"), loads, expected, random.Random(1))
        assert picked is not None
        expected[picked] = expected.get(picked, 0) + 1
    assert expected == {"a": 10, "b": 10, "c": 10}
    # So it is where nobody says how busy he is.
    assert choose(["a", "b"], {"a": None, "b": None}, {"a": 1}, random.Random(1)) == "b"


def test_equal_servers_are_chosen_by_chance() -> None:
    loads = {name: Load(0.0, 2, 0) for name in "ab"}
    chance = random.Random(1)
    assert {choose(["a", "b"], loads, {}, chance) for _ in range(50)} == {"a", "b"}


def test_the_answer_of_a_server_is_read_and_not_trusted() -> None:
    line = (
        "14143|alice-50-1795190498_stRTERMINAL_dp24|50|vm|R|2026-11-20T16:01:39|"
        "2c8324a108301b5d350f63c40d36a0d9|127.0.0.1|31824|31825|2026-11-20T16:01:40|"
        "alice|1|31826|-1|-1"
    )
    noise = ["", "motd", "1|../../etc|x|y|R|||||||||", line.replace("|R|", "|F|")]
    answer = read_answer("X2GOLOAD 0.42 8\n", [*noise, line])
    assert answer.load == Load(0.42, 8, 1)
    assert [each.line for each in answer.sessions] == [line]
    assert read_answer("nothing", [line]).load is None
