"""The commands beside `rtunnel open`, each as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from rtunnel import __version__
from rtunnel.cli import exit_status
from rtunnel.cli.exit_status import ExitStatus
from tests.support.command import Command

# Modules that take longer to import than everything else in the start-up together.
HEAVY = ["asyncio", "cryptography", "paramiko", "rich", "socket"]


def test_the_version_comes_without_loading_what_it_does_not_need() -> None:
    code = (
        "import sys; from rtunnel.cli import main; main(['--version']); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"rtunnel {__version__}\n[]\n"


@pytest.mark.parametrize("command", [["--help"], ["open", "-h"]])
def test_help_lists_every_exit_status(command: list[str]) -> None:
    with Command(*command) as running:
        assert running.status() == ExitStatus.ENDED
        assert running.process.stdout is not None
        text = running.process.stdout.read()
    assert all(meaning in text for meaning in exit_status.MEANING.values())


def test_doctor_says_what_runs_here_and_why() -> None:
    with Command("doctor", "--json") as command:
        assert command.process.stdout is not None
        facts = json.load(command.process.stdout)
        assert command.status() == ExitStatus.ENDED
    assert facts["versions"]["rtunnel"] == __version__
    assert facts["backend"]["chosen"] == "engine"
    assert "self-test passed" in facts["backend"]["reason"]
    assert Path(facts["backend"]["libcrypto"]["path"]).exists()


def test_doctor_without_libcrypto_says_so_and_has_a_status_for_it() -> None:
    with Command("doctor", RTUNNEL_LIBCRYPTO="/nowhere/libcrypto.so") as command:
        assert command.process.stdout is not None
        text = command.process.stdout.read()
        assert command.status() == ExitStatus.BACKEND
    assert "/nowhere/libcrypto.so" in text
    assert "Here runs: pump" in text


def test_doctor_names_a_backend_that_does_not_exist() -> None:
    with Command("doctor", RTUNNEL_BACKEND="warp") as command:
        assert command.process.stdout is not None
        assert "'warp'" in command.process.stdout.read()
        assert command.status() == ExitStatus.BACKEND


def test_the_demo_moves_every_byte_and_ends_well() -> None:
    with Command("demo", "--megabytes", "8") as command:
        assert command.process.stdout is not None
        text = command.process.stdout.read()
        assert command.status() == ExitStatus.ENDED, command.errors()
        assert command.errors() == ""
    assert "Hello through the tunnel!" in text
    assert text.count("every byte compared") == 2
    assert "engine" in text


@pytest.mark.parametrize("program", ["rtunnel", "x2go_session"])
def test_a_full_disk_under_stderr_or_stdout_hides_no_exit_status(program: str) -> None:
    command = [sys.executable, "-m", program]
    with open("/dev/full", "w") as full:
        wrong = subprocess.run([*command, "no-such-command"], stderr=full)
        unheard = subprocess.run([*command, "--help"], stdout=full, stderr=PIPE)
    assert wrong.returncode == ExitStatus.USAGE
    assert unheard.returncode == ExitStatus.UNEXPECTED
    assert b"No space left on device" in unheard.stderr
    assert b"report" not in unheard.stderr
