"""Everything of a session at once, through suspensions and a cut, and no trace."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import children
from tests.support.pulse import Pulse
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from tests.support.x2go_client import PDF, Client
from x2go_session.events import ServiceFailed, SessionResumed, SessionSuspended
from x2go_session.keeper import Keeper
from x2go_session.states import State

# Four starts of everything, on a machine that may be busy.
pytestmark = pytest.mark.timeout(600)

SUSPENSIONS = 3


@pytest.fixture
def pulse(tmp_path: Path) -> Iterator[Pulse]:
    with Pulse(tmp_path / "pulse") as daemon:
        yield daemon


@dataclass(frozen=True)
class Held:
    """What this process holds: nothing of it may be more after a session."""

    threads: frozenset[str]
    files: frozenset[str]
    processes: frozenset[str]

    @classmethod
    def now(cls) -> Held:
        return cls(
            frozenset(thread.name for thread in threading.enumerate()),
            frozenset(open_files()),
            frozenset(processes()),
        )


def open_files() -> Iterator[str]:
    """Yield what each descriptor of this process is, as the kernel names it."""
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            yield os.readlink(path)


def processes() -> Iterator[str]:
    """Yield number and name of each process that this one started."""
    for pid in children():
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            yield Path(f"/proc/{pid}/stat").read_text().rpartition(")")[0]


class Everything:
    """Tries each service of a session, from the server's side."""

    def __init__(self, client: Client, shares: list[Path]) -> None:
        self._client = client
        self._shares = shares
        self._turn = 0

    def works(self) -> None:
        client, server = self._client, self._client.server
        self._turn += 1
        name = f"turn {self._turn}"
        assert client.hears_the_session()
        for share in self._shares:
            (mount,) = [
                each.mount_point
                for each in client.sharing.folders
                if each.folder == share
            ]
            server.as_user("sh", "-c", f'echo "{name}" >"{mount}/{name}"')
            assert (share / name).read_text() == f"{name}\n"
        client.print(name)
        saved = client.saved / f"{name.replace(' ', '_')}.pdf"
        wait_until(lambda: saved.exists() and saved.read_bytes() == PDF, PATIENCE_S)
        client.run("sh", "-c", f'echo {name} >"$X2GO_MIMEBOX/{name}.txt"')
        wait_until(lambda: len(client.viewer.calls()) == self._turn, PATIENCE_S)
        # It may still run then: whoever ends the session leaves it running.
        wait_until(
            lambda: not any("python" in each for each in processes()), PATIENCE_S
        )


def test_all_services_come_back_after_suspensions_and_a_cut_and_leave_no_trace(
    x2go_server: X2goServer, client_display: Display, pulse: Pulse, tmp_path: Path
) -> None:
    shares = [tmp_path / "papers", tmp_path / "my pictures"]
    for share in shares:
        share.mkdir()
    # What tests before this one left is theirs.
    x2go_server.end_sessions()
    before, there = Held.now(), set(x2go_server.processes())
    folders = set((x2go_server.home / ".x2go").glob("C-*"))
    client = Client(x2go_server, client_display, pulse, tmp_path / "client", shares)
    terminal = client.terminal
    keeper = Keeper(terminal, x2go_server.connect)
    kept = threading.Thread(target=keeper.keep)
    try:
        session = terminal.start()
        everything = Everything(client, shares)
        everything.works()
        for _ in range(SUSPENSIONS):
            ports = session.ports
            terminal.suspend()
            assert x2go_server.mounts() == []
            assert not x2go_server.listening(ports.sound)
            assert not x2go_server.listening(ports.sharing)
            terminal.resume()
            everything.works()
        assert len(client.told.of(SessionSuspended)) == SUSPENSIONS

        kept.start()
        x2go_server.kill_sessions()
        resumed = SUSPENSIONS + 1
        wait_until(
            lambda: len(client.told.of(SessionResumed)) == resumed, PATIENCE_S * 4
        )
        everything.works()
        assert client.told.of(ServiceFailed) == []

        ports = session.ports
        terminal.terminate()
        kept.join()
        assert terminal.state is State.TERMINATED
        assert x2go_server.mounts() == []
        assert not x2go_server.listening(ports.sound)
        assert not x2go_server.listening(ports.sharing)
    finally:
        keeper.stop()
        if kept.is_alive():
            kept.join()
        client.tunnel.close()
        keeper.close()

    # Here: no thread, process, open file; of the session's folder, nothing.
    with contextlib.suppress(AssertionError):
        wait_until(lambda: Held.now() == before, PATIENCE_S)
    assert Held.now() == before
    assert [path.name[:6] for path in (tmp_path / "client" / "x2go").iterdir()] == [
        "cache-"
    ]
    # There: no process, folder, link or key.
    wait_until(lambda: set(x2go_server.processes()) <= there, PATIENCE_S)
    assert set((x2go_server.home / ".x2go").glob("C-*")) <= folders
    assert list((x2go_server.home / ".x2go" / "ssh").iterdir()) == []
    left = Path("/tmp") / f".x2go-{x2go_server.user}"
    assert [path for path in left.rglob("*") if not path.is_dir()] == []
