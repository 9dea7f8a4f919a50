"""A session with everything at once, from its start until nothing of it is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel import Tunnel
from tests.support.pulse import Pulse, record, silence, tone, write_wav
from tests.support.tunnels import background
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from tests.support.x2go_client import PDF, Client
from x2go_session.events import ConnectionDied, ServiceFailed, SessionResumed
from x2go_session.keeper import Keeper
from x2go_session.states import State

# Five starts and resumes, each of which takes seconds.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders to be shared."""
    made = [tmp_path / "first share", tmp_path / "second"]
    for folder in made:
        folder.mkdir()
    return made


@pytest.fixture
def client(
    x2go_server: X2goServer,
    client_display: Display,
    tmp_path: Path,
    folders: list[Path],
) -> Iterator[Client]:
    with Pulse(tmp_path / "pulse") as pulse:
        made = Client(x2go_server, client_display, pulse, tmp_path / "client", folders)
        try:
            yield made
        finally:
            made.close()


def children() -> set[int]:
    """Return the processes that this one started, and that have not been waited for."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def programs(server: X2goServer) -> list[str]:
    """Return what the user of the session runs on the server, but for sshd."""
    return [line for line in server.processes().values() if "sshd" not in line]


def works(client: Client, name: str, folders: list[Path]) -> None:
    """Use each service once, as programs of the session do; `name` is new each time."""
    assert client.told.of(ServiceFailed) == []
    assert client.hears_the_session()
    client.print(name)
    client.run("sh", "-c", f'echo {name} >"$X2GO_MIMEBOX/{name}.txt"')
    for folder in folders:
        (shared,) = [s for s in client.sharing.folders if s.folder == folder]
        client.run("sh", "-c", 'echo "$1" >"$2/$1"', "sh", name, shared.mount_point)
        assert (folder / name).read_text() == f"{name}\n"
    saved = client.saved / f"{name}.pdf"
    wait_until(lambda: saved.exists() and saved.read_bytes() == PDF, PATIENCE_S)
    opened = f"{name}\n".encode()
    wait_until(
        lambda: opened in [call.content for call in client.viewer.calls()], PATIENCE_S
    )


def test_everything_at_once_comes_back_each_time_and_leaves_nothing(
    client: Client, x2go_server: X2goServer, folders: list[Path]
) -> None:
    threads, processes = set(threading.enumerate()), children()
    terminal = client.terminal
    session = terminal.start()
    ports = {session.ports}
    works(client, "started", folders)
    for number in range(3):
        terminal.suspend()
        assert x2go_server.mounts() == []
        terminal.resume()
        ports.add(session.ports)
        works(client, f"resumed-{number}", folders)

    connected: list[Tunnel] = []

    def connect() -> Tunnel:
        connected.append(x2go_server.connect())
        return connected[-1]

    keeper = Keeper(terminal, connect)
    with background(keeper.keep):
        x2go_server.kill_sessions()
        wait_until(lambda: client.told.of(ConnectionDied), PATIENCE_S)
        wait_until(lambda: len(client.told.of(SessionResumed)) == 4, 2 * PATIENCE_S)
        ports.add(session.ports)
        works(client, "taken-up", folders)
        plays_while_copying(client, folders[0])
        terminal.terminate()
    assert terminal.state is State.TERMINATED
    keeper.close()
    client.tunnel.close()

    wait_until(lambda: not programs(x2go_server), PATIENCE_S)
    assert x2go_server.mounts() == []
    numbers = {n for each in ports for n in (each.graphics, each.sound, each.sharing)}
    assert [port for port in numbers if x2go_server.listening(port)] == []
    remote = x2go_server.home / ".x2go"
    assert [path.name for path in (remote / "ssh").iterdir()] == []
    assert list(remote.glob("C-*")) == []
    assert list(Path(f"/tmp/.x2go-{x2go_server.user}").glob("C-*")) == []
    assert not (x2go_server.home / "media").exists()
    assert list((client.folder / "x2go").glob("S-*")) == []
    wait_until(lambda: set(threading.enumerate()) <= threads, PATIENCE_S)
    wait_until(lambda: children() <= processes, PATIENCE_S)


def plays_while_copying(client: Client, folder: Path) -> None:
    """Play a tone while a file goes over a share; every sample of it arrives."""
    content = os.urandom(32 * 1024 * 1024)
    (folder / "large").write_bytes(content)
    (shared,) = [s for s in client.sharing.folders if s.folder == folder]
    frames = tone(440.0, 2.0)
    file = client.server.home / "tone.wav"
    write_wav(file, silence(0.5) + frames + silence(0.5))
    copy = ["cp", f"{shared.mount_point}/large", f"{shared.mount_point}/copy"]
    with record(client.pulse) as recording:
        with background(client.run, *copy):
            client.run("paplay", str(file))
        wait_until(lambda: recording.has(frames), PATIENCE_S)
    assert (folder / "copy").read_bytes() == content
