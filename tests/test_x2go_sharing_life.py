"""Shares come back when their session does, and leave nothing behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support.desk import Desk, make
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from x2go_session import events
from x2go_session.control import Control

# A session takes seconds to start, and a busy machine many more.
pytestmark = pytest.mark.timeout(300)


def test_shares_come_back_with_the_session_and_nothing_stays_behind(
    x2go_server: X2goServer, client_display: Display, tmp_path: Path
) -> None:
    threads = set(threading.enumerate())
    desk = Desk(x2go_server, client_display, tmp_path / "sessions")
    folder, gone = make(tmp_path), make(tmp_path, "gone")
    desk.sharing.share(folder)
    desk.sharing.share(gone)
    port = desk.sharing.port
    desk.terminal.suspend()
    assert (desk.server.mounts(), desk.sharing.port) == ([], 0)
    assert not desk.server.listening(port)
    (gone / "file").unlink()
    gone.rmdir()

    desk.terminal.resume()
    assert desk.run('cat "$1/file"', desk.place(folder)) == "content"
    (failed,) = desk.heard(events.FolderNotShared)
    assert isinstance(failed, events.FolderNotShared)
    assert (failed.folder, failed.session) == (gone, desk.session.name)

    desk.terminal.terminate()
    assert desk.server.mounts() == []
    assert list((desk.server.home / ".x2go" / "ssh").iterdir()) == []
    left = [line for line in x2go_server.processes().values() if "sshd" not in line]
    assert left == []
    desk.close()
    wait_until(lambda: set(threading.enumerate()) <= threads, PATIENCE_S)


def test_shares_come_back_after_the_connection_was_cut(
    x2go_server: X2goServer, client_display: Display, tmp_path: Path
) -> None:
    desk = Desk(x2go_server, client_display, tmp_path / "sessions")
    folder = make(tmp_path)
    desk.sharing.share(folder)
    x2go_server.kill_sessions()
    wait_until(lambda: not desk.session.control.is_alive, PATIENCE_S)
    wait_until(lambda: desk.sharing.port == 0, PATIENCE_S)
    with x2go_server.connect() as tunnel:
        desk.terminal.use(Control(tunnel))
        desk.terminal.resume()
        assert desk.run('cat "$1/file"', desk.place(folder)) == "content"
        desk.terminal.terminate()
        assert desk.server.mounts() == []
    desk.close()
