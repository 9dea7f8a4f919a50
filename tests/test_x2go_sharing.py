"""Folders of this machine, mounted by a real X2Go server with real sshfs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.desk import Desk, make
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from x2go_session import events
from x2go_session.control import Control
from x2go_session.errors import ServiceError
from x2go_session.services import FileEvent, FileEventKind, ShareKind
from x2go_session.services.sharing import Sharing, mount_name, served_path

# A session takes seconds to start, and a busy machine many more.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def desk(
    x2go_server: X2goServer,
    client_display: Display,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Desk]:
    """One session for the tests that leave it as it was."""
    made = Desk(x2go_server, client_display, tmp_path_factory.mktemp("sessions"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def _nothing_stays_shared(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "desk" in request.fixturenames:
        desk: Desk = request.getfixturevalue("desk")
        desk.sharing.unshare_all()
        assert desk.mounts() == []


def test_a_folder_is_mounted_and_unmounted(desk: Desk, tmp_path: Path) -> None:
    folder = make(tmp_path)
    desk.sharing.share(folder)
    place = desk.place(folder)
    assert place.endswith(mount_name(str(folder)))
    assert desk.heard(events.FolderShared)[-1] == events.FolderShared(
        session=desk.session.name, folder=folder, mount_point=place
    )
    assert desk.run('cat "$1/file"; echo back >"$1/new"', place) == "content"
    assert (folder / "new").read_text() == "back\n"
    listed = desk.session.control.mounts(desk.session.name)
    assert [mount.mount_point for mount in listed] == [place]

    desk.sharing.unshare(folder)
    assert (desk.mounts(), desk.sharing.folders) == ([], [])
    assert desk.session.control.mounts(desk.session.name) == []
    (unshared,) = desk.heard(events.FolderUnshared)
    assert unshared == events.FolderUnshared(session=desk.session.name, folder=folder)


def test_folders_may_have_any_name(desk: Desk, tmp_path: Path) -> None:
    names = [
        "quo\"te's $(id)`id`",
        "ümläut 日本",
        "c:o+l(on[*?",
        "~ti\\lde\n",
        "-x|y;z",
    ]
    for name in names:
        desk.sharing.share(make(tmp_path, name))
    for shared in desk.sharing.folders:
        assert desk.run('cat "$1/file"', desk.place(shared.folder)) == "content"
    assert len(desk.mounts()) == len(names)
    for name in names:
        desk.sharing.unshare(tmp_path / name)
    assert desk.mounts() == []


def test_folders_whose_mounts_would_have_the_same_name_have_two(
    desk: Desk, tmp_path: Path
) -> None:
    first, second = make(tmp_path, "a b"), make(tmp_path, "a_b")
    (second / "file").write_text("other")
    desk.sharing.share(first)
    desk.sharing.share(second)
    texts = [desk.run('cat "$1/file"', desk.place(f)) for f in (first, second)]
    assert texts == ["content", "other"]


def test_a_read_only_share_cannot_be_written(desk: Desk, tmp_path: Path) -> None:
    folder = make(tmp_path)
    desk.sharing.share(folder, read_only=True)
    script = 'cat "$1/file"; ! touch "$1/new" 2>/dev/null'
    assert desk.run(script, desk.place(folder)) == "content"
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_spool_tells_what_the_server_puts_there(desk: Desk, tmp_path: Path) -> None:
    spool = make(tmp_path, "spool")
    told: list[FileEvent] = []
    desk.sharing.share(spool, kind=ShareKind.PRINT_SPOOL, on_file=told.append)
    place = desk.place(spool)
    assert place == f"/tmp/.x2go-{desk.server.user}/spool/C-{desk.session.name}"
    inside = f"{desk.session.remote_folder}/spool"
    desk.run('cd "$1"; echo text >a.notready; mv a.notready a.ready; rm file', inside)
    wait_until(lambda: len(told) == 3, PATIENCE_S)
    assert told == [
        FileEvent(FileEventKind.CLOSED, spool / "a.notready"),
        FileEvent(FileEventKind.RENAMED, spool / "a.ready"),
        FileEvent(FileEventKind.REMOVED, spool / "file"),
    ]

    # The server cannot unmount one spool alone: there is nothing in it meanwhile.
    desk.sharing.unshare(spool)
    desk.run('! touch "$1/lost" 2>/dev/null', inside)
    other = make(tmp_path, "other")
    desk.sharing.share(other, kind=ShareKind.PRINT_SPOOL)
    assert desk.run('cat "$1/file"', inside) == "content"
    assert not (spool / "lost").exists()

    # It goes with the service.
    desk.sharing.unshare_all()
    desk.sharing.stop()
    assert desk.server.mounts() == []
    desk.sharing.start(desk.session)


def test_a_folder_in_use_stays_shared(desk: Desk, tmp_path: Path) -> None:
    folder = make(tmp_path)
    desk.sharing.share(folder)
    place = desk.place(folder)
    desk.run('cd "$1"; sleep 1000 >/dev/null 2>&1 & echo $! >"$HOME/pid"', place)
    with pytest.raises(ServiceError, match="does a program there use it"):
        desk.sharing.unshare(folder)
    assert desk.run('cat "$1/file"', desk.place(folder)) == "content"
    desk.run('kill "$(cat "$HOME/pid")"; rm "$HOME/pid"')
    wait_until(lambda: _can(desk.sharing.unshare, folder), PATIENCE_S)
    assert desk.mounts() == []


def _can(unshare: Callable[[Path], None], folder: Path) -> bool:
    try:
        unshare(folder)
    except ServiceError:
        return False
    return True


def test_what_cannot_be_shared_is_said_at_once(desk: Desk, tmp_path: Path) -> None:
    folder = make(tmp_path)
    desk.sharing.share(folder)
    with pytest.raises(ServiceError, match="shared already"):
        desk.sharing.share(folder)
    with pytest.raises(ServiceError, match="no such folder here"):
        desk.sharing.share(tmp_path / "nothing")
    with pytest.raises(ServiceError, match="is not shared"):
        desk.sharing.unshare(tmp_path)
    # FUSE lets users mount over their own folders only.
    other = make(tmp_path, "other")
    place = Path(desk.place(folder)).with_name(mount_name(str(other)))
    place.mkdir()
    with pytest.raises(ServiceError, match="cannot mount"):
        desk.sharing.share(other)
    assert [shared.folder for shared in desk.sharing.folders] == [folder]


def test_a_folder_that_cannot_be_looked_at_is_refused_with_the_reason() -> None:
    with pytest.raises(ServiceError, match="File name too long"):
        Sharing().share(Path("/" + "x" * 300))


def test_no_key_stays_on_the_server(desk: Desk, tmp_path: Path) -> None:
    desk.sharing.share(make(tmp_path))
    assert list((desk.server.home / ".x2go" / "ssh").iterdir()) == []


def test_a_server_without_fuse_is_a_clear_error(desk: Desk, tmp_path: Path) -> None:
    programs = desk.server.home / "programs"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    control = Control(desk.tunnel, server_path=str(programs))
    sharing = Sharing()
    sharing.share(make(tmp_path))
    with pytest.raises(ServiceError, match="install fuse3 and sshfs there"):
        sharing.start(replace(desk.session, control=control))
    assert sharing.port == 0


def test_another_port_does_where_that_of_the_session_is_taken(
    desk: Desk, tmp_path: Path
) -> None:
    sharing = Sharing()
    folder = make(tmp_path)
    sharing.share(folder)
    sharing.start(desk.session)
    try:
        assert sharing.port not in (0, desk.sharing.port)
        (shared,) = sharing.folders
        assert desk.run('cat "$1/file"', shared.mount_point) == "content"
    finally:
        sharing.stop()
    assert sharing.port == 0
    assert sharing.folders[0].mount_point == ""


def test_the_server_is_told_a_path_that_its_scripts_can_take() -> None:
    assert served_path(Path("/home/me/a b-c.d"), set()) == "/home/me/a b-c.d"
    assert served_path(Path("/x:'\"$`\\+*~"), set()) == "/x_________"
    taken = {mount_name("/a b"), mount_name("/a_b_2")}
    assert served_path(Path("/a_b"), taken) == "/a_b_3"
