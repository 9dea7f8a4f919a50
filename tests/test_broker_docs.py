"""What docs/x2go-broker.md says of our broker is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.support.brokers import BrokerServer, write_users
from tests.support.command import ROOT
from x2go_session.broker.server.settings import BrokerSettings
from x2go_session.cli import main
from x2go_session.cli.broker import broker

PAGE = (ROOT / "docs/x2go-broker.md").read_text()
SERVER = PAGE.partition("## Broker server")[2]


def files() -> dict[str, str]:
    """Return the files of the page, whose names are in their first lines."""
    blocks = re.findall(r"```toml\n# (\S+)\n(.*?)```", SERVER, re.DOTALL)
    return dict(blocks)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    write_users(tmp_path)
    return tmp_path


def test_the_example_is_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "verify", "--config", str(folder / "broker.toml")]) == 0
    assert capsys.readouterr().out.endswith("broker.toml: ok, 2 profiles\n")


def test_the_example_serves(folder: Path) -> None:
    with BrokerServer(folder / "broker.toml") as server:
        fields = {"task": "listprofiles", "user": "alice", "password": "s3cret"}
        answer = server.ask_json(**fields)
        # The kiosk is for other addresses; bob is in the group, carol is not.
        assert list(answer["profiles"]) == ["office"]
        profile = answer["profiles"]["office"]
        assert profile["host"] == ["srv-a", "srv-b", "srv-c"]
        assert (profile["user"], profile["command"]) == ("alice", "XFCE")
        answer = server.ask_json(task="listprofiles", user="carol", password="c4rol")
        assert answer["profiles"] == {}


def keys(schema: type[BaseModel]) -> set[str]:
    """Return the keys of a table and of those in it."""
    found = set()
    for name, field in schema.model_fields.items():
        found.add(name)
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for each in inner:
            if isinstance(each, type) and issubclass(each, BaseModel):
                found |= keys(each)
    return found


def test_every_setting_and_every_command_is_on_the_page() -> None:
    words = set(re.findall(r"[a-z_]+", files()["broker.toml"] + SERVER))
    # That of ssh(1) for who needs it; none is read by default.
    assert keys(BrokerSettings) - words == {"ssh_config"}
    missing = [
        name
        for name in broker.commands
        if not re.search(rf"x2go-session broker {name}\b", PAGE)
    ]
    assert missing == []
