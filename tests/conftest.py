"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import hypothesis
import pytest
from hypothesis import HealthCheck
from xdist.scheduler import LoadScopeScheduling

from rtunnel import Tunnel
from tests.support.live import nothing_left
from tests.support.logs import logging_as_before
from tests.support.postgres import (
    postgres as postgres,
)
from tests.support.sshd import Sshd
from tests.support.tunnels import BACKENDS, open_tunnel
from tests.support.watch import (
    pytest_configure as pytest_configure,
)
from tests.support.x2go import (
    client_display as client_display,
)
from tests.support.x2go import (
    control as control,
)
from tests.support.x2go import (
    x2go_server as x2go_server,
)
from tests.support.x2go import (
    x2go_tunnel as x2go_tunnel,
)

# What is shared between tests of several files has one process to itself: an X2Go user
# and what he left behind, the state of Debian's broker, which lies in one place. Two of
# them, and no more: the server's scripts wait 2 s for their database, and then go on
# without it. They begin, since they wait longest.
TOGETHER: Final = {
    "x2go sessions": (
        "test_x2go_terminal",
        "test_x2go_cli",
        "test_x2go_s",
        "test_x2go_a",
    ),
    "x2go": ("test_x2go_",),
}
BEFORE_OTHERS: Final = ("test_package", "test_bench", "test_faults_process")

# How long an example takes says something of the machine alone.
hypothesis.settings.register_profile(
    "rtunnel",
    hypothesis.settings(),  # what it is in CI, or elsewhere
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis.settings.load_profile("rtunnel")

# Tests that several files share: their assertions should say as much as any.
pytest.register_assert_rewrite("tests.support.interop")


class _ByFile(LoadScopeScheduling):
    """Keep each file on one process, or several of them."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(Path(nodeid.partition("::")[0]).name)


def _group(name: str) -> str:
    """Return what a file stays together with: itself, or a group."""
    for group, starts in TOGETHER.items():
        if name.startswith(starts):
            return group
    return name


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _ByFile:
    """Distribute by groups of files, in the order of the tests."""
    config.option.loadscopereorder = False
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    groups = [*TOGETHER, *(f"{name}.py" for name in BEFORE_OTHERS)]
    rank = {group: number for number, group in enumerate(groups)}
    items.sort(key=lambda item: rank.get(_group(item.path.name), len(rank)))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Let no test find what a command in another one did to the log."""
    with logging_as_before():
        yield


@pytest.fixture(autouse=True)
def _nothing_left(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Begin before every other fixture of a test, and look when all have ended."""
    fixtures = request.node._fixtureinfo.name2fixturedefs.values()
    shared = any(defined[-1].scope == "module" for defined in fixtures)
    with nothing_left(shared):
        yield
        # pytest itself still holds what the fixtures gave, and what was logged with
        # the exceptions and all that was on their way.
        request.node.funcargs.clear()
        caplog.get_records("setup").clear()
        caplog.get_records("call").clear()


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One OpenSSH server for the whole run; tests that change it start their own."""
    folder: Path = tmp_path_factory.mktemp("sshd")
    with Sshd(folder) as server:
        yield server


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn: the contract is the same for all of them."""
    return str(request.param)


@pytest.fixture
def tunnel(sshd: Sshd, backend: str) -> Iterator[Tunnel]:
    """A tunnel to the sshd of the run, on each backend."""
    with open_tunnel(sshd, backend) as opened:
        yield opened
