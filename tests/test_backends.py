"""Which backend runs a connection: the one that was named, or an error."""

from __future__ import annotations

import threading

import pytest

from rtunnel.errors import BackendUnavailable
from tests.support.other_servers import connect
from tests.support.sshd import Sshd

NAMES = ("engine", "pump", "python")


@pytest.mark.parametrize("name", NAMES)
def test_the_backend_named_to_connect_runs(sshd: Sshd, name: str) -> None:
    with connect(sshd, name) as tunnel:
        assert (tunnel.backend, tunnel.backend_reason) == (name, "asked for")


@pytest.mark.parametrize("name", NAMES)
def test_the_backend_named_in_the_environment_runs(
    sshd: Sshd, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTUNNEL_BACKEND", name)
    with connect(sshd) as tunnel:
        assert tunnel.backend == name
        assert tunnel.backend_reason == "asked for by RTUNNEL_BACKEND"


def test_an_argument_wins_over_the_environment(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTUNNEL_BACKEND", "python")
    with connect(sshd, "pump") as tunnel:
        assert tunnel.backend == "pump"
    with connect(sshd, "auto") as tunnel:
        assert tunnel.backend == "engine"


@pytest.mark.parametrize(
    ("name", "options"), [("turbo", {}), ("engine", {"ciphers": "aes128-ctr"})]
)
def test_a_backend_that_cannot_run_is_an_error_and_leaves_nothing_behind(
    sshd: Sshd, name: str, options: dict[str, str]
) -> None:
    before = set(threading.enumerate())
    with pytest.raises(BackendUnavailable, match=name):
        connect(sshd, name, **options)
    assert set(threading.enumerate()) <= before
