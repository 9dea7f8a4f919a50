"""The SFTP server of shared folders: nothing but the folders can be reached by it."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sftp import NO_ATTRIBUTES, RawSftp, Refused, path_in, served
from tests.support.sshd import wait_until
from x2go_session.sftp.folders import Share, SharedFolders
from x2go_session.sftp.handles import MOST_HANDLES
from x2go_session.sftp.operations import EXTENSIONS, Operations
from x2go_session.sftp.protocol import (
    MAX_PACKET_BYTES,
    AttributeFlag,
    BadMessage,
    Fields,
    OpenFlag,
    Reply,
    Request,
    Status,
    string,
)
from x2go_session.sftp.watch import FolderWatch

SECRET = b"nobody's business"
FIRST = bytes(7) + b"\1"  # the first handle of a connection
WRITING = OpenFlag.WRITE | OpenFlag.CREAT | OpenFlag.TRUNC
SIZE = struct.pack(">IQ", AttributeFlag.SIZE, 1)
MODE = struct.pack(">II", AttributeFlag.PERMISSIONS, 0o600)
TIMES = struct.pack(">III", AttributeFlag.ACMODTIME, 1, 2)
OWNER = struct.pack(">III", AttributeFlag.UIDGID, os.getuid(), os.getgid())


class Place:
    """A shared folder, one that is not, and a client."""

    def __init__(self, root: Path, folders: SharedFolders, client: RawSftp) -> None:
        self.folder = root / "shared"
        self.outside = root / "outside"
        self.folders = folders
        self.client = client

    def path(self, *parts: str | bytes) -> bytes:
        """Return the path of something in the shared folder."""
        return path_in(self.folder, *parts)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A client of a folder with a file in it, and secrets around it."""
    folder, outside = tmp_path / "shared", tmp_path / "outside"
    for made in (folder, outside):
        made.mkdir()
    (folder / "file").write_bytes(b"content")
    (outside / "secret").write_bytes(SECRET)
    folders = SharedFolders()
    folders.add(folder)
    with served(folders) as client:
        yield Place(tmp_path, folders, client)


def touching(path: bytes, inside: bytes) -> dict[str, tuple[int, bytes]]:
    """Return every request that could do something to a path, by name."""

    def flags(wanted: int) -> bytes:
        return struct.pack(">I", wanted) + NO_ATTRIBUTES

    one = string(path)
    into, back = string(inside) + one, one + string(inside)
    return {
        "open": (Request.OPEN, one + flags(OpenFlag.READ)),
        "open to write": (Request.OPEN, one + flags(OpenFlag.WRITE)),
        "create": (Request.OPEN, one + flags(WRITING)),
        "stat": (Request.STAT, one),
        "truncate": (Request.SETSTAT, one + SIZE),
        "chmod": (Request.SETSTAT, one + MODE),
        "utimes": (Request.SETSTAT, one + TIMES),
        "chown": (Request.SETSTAT, one + OWNER),
        "list": (Request.OPENDIR, one),
        "remove": (Request.REMOVE, one),
        "mkdir": (Request.MKDIR, one + NO_ATTRIBUTES),
        "rmdir": (Request.RMDIR, one),
        "rename to": (Request.RENAME, into),
        "rename from": (Request.RENAME, back),
        "readlink": (Request.READLINK, one),
        "symlink": (Request.SYMLINK, string(b"file") + one),
        "posix-rename to": (
            Request.EXTENDED, string(b"posix-rename@openssh.com") + into),
        "posix-rename from": (
            Request.EXTENDED, string(b"posix-rename@openssh.com") + back),
        "hardlink to": (Request.EXTENDED, string(b"hardlink@openssh.com") + into),
        "hardlink from": (Request.EXTENDED, string(b"hardlink@openssh.com") + back),
        "statvfs": (Request.EXTENDED, string(b"statvfs@openssh.com") + one),
        "lsetstat": (
            Request.EXTENDED, string(b"lsetstat@openssh.com") + one + MODE),
    }  # fmt: skip


def state_of(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return what is in a folder: names, contents, modes and times."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        about = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        entry = (about.st_mode, about.st_mtime_ns, about.st_nlink, content)
        found[str(path)] = entry
    return found


def granted(place: Place, path: bytes) -> list[str]:
    """Return which requests about a path were not refused."""
    done = []
    for name, (kind, body) in touching(path, place.path("file")).items():
        with contextlib.suppress(Refused):
            place.client.ask(kind, body)
            done.append(name)
    return done


@pytest.mark.parametrize(
    "where",
    [
        "{outside}/secret",
        "{outside}",
        "/etc/passwd",
        "/",
        "",
        ".",
        "{folder}/../outside/secret",
        "{folder}/..",
        "{folder}/./.././outside/secret",
        "{folder}//..//outside//secret",
        "{folder}/file/../../outside/secret",
        "../outside/secret",
        "{folder}-",
        "{outside}/../shared/file",
    ],
)
def test_no_path_leads_out_of_the_folder(place: Place, where: str) -> None:
    before = state_of(place.outside), state_of(place.folder)
    path = where.format(folder=place.folder, outside=place.outside).encode()
    # Where all begins may be looked at: a client learns there who we are.
    assert granted(place, path) == (["stat"] if where in ("", ".", "/") else [])
    assert (state_of(place.outside), state_of(place.folder)) == before


@pytest.mark.parametrize("target", ["{outside}", "../outside", ".", "{folder}"])
def test_no_link_is_followed_on_the_way(place: Place, target: str) -> None:
    target = target.format(folder=place.folder, outside=place.outside)
    (place.folder / "link").symlink_to(target)
    before = state_of(place.outside)
    for last in ("secret", "file", "new"):
        assert granted(place, place.path("link", last)) == []
    assert state_of(place.outside) == before


@pytest.mark.parametrize("target", ["{outside}/secret", "../outside/secret", "file"])
def test_no_link_is_followed_at_the_end(place: Place, target: str) -> None:
    link = place.folder / "link"
    target = target.format(outside=place.outside)
    before = state_of(place.outside), (place.folder / "file").read_bytes()
    for name, request in touching(place.path("link"), place.path("new")).items():
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        (place.folder / "new").unlink(missing_ok=True)
        with contextlib.suppress(Refused):
            place.client.ask(*request)
            # What is about the link itself.
            assert name in {
                *("stat", "readlink", "remove", "utimes", "chown", "rename from"),
                *("posix-rename from", "statvfs"),
            }
    assert (state_of(place.outside), (place.folder / "file").read_bytes()) == before


def test_a_folder_that_turns_into_a_link_gives_nothing_away(place: Place) -> None:
    """The attack of a server with two mounts: one moves what the other one opens."""
    real, link, spare = (place.folder / name for name in ("dir", "link", "spare"))
    real.mkdir()
    (real / "secret").write_bytes(b"harmless")
    link.symlink_to(place.outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for old, new in ((real, spare), (link, real), (real, link), (spare, real)):
                old.rename(new)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(3000):
            with contextlib.suppress(Refused):
                handle = place.client.open(place.path("dir", "secret"))
                seen.add(place.client.read(handle))
                place.client.close(handle)
    finally:
        stop.set()
        thread.join()
    assert SECRET not in seen
    assert seen <= {b"harmless"}


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "..", "../outside", "a/../../outside", "dir/../.."]
)
def test_no_link_is_made_that_leads_out(place: Place, target: str) -> None:
    with pytest.raises(Refused) as refused:
        place.client.ask(
            Request.SYMLINK, string(target.encode()) + string(place.path("link"))
        )
    assert refused.value.status is Status.PERMISSION_DENIED
    assert not (place.folder / "link").is_symlink()


def test_no_link_leads_out_by_way_of_another(place: Place) -> None:
    (place.folder / "a" / "b").mkdir(parents=True)
    to_the_top = string(b"../..") + string(place.path("a", "b", "up"))
    place.client.ask(Request.SYMLINK, to_the_top)
    assert (place.folder / "a" / "b" / "up" / "file").read_bytes() == b"content"
    through_it = string(b"a/b/up/../outside") + string(place.path("link"))
    with pytest.raises(Refused) as refused:
        place.client.ask(Request.SYMLINK, through_it)
    assert refused.value.status is Status.PERMISSION_DENIED


def test_a_link_within_the_folder_is_made(place: Place) -> None:
    (place.folder / "dir").mkdir()
    target, link = string(b"../file"), string(place.path("dir", "link"))
    place.client.ask(Request.SYMLINK, target + link)
    assert (place.folder / "dir" / "link").read_bytes() == b"content"
    answer = place.client.on_path(Request.READLINK, place.path("dir", "link"))
    assert answer.body[8:15] == b"../file"


def test_what_is_above_a_shared_folder_is_not_told(place: Place) -> None:
    assert set(place.client.names(place.path())) == {b".", b"..", b"file"}
    answer = place.client.on_path(Request.REALPATH, place.path("..", "..", "x"))
    assert answer.body[8:].startswith(bytes(place.folder.parent.parent) + b"/x")


def test_pipes_and_devices_are_not_opened(place: Place) -> None:
    os.mkfifo(place.folder / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place.folder / "sock"))
    for name in ("pipe", "sock"):
        for flags in (OpenFlag.READ, WRITING, OpenFlag.READ | OpenFlag.WRITE):
            with pytest.raises(Refused):
                place.client.open(place.path(name), flags)
        with pytest.raises(Refused):
            place.client.on_path(Request.SETSTAT, place.path(name), SIZE)


def test_a_read_only_share_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_bytes(b"content")
    before = state_of(tmp_path)
    folders = SharedFolders()
    folders.add(tmp_path, read_only=True)
    with served(folders) as client:
        paths = [path_in(tmp_path, name) for name in ("file", "dir", "new")]
        reads = {"open", "stat", "list", "statvfs", "readlink"}
        for path in paths:
            for name, request in touching(path, path_in(tmp_path, "file")).items():
                with contextlib.suppress(Refused):
                    client.ask(*request)
                    assert name in reads
        handle = client.open(paths[0])
        assert client.read(handle) == b"content"
        for kind, rest in ((Request.FSETSTAT, MODE), (Request.FSETSTAT, SIZE)):
            with pytest.raises(Refused):
                client.ask(kind, handle + rest)
        with pytest.raises(Refused):
            client.write(handle, b"x")
        answer = client.extended("statvfs@openssh.com", string(paths[1]))
        assert struct.unpack_from(">11Q", answer.body)[9] & os.ST_RDONLY
    assert state_of(tmp_path) == before


def test_a_folder_within_a_shared_folder_has_its_own_rights(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    folders = SharedFolders()
    folders.add(tmp_path, read_only=True)
    folders.add(inner)
    with served(folders) as client:
        client.put(path_in(inner, "new"), b"x")
        with pytest.raises(Refused):
            client.put(path_in(tmp_path, "new"), b"x")
        # From one share into another nothing is moved.
        with pytest.raises(ValueError, match="already shared"):
            folders.add(inner)
    assert (inner / "new").read_bytes() == b"x"


def test_what_is_shared_no_more_cannot_be_used_by_open_handles(place: Place) -> None:
    client = place.client
    file, folder = client.open(place.path("file")), client.opendir(place.path())
    (share,) = place.folders.shares
    place.folders.remove(share)
    for ask in (
        lambda: client.read(file),
        lambda: client.ask(Request.FSTAT, file),
        lambda: client.ask(Request.READDIR, folder),
        lambda: client.open(place.path("file")),
        lambda: client.extended("fstatvfs@openssh.com", file),
    ):
        with pytest.raises(Refused):
            ask()
    client.close(file)
    client.close(folder)


def test_a_shared_folder_stays_the_same_one_when_it_is_moved(place: Place) -> None:
    place.folder.rename(place.folder.with_name("moved"))
    place.folder.symlink_to(place.outside)
    handle = place.client.open(place.path("file"))
    assert place.client.read(handle) == b"content"
    with pytest.raises(Refused):
        place.client.open(place.path("secret"))


def test_nobody_makes_programs_that_run_as_somebody_else(place: Place) -> None:
    mode = struct.pack(">II", AttributeFlag.PERMISSIONS, 0o106755)
    place.client.on_path(Request.SETSTAT, place.path("file"), mode)
    assert (place.folder / "file").stat().st_mode & 0o7777 == 0o755
    place.client.on_path(Request.MKDIR, place.path("dir"), mode)
    assert (place.folder / "dir").stat().st_mode & 0o6000 == 0


def test_a_client_may_have_so_much_open_and_no_more(place: Place) -> None:
    handles = [place.client.open(place.path("file")) for _ in range(MOST_HANDLES)]
    with pytest.raises(Refused, match="too many"):
        place.client.open(place.path("file"))
    place.client.close(handles.pop())
    place.client.open(place.path("file"))


def test_everything_is_closed_when_the_client_goes(tmp_path: Path) -> None:
    folders = SharedFolders()
    folders.add(tmp_path)
    (tmp_path / "file").touch()

    def open_here() -> list[str]:
        found = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/self/fd/{number}"))
        return [path for path in found if path == f"{tmp_path}/file"]

    with served(folders) as client:
        for _ in range(5):
            client.open(path_in(tmp_path, "file"))
        assert len(open_here()) == 5
    wait_until(lambda: open_here() == [])


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0\0\0\0",
        struct.pack(">I", MAX_PACKET_BYTES + 1) + bytes(100),
        struct.pack(">I", 0xFFFFFFFF),
        b"\0\0\0\x09" + bytes([Request.OPEN]) + bytes(4) + b"\0\0\0\xff",
        b"\0\0\0\x05" + bytes([Request.READ]) + bytes(4),
        b"\0\0\0\x05" + bytes([Request.WRITE]) + bytes(4),
        b"\0\0\0\x21" + bytes([Request.WRITE]) + bytes(4) + string(FIRST)
        + bytes(8) + struct.pack(">I", 99) + b"data",
    ],
)  # fmt: skip
def test_a_client_that_breaks_the_protocol_is_cut_off(
    place: Place, packet: bytes
) -> None:
    assert place.client.open(place.path("file"), WRITING) == string(FIRST)
    place.client.sock.sendall(packet)
    place.client.sock.shutdown(socket.SHUT_WR)
    assert place.client.hear() == b""


def test_whatever_a_client_sends_the_server_survives(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    folders = SharedFolders()
    folders.add(shared)
    chance = random.Random(4254)
    kinds = [*Request, 0, 2, 99, 255]
    for _ in range(60):
        with served(folders) as client, contextlib.suppress(OSError):
            for _ in range(20):
                body = chance.choice(
                    [chance.randbytes(chance.randrange(60)),
                     string(path_in(shared, chance.randbytes(5)))
                     + chance.randbytes(chance.randrange(40))]
                )  # fmt: skip
                client.say(bytes([chance.choice(kinds)]) + bytes(4) + body)
    with served(folders) as client:
        client.put(path_in(shared, "file"), b"alive")
    assert list(tmp_path.iterdir()) == [shared]


def test_requests_of_every_shape_are_answered_or_end_the_stream(
    place: Place,
) -> None:
    chance = random.Random(4253)
    names = [
        b"file",
        b"link/secret",
        b"link",
        b"../outside/secret",
        b"new",
        b"\xff",
        b"",
    ]
    numbers = [0, 1, 3, 0x1A, 0x3F, 2**31 - 1, 2**31, 2**32 - 1]
    large = [0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]

    def field() -> bytes:
        shapes = (
            struct.pack(">I", chance.choice(numbers)),
            struct.pack(">Q", chance.choice(large)),
            string(place.path(chance.choice(names))),
            string(chance.randrange(1, 30).to_bytes(8, "big")),
            string(chance.randbytes(chance.randrange(20))),
        )
        return chance.choice(shapes)

    before = state_of(place.outside)
    operations = Operations(place.folders)
    extensions = [name for name, _ in EXTENSIONS]
    for turn in range(4000):
        kind = chance.choice([*Request, 99])
        body = b"".join(field() for _ in range(chance.randrange(1, 6)))
        if kind == Request.EXTENDED:
            body = string(chance.choice(extensions)) + body
        if not os.path.lexists(place.folder / "link"):
            (place.folder / "link").symlink_to(place.outside)
        number = struct.pack(">I", turn)
        with contextlib.suppress(BadMessage):
            fields = Fields(memoryview(body), 0, len(body))
            reply = operations.answer(kind, number, fields)
            assert reply[1:5] == number
    operations.handles.close_all()
    assert state_of(place.outside) == before


def test_paths_that_no_system_takes_are_refused(place: Place) -> None:
    for path in (b"nul\0byte", b"x" * 5000, b"/" * 5000, b"x" * 300):
        for whole in (path, place.path(path)):
            with pytest.raises(Refused):
                place.client.open(whole)
    with pytest.raises(Refused):
        place.client.open(place.path("file"), 0)


def test_a_plain_rename_replaces_nothing(place: Place) -> None:
    place.client.put(place.path("other"), b"other")
    names = string(place.path("file")) + string(place.path("other"))
    with pytest.raises(Refused):
        place.client.ask(Request.RENAME, names)
    assert (place.folder / "other").read_bytes() == b"other"
    place.client.extended("posix-rename@openssh.com", names)
    assert (place.folder / "other").read_bytes() == b"content"


def test_large_offsets_reach_the_far_end_of_a_file(place: Place) -> None:
    far = 5 * 2**30
    large = string(place.path("large"))
    handle = place.client.open(place.path("large"), WRITING | OpenFlag.READ)
    place.client.write(handle, b"the end", far)
    assert place.client.read(handle, offset=far) == b"the end"
    with pytest.raises(Refused) as end:
        place.client.read(handle, offset=far + 7)
    assert end.value.status is Status.EOF
    for offset in (2**63 - 1, 2**64 - 1):
        with pytest.raises(Refused):
            place.client.read(handle, offset=offset)
        size = struct.pack(">IQ", AttributeFlag.SIZE, offset)
        for kind, what in ((Request.FSETSTAT, handle), (Request.SETSTAT, large)):
            with pytest.raises(Refused):
                place.client.ask(kind, what + size)
    assert (place.folder / "large").stat().st_size == far + 7


def test_requests_in_a_row_are_answered_in_their_order(place: Place) -> None:
    blocks = [os.urandom(60_000) for _ in range(40)]
    handle = place.client.open(place.path("blocks"), WRITING | OpenFlag.READ)
    sock = place.client.sock

    def send_all() -> None:
        for at, block in enumerate(blocks):
            head = struct.pack(">Q", at * 60_000) + string(block)
            body = bytes([Request.WRITE]) + struct.pack(">I", at) + handle + head
            sock.sendall(struct.pack(">I", len(body)) + body)
        for at in range(len(blocks)):
            where = struct.pack(">QI", at * 60_000, 60_000)
            body = bytes([Request.READ]) + struct.pack(">I", 100 + at) + handle + where
            sock.sendall(struct.pack(">I", len(body)) + body)

    thread = threading.Thread(target=send_all)
    thread.start()
    for at in range(len(blocks)):
        assert place.client.hear()[:5] == bytes([Reply.STATUS]) + struct.pack(">I", at)
    for at, block in enumerate(blocks):
        reply = place.client.hear()
        assert reply[:5] == bytes([Reply.DATA]) + struct.pack(">I", 100 + at)
        assert reply[9:] == block
    thread.join()


class Notes(FolderWatch):
    """Writes down what it is told, by names."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def on_close(self, path: Path, written: bool) -> None:
        self.told.append(("close", path.name, written))

    def on_rename(self, path_from: Path, path_to: Path) -> None:
        self.told.append(("rename", path_from.name, path_to.name))

    def on_remove(self, path: Path) -> None:
        self.told.append(("remove", path.name))
        raise RuntimeError("the client has nothing to do with this")


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[tuple[RawSftp, Notes, Share]]:
    """Serve a folder that somebody watches."""
    notes, folders = Notes(), SharedFolders()
    share = folders.add(folder, watch=notes)
    with served(folders) as client:
        yield client, notes, share


def test_a_watch_is_told_of_closes_renames_and_removals(tmp_path: Path) -> None:
    with watched(tmp_path) as (client, notes, _):
        client.put(path_in(tmp_path, "job.notready"), b"text")
        names = [string(path_in(tmp_path, n)) for n in ("job.notready", "job.ready")]
        client.ask(Request.RENAME, b"".join(names))
        client.close(client.open(path_in(tmp_path, "job.ready")))
        client.on_path(Request.REMOVE, path_in(tmp_path, "job.ready"))
    assert notes.told == [
        ("close", "job.notready", True),
        ("rename", "job.notready", "job.ready"),
        ("close", "job.ready", False),
        ("remove", "job.ready"),
    ]


def test_an_empty_new_file_counts_as_written(tmp_path: Path) -> None:
    with watched(tmp_path) as (client, notes, _):
        path = path_in(tmp_path, "empty")
        client.close(client.open(path, OpenFlag.WRITE | OpenFlag.CREAT))
        client.close(client.open(path, OpenFlag.WRITE | OpenFlag.CREAT))
    assert notes.told == [("close", "empty", True), ("close", "empty", False)]


def test_a_file_that_is_renamed_while_open_is_closed_by_its_new_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").mkdir()
    with watched(tmp_path) as (client, notes, _):
        handle = client.open(path_in(tmp_path, "a", "x"), WRITING)
        client.ask(
            Request.RENAME,
            string(path_in(tmp_path, "a")) + string(path_in(tmp_path, "b")),
        )
        client.write(handle, b"text")
        client.close(handle)
    assert notes.told == [("rename", "a", "b"), ("close", "x", True)]
    assert (tmp_path / "b" / "x").read_bytes() == b"text"


def test_a_connection_that_breaks_closes_no_file_as_written(tmp_path: Path) -> None:
    """What the client did not close is not complete."""
    with watched(tmp_path) as (client, notes, _):
        client.write(client.open(path_in(tmp_path, "half"), WRITING), b"half of it")
    assert notes.told == []
