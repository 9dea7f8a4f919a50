"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel import Tunnel
from tests.support.live import nothing_left
from tests.support.postgres import (
    postgres as postgres,
)
from tests.support.sshd import Sshd
from tests.support.tunnels import BACKENDS, open_tunnel
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

# Files that stay together on one process, with an X2Go user of their own: much of what
# they do waits for sessions to start and to end.
TOGETHER = ("test_x2go_client", "test_x2go_broker", "test_x2go_")

# Tests that several files share: their assertions should say as much as any.
pytest.register_assert_rewrite("tests.support.interop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file on one process, and those of X2Go on three, which begin."""
    for item in items:
        name = item.path.name
        group = next((start for start in TOGETHER if name.startswith(start)), name)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: not item.path.name.startswith(TOGETHER))


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
