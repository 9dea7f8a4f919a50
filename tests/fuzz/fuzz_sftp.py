"""The SFTP server of shared folders: any requests, on paths of every kind.

Nothing outside of the folders is read or changed, nothing of a read-only folder is
changed, every request has one reply with its number, and no descriptor is left. Links
that the client makes lead nowhere else.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from tests.fuzz.harness import Input, fuzz, watched

with watched():
    from x2go_session.sftp.folders import SharedFolders
    from x2go_session.sftp.protocol import OpenFlag, Request, string
    from x2go_session.sftp.server import SftpServer

SECRET = b"what nobody shares"
# The server knows them by these paths.
WRITABLE, READ_ONLY = b"/media/rw", b"/media/ro"
NAMES = (
    b"a", b"b", b"c", b"folder", b"deep", b"file", b"out", b"outdir", b"inside",
    b"", b".", b"..", b"secret", b"\xff\xfe", b"x" * 256, b"nul\0",
)  # fmt: skip
ROOTS = (WRITABLE, WRITABLE, WRITABLE, READ_ONLY, b"/media", b"", b"/etc", b"..")
MOVES = (Request.RENAME, Request.EXTENDED)
EXTENSIONS = (
    b"posix-rename@openssh.com", b"statvfs@openssh.com", b"fstatvfs@openssh.com",
    b"hardlink@openssh.com", b"fsync@openssh.com", b"lsetstat@openssh.com",
    b"limits@openssh.com", b"unknown",
)  # fmt: skip
MOST_REQUESTS = 40

Tree = dict[str, tuple[int, int, bytes]]


class World:
    """The folders: two that are shared, and one beside them that is not."""

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="fuzz-sftp-"))
        self.outside = self.top / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(SECRET)
        for name in ("rw", "ro"):
            share = self.top / name
            (share / "folder" / "deep").mkdir(parents=True)
            (share / "file").write_bytes(b"content")
            (share / "folder" / "a").write_bytes(b"more")
            (share / "out").symlink_to(self.outside / "secret")
            (share / "outdir").symlink_to(self.outside)
            (share / "inside").symlink_to("folder")
        self.given = set(map(str, self.top.rglob("out*")))

    def links_lead_inside(self) -> bool:
        """Whether all links that a client made lead into its folder."""
        share = str(self.top / "rw")
        return all(
            os.path.realpath(path).startswith(share)
            for path in map(str, (self.top / "rw").rglob("*"))
            if os.path.islink(path) and path not in self.given
        )

    def remove(self) -> None:
        for path in self.top.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(self.top)


def tree(folder: Path) -> Tree:
    """All that is in a folder."""
    found: Tree = {}
    for path in (folder, *folder.rglob("*")):
        about = path.lstat()
        is_file = path.is_file() and not path.is_symlink()
        content = path.read_bytes() if is_file else b""
        found[str(path)] = (about.st_mode, about.st_mtime_ns, content)
    return found


def path_from(given: Input) -> bytes:
    """Return a path: some of the known names, or any bytes."""
    shape = given.byte()
    if shape >= 0xF0:
        return given.bytes(shape - 0xF0)
    parts = [ROOTS[shape % len(ROOTS)]]
    parts += [NAMES[given.byte() % len(NAMES)] for _ in range(shape // 8 % 4)]
    return b"/".join(parts)


def attributes_from(given: Input) -> bytes:
    """Return attributes with few of all possible values."""
    flags = given.byte() & 15
    body = b""
    if flags & 1:
        body += (given.number() << (given.byte() % 50)).to_bytes(16, "big")[8:]
    if flags & 2:
        body += os.getuid().to_bytes(4, "big") + os.getgid().to_bytes(4, "big")
    if flags & 4:
        body += (given.number() | 0o600).to_bytes(4, "big")
    if flags & 8:
        body += given.bytes(8).ljust(8, b"\1")
    return flags.to_bytes(4, "big") + body


def request_from(given: Input, number: int) -> tuple[int, bytes]:
    """Return the kind of a request, and the request."""
    kinds = list(Request)[1:]
    kind = int(kinds[given.byte() % len(kinds)])
    handle = string((given.byte() % 4 + 1).to_bytes(8, "big"))
    offset = given.byte().to_bytes(8, "big")
    body = b""
    match kind:
        case Request.OPEN:
            flags = (given.byte() & 63) | OpenFlag.READ
            body = string(path_from(given)) + flags.to_bytes(4, "big")
            body += attributes_from(given)
        case Request.CLOSE | Request.FSTAT | Request.READDIR:
            body = handle
        case Request.READ:
            body = handle + offset + given.number().to_bytes(4, "big")
        case Request.WRITE:
            body = handle + offset + string(given.bytes(given.byte() % 64))
        case Request.FSETSTAT:
            body = handle + attributes_from(given)
        case Request.SETSTAT | Request.MKDIR:
            body = string(path_from(given)) + attributes_from(given)
        case Request.RENAME | Request.SYMLINK:
            body = string(path_from(given)) + string(path_from(given))
        case Request.EXTENDED:
            name = EXTENSIONS[given.byte() % len(EXTENSIONS)]
            body = string(name)
            body += handle if name.startswith(b"f") else string(path_from(given))
            body += string(path_from(given))
        case _:
            body = string(path_from(given))
    cut = given.byte()
    if cut >= 0xF8:  # a request that ends too early
        body = body[: cut - 0xF8]
    packet = bytes([kind]) + number.to_bytes(4, "big") + body
    return kind, len(packet).to_bytes(4, "big") + packet


def replies_of(folders: SharedFolders, said: bytes) -> list[bytes]:
    """Have the server answer all that is said; return the packets that it sends."""
    ours, theirs = socket.socketpair()
    heard = bytearray()

    def listen() -> None:
        while part := ours.recv(1 << 20):
            heard.extend(part)

    with ours, theirs:
        reader = threading.Thread(target=listen)
        reader.start()
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        try:
            SftpServer(folders, theirs).serve()
        finally:
            theirs.shutdown(socket.SHUT_RDWR)
            reader.join()
    packets = []
    while heard:
        length = int.from_bytes(heard[:4], "big")
        assert 5 <= length <= len(heard) - 4
        packets.append(bytes(heard[4 : 4 + length]))
        del heard[: 4 + length]
    return packets


def test(data: bytes) -> None:
    """Make folders, ask, and look at what is left of them."""
    given = Input(data)
    kinds: list[int] = []
    said = b"\0\0\0\5\1\0\0\0\3"
    if given.byte() == 0xFF:
        said += given.rest()
        kinds += MOVES
    while given.left and len(kinds) < MOST_REQUESTS:
        kind, packet = request_from(given, len(kinds))
        kinds.append(kind)
        said += packet
    open_before = len(os.listdir("/proc/self/fd"))
    world = World()
    try:
        folders = SharedFolders()
        folders.add(world.top / "rw", served_as=WRITABLE)
        folders.add(world.top / "ro", served_as=READ_ONLY, read_only=True)
        before = tree(world.outside), tree(world.top / "ro")
        replies = replies_of(folders, said)
        folders.clear()
        assert (tree(world.outside), tree(world.top / "ro")) == before
        assert not any(SECRET in reply for reply in replies)
        if data[:1] != b"\xff":
            numbers = [int.from_bytes(reply[1:5], "big") for reply in replies[1:]]
            assert numbers == list(range(len(numbers)))
        if not any(kind in MOVES for kind in kinds):
            assert world.links_lead_inside()
    finally:
        world.remove()
    assert len(os.listdir("/proc/self/fd")) == open_before


if __name__ == "__main__":
    fuzz(test)
