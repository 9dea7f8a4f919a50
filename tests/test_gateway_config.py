"""The gateway's configuration file: what it says, and what is told of mistakes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from rtunnel.errors import ConfigError
from rtunnel.gateway import Gateway
from rtunnel.gateway.config_file import (
    GatewayConfig,
    LimitsConfig,
    PenaltiesConfig,
    UserConfig,
    load,
)
from rtunnel.gateway.settings import (
    NO_PENALTIES,
    Balance,
    GatewayPorts,
    Limits,
    Penalties,
    Rights,
)
from tests.support.command import ROOT
from tests.support.gateways import Guest
from tests.support.ports import free_port
from tests.support.sshd import wait_until
from tests.support.tunnels import ask, say

PAGE = (ROOT / "docs" / "gateway.md").read_text()


def config_of(folder: Path, text: str) -> GatewayConfig:
    path = folder / "gateway.toml"
    path.write_text(text)
    return load(path)


def test_an_empty_file_means_what_no_file_means(tmp_path: Path) -> None:
    options = config_of(tmp_path, "").options()
    assert options["rights"] == Rights()
    assert options["limits"] == Limits()
    assert options["penalties"] == Penalties()
    assert options["users"] == options["groups"] == []


def test_users_start_from_the_rights_of_all(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        """
        [rights]
        ports = ["8000-8099", 9000]
        listeners_max = 5

        [users.alice]
        keys = ["ssh-ed25519 AAAA"]
        authorized_keys = ["alice.pub"]
        ports = [7000]
        gateway_ports = "clientspecified"

        [users.bob]
        keys = ["ssh-ed25519 AAAA"]
        """,
    )
    alice, bob = config.options()["users"]
    assert alice.name == "alice"
    assert alice.authorized_keys == ("ssh-ed25519 AAAA", tmp_path / "alice.pub")
    assert alice.rights.ports == (range(7000, 7001),)
    assert alice.rights.gateway_ports is GatewayPorts.CHOSEN
    assert alice.rights.listeners_max == 5
    assert bob.rights.ports == (range(8000, 8100), range(9000, 9001))


def test_groups_limits_and_penalties_are_read(tmp_path: Path) -> None:
    options = config_of(
        tmp_path,
        """
        [[groups]]
        port = 8080
        balance = "least_connections"
        users = ["alice"]
        [[groups]]
        socket = "app.sock"
        [limits]
        login_grace_s = 30
        [penalties]
        enabled = false
        [proxies]
        clients = ["10.0.0.0/8"]
        """,
    ).options()
    first, second = options["groups"]
    assert (first.place, first.balance) == (8080, Balance.LEAST_CONNECTIONS)
    assert (first.users, second.place) == (("alice",), "app.sock")
    assert options["limits"] == Limits(login_grace_s=30)
    assert options["penalties"] == NO_PENALTIES
    assert str(options["proxies"][0]) == "10.0.0.0/8"


MISTAKES = [
    ("listn = 'x'", "1: unknown key 'listn'; did you mean listen?"),
    (
        "[[groups]]\nport = 80\nurses = ['a']",
        "3: groups[0]: unknown key 'urses'; did you mean users?",
    ),
    ("\n[rights]\nports = ['9-8']", "3: rights.ports[0]: ports are from 1 to 65535"),
    ("[rights]\nports = [true]", "2: rights.ports[0]: expected a port"),
    ("[rights]\ngateway_ports = 'on'", "2: rights.gateway_ports: input should be"),
    ("[rights]\nrate_bytes_per_s = 1", "2: rights.rate_bytes_per_s: rate_bytes_per_s"),
    ("[users.a]\nsocket_folder = 'no'", "2: users.a.socket_folder: the folder for"),
    ("[users.a]\npermit_open = ['x']", "2: users.a.permit_open: permit_open: expected"),
    ("[[groups]]", "1: groups[0]: a group has either a port or a socket"),
    ("[[groups]]\nport = 1\nsocket = 'x'", "1: groups[0]: a group has either a port"),
    ("[[groups]]\nsocket = 'a/b'", "2: groups[0].socket: a group's socket is the name"),
    ("[[groups]]\nport = 1\n[[groups]]\nport = 1", "3: groups[1]: there is another"),
    ("[limits]\nauth_tries_max = 0", "2: limits.auth_tries_max: input should be"),
    ("[proxies]\nclients = ['x']", "2: proxies.clients: 'x' is no address"),
    ("listen = '/a/path'", "1: listen: '/a/path' is no address with a port"),
    ("listen = [", "gateway.toml:1: Invalid value"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_told_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_of(tmp_path, text)


def test_a_gateway_serves_what_its_file_says(tmp_path: Path) -> None:
    alice, bob = Guest(tmp_path, "alice"), Guest(tmp_path, "bob")
    port, other = free_port(), free_port()
    config = config_of(
        tmp_path,
        f"""
        [users.alice]
        keys = ["{alice.public.strip()}"]
        ports = [{port}]
        [users.bob]
        authorized_keys = ["bob_key.pub"]
        ports = [{other}]
        """,
    )
    with Gateway(**config.options()) as gateway:
        with alice.meet(gateway).serving(say(b"alice"), str(port), "-v") as ssh:
            wait_until(lambda: "remote forward success" in ssh.said)
            assert ask(port) == b"alice"
        with bob.meet(gateway).forward(1, str(port), "-v") as ssh:
            assert ssh.status() == 255
            assert f"port {port} is disabled on this gateway" in ssh.said


def test_the_file_has_every_setting_and_the_page_has_every_key() -> None:
    for config, settings in (
        (UserConfig, Rights),
        (LimitsConfig, Limits),
        (PenaltiesConfig, Penalties),
    ):
        names = {field.name for field in fields(settings)}
        assert names <= set(config.model_fields)
        missing = [key for key in config.model_fields if f"`{key}`" not in PAGE]
        assert missing == []
    assert [key for key in GatewayConfig.model_fields if f"`{key}`" not in PAGE] == []


def test_the_example_is_right() -> None:
    options = load(ROOT / "examples" / "gateway" / "gateway.toml").options()
    assert [user.name for user in options["users"]] == ["alice", "shop", "worker"]


@pytest.mark.parametrize("number", range(len(re.findall(r"(?m)^```toml$", PAGE))))
def test_the_examples_of_the_page_are_right(tmp_path: Path, number: int) -> None:
    text = re.findall(r"(?ms)^```toml\n(.*?)^```", PAGE)[number]
    for name in re.findall(r'_folder = "([^"]*)"', text):
        text = text.replace(name, str(tmp_path))
    config_of(tmp_path, text).options()
