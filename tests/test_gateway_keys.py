"""Lines and files of authorized_keys, as the gateway reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rtunnel.errors import ConfigError
from rtunnel.gateway.authorized_keys import AuthorizedKey, AuthorizedKeys
from rtunnel.ssh.keys import read_public_file
from tests.support.other_servers import run


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public file of a new key."""
    path = tmp_path_factory.mktemp("keys") / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a comment", "-f", path)
    return path.with_suffix(".pub")


def find(line: str, key: Path) -> AuthorizedKey | None:
    """Return what a line says about the key, which stands for KEY."""
    line = line.replace("KEY", key.read_text().strip())
    return AuthorizedKeys([line]).find(read_public_file(key))


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_every_usual_kind_of_key_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path)
    assert find("KEY", path.with_suffix(".pub")) is not None


USABLE = [
    "KEY",
    "  KEY",
    "no-pty KEY",
    "NO-PTY,No-Agent-Forwarding\tKEY",
    'command="echo \\"a, b\\" # c",no-pty KEY',
    'environment="A=b",permitopen="host:1" KEY',
]

UNUSABLE = [
    ("# KEY", None),
    ('from="" KEY', "an entry is empty"),
    ('from="10.0.0.0/8,!" KEY', "an entry is empty"),
    ('from="10.0.0.1/8" KEY', "no network"),
    ('expiry-time="soon" KEY', "expected YYYYMMDD"),
    ('expiry-time="20301301" KEY', "expected YYYYMMDD"),
    ('expiry-time="203001011" KEY', "expected YYYYMMDD"),
    ("expiry-time KEY", "'expiry-time' is not understood"),
    ('principals="me" KEY', "principals belong to a cert-authority"),
    ('cert-authority,principals="" KEY', "principals are empty"),
    ('permitopen="80" KEY', "expected host:port"),
    ("verify-required KEY", "'verify-required' is not understood"),
    ("made-up KEY", "'made-up' is not understood"),
    ('restrict="yes" KEY', "'restrict' is not understood"),
    ("permitlisten KEY", "'permitlisten' is not understood"),
    ('permitlisten="none" KEY', "expected [host:]port"),
    ('permitlisten="" KEY', "expected [host:]port"),
    ('permitlisten="host:" KEY', "expected [host:]port"),
    ('permitlisten="host:70000" KEY', "expected [host:]port"),
    ('command="not closed KEY', "cannot understand the options"),
    ("no-pty,,no-user-rc KEY", "cannot understand the options"),
    ("no-pty, KEY", "cannot understand the options"),
    ("no-pty", "cannot understand the options"),
    ("ssh-ed25519", "expected [options] key-type"),
    ("ssh-ed25519 AAAA", "its ssh-ed25519 key is damaged"),
    ("ssh-ed25519 !", "its ssh-ed25519 key is damaged"),
    ("ssh-rsa KEY", "its ssh-rsa key is damaged"),
    ("sk-ssh-ed25519@openssh.com AAAA", "cannot be used here"),
]


@pytest.mark.parametrize("line", USABLE)
def test_options_about_what_nobody_gets_change_nothing(line: str, key: Path) -> None:
    found = find(line, key)
    assert found is not None
    assert found.why_not_tcp("localhost", 8080) is None
    assert found.why_not_unix() is None


@pytest.mark.parametrize(("line", "reason"), UNUSABLE)
def test_a_line_that_is_not_understood_lets_nobody_in_and_says_why(
    line: str, reason: str | None, key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find(line, key) is None
    if reason is None:
        assert not caplog.records
    else:
        assert "authorized key 1 is unusable" in caplog.text
        assert reason in caplog.text


@pytest.mark.parametrize(
    ("options", "address", "port", "may"),
    [
        ("restrict", "localhost", 1024, False),
        ("restrict,port-forwarding", "localhost", 1024, True),
        ("port-forwarding,restrict", "localhost", 1024, False),
        ('restrict,permitlisten="1024"', "localhost", 1024, False),
        ('permitlisten="1024"', "", 1024, True),
        ('permitlisten="1024"', "::1", 1024, True),
        ('permitlisten="1024"', "localhost", 0, False),
        ('permitlisten="*:*"', "localhost", 0, True),
        ('permitlisten="*.example:*"', "Web.Example", 5, True),
        ('permitlisten="[::1]:5"', "::1", 5, True),
        ('permitlisten="[::1]:5"', "localhost", 5, False),
    ],
)
def test_options_about_forwarding_count_from_left_to_right(
    options: str, address: str, port: int, may: bool, key: Path
) -> None:
    found = find(f"{options} KEY", key)
    assert found is not None
    assert (found.why_not_tcp(address, port) is None) is may


@pytest.mark.parametrize(
    ("options", "address", "may"),
    [
        ('from="127.0.0.1"', "127.0.0.1", True),
        ('from="127.0.0.1"', "127.0.0.2", False),
        ('from="10.0.0.0/8,192.0.2.*"', "10.9.8.7", True),
        ('from="10.0.0.0/8,192.0.2.*"', "192.0.2.77", True),
        ('from="10.0.0.0/8,192.0.2.*"', "192.0.3.77", False),
        ('from="10.0.0.0/8,!10.0.0.1"', "10.0.0.2", True),
        ('from="10.0.0.0/8,!10.0.0.1"', "10.0.0.1", False),
        ('from="!10.0.0.0/24,*"', "10.0.0.1", False),
        ('from="2001:db8::/32"', "2001:db8::1", True),
        ('from="2001:db8::/32"', "10.0.0.1", False),
        ('from="*.example.org"', "10.0.0.1", False),
        ('from="*"', "", True),
        ('from="10.0.0.0/8"', "", False),
        ('expiry-time="20991231"', "10.0.0.1", True),
        ('expiry-time="20200101"', "10.0.0.1", False),
        ('expiry-time="203001011200Z"', "10.0.0.1", True),
        ('expiry-time="20200101120000Z"', "10.0.0.1", False),
        ('expiry-time="20991231",expiry-time="20200101"', "10.0.0.1", False),
    ],
)
def test_a_key_may_be_good_for_some_places_and_times_only(
    options: str,
    address: str,
    may: bool,
    key: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = AuthorizedKeys([f"{options} {key.read_text()}"])
    found = keys.find(read_public_file(key), "me", address)
    assert (found is not None) is may
    assert may or "refused a key: user='me' at='authorized key 1'" in caplog.text


@pytest.mark.parametrize(
    ("options", "may"),
    [
        ("", True),
        ('permitopen="db.example:5432"', True),
        ('permitopen="*.example:*"', True),
        ('permitopen="db.example:1"', False),
        ("restrict", False),
    ],
)
def test_permitopen_says_where_a_key_may_connect_to(
    options: str, may: bool, key: Path
) -> None:
    found = find(f"{options} KEY".lstrip(), key)
    assert found is not None
    assert found.may_open("DB.example", 5432) is may


@pytest.mark.parametrize(
    ("options", "session", "pty", "agent"),
    [
        ("", True, True, True),
        ('command="true"', False, True, True),
        ("no-pty,no-agent-forwarding", True, False, False),
        ("restrict,pty", True, True, False),
        ("restrict,agent-forwarding", True, False, True),
    ],
)
def test_options_about_sessions_take_away_from_what_a_user_has(
    options: str, session: bool, pty: bool, agent: bool, key: Path
) -> None:
    found = find(f"{options} KEY".lstrip(), key)
    assert found is not None
    may = (found.may_have_session, found.may_have_pty, found.may_forward_agent)
    assert may == (session, pty, agent)


def test_permitlisten_allows_no_socket_paths(key: Path) -> None:
    found = find('permitlisten="8080" KEY', key)
    assert found is not None
    assert found.why_not_unix() is not None


def test_a_key_may_have_a_second_line(key: Path) -> None:
    found = find(f"made-up KEY\n{key.read_text()}", key)
    assert found is not None
    assert found.place == "authorized key 2"


def test_a_file_is_complained_of_once_and_read_again_when_it_changes(
    key: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text(f"# mine\nmade-up {key.read_text()}")
    keys = AuthorizedKeys([path])
    for _ in range(3):
        assert keys.find(read_public_file(key)) is None
    assert len(caplog.records) == 1
    assert f"{path} line 2 is unusable" in caplog.text
    path.write_text(key.read_text())
    found = keys.find(read_public_file(key))
    assert found is not None
    assert found.place == f"{path} line 1"


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_to_is_refused(
    key: Path, tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text(key.read_text())
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w"):
        AuthorizedKeys([path])


def test_a_file_that_goes_away_lets_nobody_in(
    key: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text(key.read_text())
    keys = AuthorizedKeys([path])
    os.unlink(path)
    assert keys.find(read_public_file(key)) is None
    assert "cannot read authorized keys" in caplog.text
