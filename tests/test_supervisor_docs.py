"""What docs/supervisor.md and the examples say, tried out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rtunnel import Supervisor
from rtunnel.cli.run_command import run
from rtunnel.supervisor import (
    Config,
    HealthConfig,
    Pace,
    ServerConfig,
    TunnelConfig,
)
from rtunnel.supervisor.port import PortState
from rtunnel.supervisor.server import ServerState
from rtunnel.toml_file import parse
from tests.support.command import ROOT
from tests.support.ports import free_port
from tests.support.sshd import Sshd
from tests.support.supervising import TomlFile, server_table
from tests.support.tunnels import Target, say

PAGE = (ROOT / "docs" / "supervisor.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def in_code() -> set[str]:
    return {
        word
        for code in re.findall(r"`([^`\n]+)`", PAGE)
        for word in re.findall(r"\w+", code)
    }


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_files_on_the_page_are_right(text: str) -> None:
    assert parse(text.encode(), Config, Path("t.toml")).tunnel_count == 2


@pytest.mark.parametrize(
    "model", [Config, ServerConfig, TunnelConfig, HealthConfig, Pace]
)
def test_the_page_has_every_key(model: type[BaseModel]) -> None:
    assert set(model.model_fields) - in_code() == set()


def test_the_page_has_the_waits_that_are_waited() -> None:
    rows = re.findall(r"^\| `(\w+)`, `(\w+)` \| (\d+), (\d+) \|", PAGE, re.MULTILINE)
    assert len(rows) == 4
    pace = Pace()
    for first, longest, first_s, longest_s in rows:
        assert (getattr(pace, first), getattr(pace, longest)) == (
            float(first_s),
            float(longest_s),
        )


def test_the_page_has_the_defaults_of_health() -> None:
    defaults = {
        name: str(value).strip('"')
        for name, value in re.findall(
            r'^\| `(\w+)` \| `?("?[\w/]+"?)`? \|', PAGE, re.MULTILINE
        )
    }
    for name, field in HealthConfig.model_fields.items():
        default = field.default
        assert defaults[name] == (
            f"{default:g}" if name != "check" and name != "path" else default
        )


def test_the_page_has_every_state() -> None:
    states = {each.value for kind in (ServerState, PortState) for each in kind}
    assert {state for state in states if f"`{state}`" not in PAGE} == set()


def test_the_page_has_every_public_method_of_the_supervisor() -> None:
    methods = {name for name in vars(Supervisor) if not name.startswith("_")}
    # `config` is what was applied.
    assert methods - in_code() - {"config"} == set()


def test_the_page_has_every_flag_of_its_own() -> None:
    assert "--no-watch" in PAGE
    assert {"-v", "--log-format"} <= set(re.findall(r"`(-[\w-]+)`", PAGE))
    assert any("--no-watch" in each.secondary_opts for each in run.params)


@pytest.mark.parametrize("example", blocks("python"))
def test_the_examples_run(example: str, sshd: Sshd, tmp_path: Path) -> None:
    with Target(say(b"hello")) as target:
        tunnel = {"listen": free_port(), "to": target.spec}
        file = TomlFile(tmp_path / "tunnels.toml")
        path = file.write(a=server_table(sshd, tunnels={"t": tunnel}))
        names: dict[str, Any] = {}
        translated = example.replace('"tunnels.toml"', repr(str(path)))
        # A server that is nowhere is retried; that is no error.
        translated = translated.replace("user@host", f"x@127.0.0.1:{free_port()}")
        exec(compile(translated, "docs/supervisor.md", "exec"), names)
        assert names["supervisor"].wait(0)
