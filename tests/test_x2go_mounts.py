"""A shared folder as real sshfs sees it, through a port of a plain sshd."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import PATIENCE_S, Served, check_fuse, mounted, served
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import open_tunnel

NAMES = [
    "two words",
    " blanks around ",
    "quo\"tes'of`all",
    "new\nline",
    "tab\tand\rreturn",
    "ümläut",
    "日本語",
    "e\u0301 and é",
    "\U0001f5a8 printer",
    "back\\slash",
    "$HOME $(id) *?[x]",
    "-rf",
    "a:b",
    ".hidden",
    "x" * 255,
    os.fsdecode(b"latin-1 \xe4\xf6"),
]
MB = 1_000_000
# As sshfs puts it, which has one error for many reasons.
DENIED = r"No such file|Permission denied|not permitted|Read-only|Input/output"


@pytest.fixture(scope="module")
def server(sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An SFTP server on a tunnel of the engine, for all tests of the file."""
    check_fuse()
    with (
        open_tunnel(sshd, "engine") as tunnel,
        served(tunnel, tmp_path_factory.mktemp("keys")) as made,
    ):
        yield made


@pytest.fixture
def shared(server: Served, tmp_path: Path) -> Iterator[Path]:
    """A shared folder, whose name has a blank."""
    folder = tmp_path / "shared folder"
    folder.mkdir()
    share = server.folders.add(folder)
    yield folder
    server.folders.remove(share)


@pytest.fixture
def mount(server: Served, shared: Path, tmp_path: Path) -> Iterator[Path]:
    """Where the shared folder is mounted."""
    with mounted(server, shared, tmp_path / "mount") as place:
        yield place


def test_what_is_written_on_either_side_is_read_on_the_other(
    shared: Path, mount: Path
) -> None:
    content = os.urandom(5 * MB)
    (mount / "up").write_bytes(content)
    assert (shared / "up").read_bytes() == content
    (shared / "down").write_bytes(content)
    assert (mount / "down").read_bytes() == content


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_same_on_both_sides(shared: Path, mount: Path, name: str) -> None:
    (mount / name).write_text("content")
    assert os.listdir(shared) == os.listdir(mount) == [name]
    (mount / name).rename(mount / "plain")
    (mount / "plain").rename(mount / name)
    assert (shared / name).read_text() == "content"
    (mount / name).unlink()
    (mount / name).mkdir()
    (mount / name / name).touch()
    assert os.listdir(shared / name) == [name]


def test_a_rename_takes_the_place_of_another_file(shared: Path, mount: Path) -> None:
    (mount / "old").write_text("old")
    (mount / "new").write_text("new")
    os.replace(mount / "new", mount / "old")
    assert os.listdir(shared) == ["old"]
    assert (shared / "old").read_text() == "new"
    (mount / "folder" / "in").mkdir(parents=True)
    (mount / "folder").rename(mount / "moved")
    assert (shared / "moved" / "in").is_dir()
    with pytest.raises(IsADirectoryError):
        (mount / "old").rename(mount / "moved")


def test_files_are_cut_extended_and_appended_to(shared: Path, mount: Path) -> None:
    (mount / "file").write_bytes(b"0123456789")
    os.truncate(mount / "file", 4)
    os.truncate(mount / "file", 6)
    with (mount / "file").open("ab") as file:
        file.write(b"end")
    assert (shared / "file").read_bytes() == b"0123\0\0end"
    with (mount / "file").open("r+b") as file:
        file.seek(2)
        file.write(b"in")
        file.truncate(5)
        file.flush()
        os.fsync(file.fileno())
        assert (shared / "file").read_bytes() == b"01in\0"


def test_modes_and_times_are_set(shared: Path, mount: Path) -> None:
    (mount / "file").touch()
    for mode in (0o640, 0o000, 0o400, 0o755):
        (mount / "file").chmod(mode)
        assert (shared / "file").stat().st_mode & 0o7777 == mode
        assert (mount / "file").stat().st_mode & 0o7777 == mode
    os.utime(mount / "file", (1_000_000_000, 2_000_000_000))
    found = (shared / "file").stat()
    assert (found.st_atime, found.st_mtime) == (1_000_000_000, 2_000_000_000)
    os.chown(mount / "file", os.getuid(), os.getgid())
    assert (mount / "file").stat().st_uid == os.getuid()


def test_links_work_within_the_folder_and_never_out_of_it(
    shared: Path, mount: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("nobody's business")
    (mount / "file").write_text("content")
    (mount / "link").symlink_to("file")
    assert (mount / "link").read_text() == "content"
    os.link(mount / "file", mount / "same")
    assert (shared / "same").stat().st_nlink == 2
    for target in (str(secret), "../secret"):
        with pytest.raises(PermissionError):
            (mount / "out").symlink_to(target)
    # One that was there would be followed over there, where it leads somewhere else;
    # sshfs does not even show where.
    (shared / "out").symlink_to(secret)
    with pytest.raises(OSError, match=DENIED):
        (mount / "out").read_text()


def test_the_size_of_the_file_system_is_told(shared: Path, mount: Path) -> None:
    ours, theirs = os.statvfs(shared), os.statvfs(mount)
    assert (theirs.f_blocks, theirs.f_namemax) == (ours.f_blocks, ours.f_namemax)
    assert theirs.f_frsize == ours.f_frsize


def test_a_file_of_more_than_four_gigabytes_is_read_and_written(
    shared: Path, mount: Path
) -> None:
    far = 5 * 2**30
    with (mount / "large").open("wb") as file:
        file.write(b"begin")
        file.seek(far)
        file.write(b"end")
    assert (shared / "large").stat().st_size == far + 3
    with (mount / "large").open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(far)
        assert file.read() == b"end"


def test_ten_thousand_files_are_listed(shared: Path, mount: Path) -> None:
    names = {f"file {number:05d} of many" for number in range(10_000)}
    for name in names:
        (shared / name).touch()
    assert set(os.listdir(mount)) == names
    with os.scandir(mount) as entries:
        assert sum(entry.stat().st_size == 0 for entry in entries) == 10_000


def test_a_read_only_folder_is_read_only(server: Served, tmp_path: Path) -> None:
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "book").write_text("text")
    share = server.folders.add(folder, read_only=True)
    with mounted(server, folder, tmp_path / "mount") as mount:
        assert (mount / "book").read_text() == "text"
        for change in (
            lambda: (mount / "book").write_text("x"),
            lambda: (mount / "new").touch(),
            lambda: (mount / "book").unlink(),
            lambda: (mount / "book").chmod(0o777),
            lambda: (mount / "book").rename(mount / "other"),
            lambda: (mount / "folder").mkdir(),
        ):
            with pytest.raises(OSError, match=DENIED):
                change()
    assert [path.name for path in folder.iterdir()] == ["book"]
    server.folders.remove(share)


def test_only_what_is_shared_can_be_mounted(
    server: Served, shared: Path, tmp_path: Path
) -> None:
    for path in (tmp_path, Path("/etc"), shared / "..", shared / "no"):
        with (
            pytest.raises(AssertionError, match=DENIED),
            mounted(server, path, tmp_path / "mount"),
        ):
            pass


def test_several_programs_write_at_once(shared: Path, mount: Path) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            path = mount / f"{number} {turn}"
            path.write_bytes(bytes([number]) * 70_000)
            path.rename(mount / f"{number}-{turn}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    found = {path.name: path.read_bytes() for path in shared.iterdir()}
    assert len(found) == 100
    assert all(data == bytes([int(n[0])]) * 70_000 for n, data in found.items())


def test_a_folder_that_is_shared_no_more_is_gone_from_its_mount(
    server: Served, tmp_path: Path
) -> None:
    folder = tmp_path / "brief"
    folder.mkdir()
    (folder / "file").write_text("text")
    share = server.folders.add(folder)
    with mounted(server, folder, tmp_path / "mount") as mount:
        with (mount / "file").open("rb") as file:
            server.folders.remove(share)
            # What sshfs makes of an error in its read-ahead is the end of the file.
            assert os.pread(file.fileno(), 10, 0) == b""
        for path in (mount / "file", mount / "new"):
            with pytest.raises(OSError, match=DENIED):
                path.write_text("x")
    assert (folder / "file").read_text() == "text"


@pytest.mark.parametrize("backend", ["pump", "python"])
def test_a_mount_works_on_the_portable_backends(
    sshd: Sshd, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTUNNEL_BACKEND", backend)
    folder = tmp_path / "shared"
    folder.mkdir()
    content = os.urandom(MB)
    with open_tunnel(sshd, backend) as tunnel, served(tunnel, tmp_path) as server:
        server.folders.add(folder)
        with mounted(server, folder, tmp_path / "mount") as mount:
            (mount / "file").write_bytes(content)
        with mounted(server, folder, tmp_path / "mount") as mount:
            assert (mount / "file").read_bytes() == content


def test_the_programs_of_openssh_move_folders(
    server: Served, shared: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "in ner").mkdir(parents=True)
    (source / "in ner" / "file").write_bytes(os.urandom(3 * MB))
    there, back = f"{shared}/copy", tmp_path / "back"
    done = server.run(
        *("sftp", "-b", "-", "somebody@127.0.0.1"),
        text=f'put -R "{source}" "{there}"\nls -l "{shared}"\n'
        f'get -R "{there}" "{back}"\ndf "{shared}"\n',
    )
    assert done.returncode == 0, done.stderr
    assert "drwx" in done.stdout
    copies = [back / "in ner" / "file", shared / "copy" / "in ner" / "file"]
    wanted = hashlib.sha256((source / "in ner" / "file").read_bytes()).digest()
    assert [hashlib.sha256(c.read_bytes()).digest() for c in copies] == [wanted] * 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("somebody@127.0.0.1", "id"),
        ("somebody@127.0.0.1",),
        ("-tt", "somebody@127.0.0.1"),
        ("-s", "somebody@127.0.0.1", "other"),
        ("-W", "127.0.0.1:22", "somebody@127.0.0.1"),
        ("-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:22",
         "somebody@127.0.0.1"),
    ],
)  # fmt: skip
def test_nothing_but_sftp_is_to_be_had(
    server: Served, arguments: tuple[str, ...]
) -> None:
    done = server.run("ssh", *arguments)
    assert done.returncode == 255, done.stdout
    assert done.stdout == ""


def test_another_user_or_key_does_not_get_in(
    server: Served, shared: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)]
    subprocess.run(keygen, check=True)
    denied = "Permission denied (publickey)"
    done = server.run("sftp", "-b", "-", "root@127.0.0.1")
    assert denied in done.stderr
    wrong = Served(
        server.folders, server.server, server.listener, other, server.known_hosts
    )
    assert denied in wrong.run("sftp", "-b", "-", "somebody@127.0.0.1").stderr
    wait_until(lambda: server.server.clients == 0, PATIENCE_S)


def test_the_right_key_is_found_behind_many_others(
    server: Served, shared: Path, tmp_path: Path
) -> None:
    others: list[str] = []
    for number, kind in enumerate(["rsa", "ecdsa", *["ed25519"] * 12]):
        path = tmp_path / f"key{number}"
        keygen = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)]
        subprocess.run(keygen, check=True)
        others += ["-i", str(path)]
    done = server.run("sftp", *others, "-b", "-", "somebody@127.0.0.1", text="pwd\n")
    assert done.returncode == 0, done.stderr


def test_a_client_that_says_nothing_keeps_nobody_from_closing(
    sshd: Sshd, tmp_path: Path
) -> None:
    with open_tunnel(sshd, "engine") as tunnel, served(tunnel, tmp_path) as server:
        silent = socket.create_connection(("127.0.0.1", server.listener.port))
        with silent:
            wait_until(lambda: server.server.clients == 1, PATIENCE_S)
            server.server.close()
            wait_until(lambda: server.server.clients == 0, PATIENCE_S)
