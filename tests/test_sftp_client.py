"""`get` and `put` of an SFTP client at the edges: sizes, errors, odd servers."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

import rtunnel
from rtunnel.ssh.sftp_client import BLOCK_BYTES, SftpClient
from rtunnel.ssh.sftp_transfer import CMD_DATA, CMD_READ, CMD_STATUS, MOST_REQUESTS
from tests.support.sshd import Sshd
from tests.support.tunnels import noise

CMD_VERSION, CMD_OPEN, CMD_CLOSE, CMD_STAT = 2, 3, 4, 17
CMD_HANDLE, CMD_ATTRS = 102, 105
STATUS_OK, STATUS_EOF, STATUS_FAILURE = 0, 1, 4
SIZE_BYTES = 3_000_000


@pytest.fixture(scope="module")
def sftp(sshd: Sshd) -> Iterator[SftpClient]:
    """A client of a real sshd, on the engine."""
    with rtunnel.Transport(("127.0.0.1", sshd.port), backend="engine") as transport:
        key = paramiko.Ed25519Key.from_private_key_file(str(sshd.user_key))
        transport.connect(username=sshd.user, pkey=key)
        with transport.open_sftp_client() as client:
            assert isinstance(client, SftpClient)
            yield client


@pytest.mark.parametrize("size", [0, 1, 255 * 1024, 255 * 1024 + 1, SIZE_BYTES])
def test_a_file_of_any_size_goes_there_and_back(
    sftp: SftpClient, tmp_path: Path, size: int
) -> None:
    here, there, back = tmp_path / "here", tmp_path / "there", tmp_path / "back"
    here.write_bytes(noise(size))
    told: list[tuple[int, int]] = []
    attributes = sftp.put(str(here), str(there), lambda *step: told.append(step))
    assert attributes.st_size == size
    assert told[-1:] == ([(size, size)] if size else [])
    sftp.get(str(there), str(back))
    assert back.read_bytes() == here.read_bytes()


def test_a_file_that_says_it_is_empty_is_read_to_its_end(sftp: SftpClient) -> None:
    received = io.BytesIO()
    assert sftp.getfo("/proc/self/status", received) == len(received.getvalue()) > 0


def test_a_file_is_read_one_request_at_a_time_without_prefetch(
    sftp: SftpClient, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(noise(SIZE_BYTES))
    received = io.BytesIO()
    sftp.getfo(str(file), received, prefetch=False)
    assert received.getvalue() == file.read_bytes()


def test_a_file_that_grows_while_it_is_read_is_read_whole(
    sftp: SftpClient, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(noise(SIZE_BYTES))

    def grow(done: int, size: int) -> None:
        if done == size:
            with file.open("ab") as more:
                more.write(b"more")

    received = io.BytesIO()
    assert sftp.getfo(str(file), received, callback=grow) == SIZE_BYTES + 4
    assert received.getvalue() == file.read_bytes()


def test_a_callback_may_use_the_client(sftp: SftpClient, tmp_path: Path) -> None:
    file, copy = tmp_path / "file", tmp_path / "copy"
    file.write_bytes(noise(SIZE_BYTES))
    sizes: list[int | None] = []

    def ask(_done: int, _size: int) -> None:
        sizes.append(sftp.stat(str(file)).st_size)

    sftp.get(str(file), str(copy), callback=ask)
    assert copy.read_bytes() == file.read_bytes()
    sftp.put(str(copy), str(tmp_path / "third"), callback=ask)
    assert len(sizes) > 2
    assert set(sizes) == {SIZE_BYTES}


def test_a_file_may_be_prefetched_on_the_same_client(
    sftp: SftpClient, tmp_path: Path
) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(noise(SIZE_BYTES))
    other.write_bytes(noise(SIZE_BYTES))
    with sftp.open(str(other), "rb") as prefetched:
        prefetched.prefetch(SIZE_BYTES)
        received = io.BytesIO()
        sftp.getfo(str(file), received)
        assert received.getvalue() == file.read_bytes()
        assert prefetched.read() == other.read_bytes()


@pytest.mark.parametrize("action", ["get", "put"])
def test_a_file_that_cannot_be_opened_is_an_ordinary_error(
    sftp: SftpClient, tmp_path: Path, action: str
) -> None:
    nowhere = str(tmp_path / "not" / "here")
    with pytest.raises(FileNotFoundError):
        (sftp.getfo if action == "get" else sftp.file)(nowhere, "w")  # type: ignore
    assert sftp.listdir(str(tmp_path)) == []


def test_a_full_disk_here_is_told_and_the_client_goes_on(
    sftp: SftpClient, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(noise(SIZE_BYTES))
    with pytest.raises(OSError, match="No space left"):
        sftp.get(str(file), "/dev/full")
    assert sftp.stat(str(file)).st_size == SIZE_BYTES


def test_a_full_disk_there_is_told_and_the_client_goes_on(
    sftp: SftpClient, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="Failure"):
        sftp.putfo(io.BytesIO(noise(SIZE_BYTES)), "/dev/full", confirm=False)
    assert sftp.listdir(str(tmp_path)) == []


# -- servers that real ones are not ----------------------------------------------------

Answer = Callable[[int, int, int], bytes]


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", 1 + len(body), kind) + body


def data_packet(number: int, data: bytes) -> bytes:
    return packet(CMD_DATA, struct.pack(">II", number, len(data)) + data)


def status_packet(number: int, code: int) -> bytes:
    return packet(CMD_STATUS, struct.pack(">III", number, code, 0) + bytes(4))


class OddServer:
    """A server of one file, that answers reads as it is told."""

    def __init__(self, sock: socket.socket, size: int, answer: Answer) -> None:
        self._sock, self._size, self._answer = sock, size, answer
        self.reads: list[int] = []
        # Replies held back until `MOST_REQUESTS` of them are there.
        self.backwards = False
        self._held: list[bytes] = []

    def run(self) -> None:
        with contextlib.suppress(OSError), self._sock.makefile("rb") as incoming:
            while header := incoming.read(4):
                message = incoming.read(*struct.unpack(">I", header))
                self._sock.sendall(self._reply(message[0], message[1:]))

    def _reply(self, kind: int, body: bytes) -> bytes:
        if kind == 1:
            return packet(CMD_VERSION, struct.pack(">I", 3))
        (number,) = struct.unpack(">I", body[:4])
        if kind == CMD_OPEN:
            return packet(CMD_HANDLE, body[:4] + struct.pack(">I", 1) + b"h")
        if kind == CMD_STAT:
            return packet(CMD_ATTRS, body[:4] + struct.pack(">IQ", 1, self._size))
        if kind != CMD_READ:
            return status_packet(number, STATUS_OK)
        offset, count = struct.unpack(">QI", body[-12:])
        self.reads.append(count)
        reply = self._answer(number, offset, count)
        if not self.backwards or offset >= self._size:
            return reply
        self._held.append(reply)
        last = offset + count >= self._size
        if len(self._held) < 8 and not last:
            return b""
        held, self._held = self._held[::-1], []
        return b"".join(held)


class NamedSocket(socket.socket):
    """A socket with a name, for the log of an SFTP client."""

    def get_name(self) -> str:
        return "odd"


@contextlib.contextmanager
def odd_server(size: int, answer: Answer) -> Iterator[tuple[SftpClient, OddServer]]:
    end, theirs = socket.socketpair()
    ours = NamedSocket(fileno=end.detach())
    server = OddServer(theirs, size, answer)
    thread = threading.Thread(target=server.run)
    thread.start()
    with ours, theirs:
        ours.settimeout(30)
        try:
            yield SftpClient(ours), server
        finally:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            thread.join()


CONTENT = noise(40 * BLOCK_BYTES + 5)


def honest(number: int, offset: int, count: int) -> bytes:
    if offset >= len(CONTENT):
        return status_packet(number, STATUS_EOF)
    return data_packet(number, CONTENT[offset : offset + count])


def fetch(client: SftpClient) -> bytes:
    received = io.BytesIO()
    assert client.getfo("file", received) == len(received.getvalue())
    return received.getvalue()


def test_a_server_that_names_no_limits_is_asked_for_what_all_take() -> None:
    with odd_server(len(CONTENT), honest) as (client, server):
        assert fetch(client) == CONTENT
        assert max(server.reads) == BLOCK_BYTES


def test_reads_that_bring_less_are_followed_by_others() -> None:
    with odd_server(
        len(CONTENT), lambda n, o, count: honest(n, o, min(count, 10_000))
    ) as (client, _):
        assert fetch(client) == CONTENT


def test_replies_in_another_order_are_put_in_order() -> None:
    with odd_server(len(CONTENT), honest) as (client, server):
        server.backwards = True
        assert fetch(client) == CONTENT


def test_no_more_requests_are_under_way_than_was_said() -> None:
    with odd_server(1 << 40, lambda *_: b"") as (client, server):
        client.get_channel().settimeout(0.5)  # type: ignore[union-attr]
        with pytest.raises(TimeoutError):
            fetch(client)
        assert len(server.reads) == MOST_REQUESTS


def test_a_file_that_shrank_ends_where_it_ends() -> None:
    with odd_server(2 * len(CONTENT), honest) as (client, _):
        assert fetch(client) == CONTENT


def test_an_error_in_the_middle_is_raised_and_the_client_goes_on() -> None:
    def broken(number: int, offset: int, count: int) -> bytes:
        if offset == 20 * BLOCK_BYTES:
            return status_packet(number, STATUS_FAILURE)
        return honest(number, offset, count)

    with odd_server(len(CONTENT), broken) as (client, _):
        with pytest.raises(OSError, match=r"^$"):
            fetch(client)
        assert client.stat("file").st_size == len(CONTENT)


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (lambda n: data_packet(n, noise(BLOCK_BYTES + 1)), "asked for"),
        (lambda n: data_packet(n, b""), "asked for"),
        (lambda n: packet(CMD_DATA, struct.pack(">II", n, 9)), "two lengths"),
        (lambda n: packet(CMD_DATA, struct.pack(">IB", n, 9)), "without a length"),
        (lambda n: packet(CMD_HANDLE, struct.pack(">II", n, 0)), "type 102"),
        (lambda n: struct.pack(">IBI", 1 << 30, CMD_DATA, n), "bytes"),
        (lambda n: struct.pack(">IBI", 3, CMD_DATA, n), "reply of 3 bytes"),
    ],
)
def test_a_reply_that_makes_no_sense_ends_the_session(
    reply: Callable[[int], bytes], complaint: str
) -> None:
    with odd_server(len(CONTENT), lambda number, *_: reply(number)) as (client, _):
        with pytest.raises(paramiko.SFTPError, match=complaint):
            fetch(client)
        channel = client.get_channel()
        assert channel is not None
        assert channel.fileno() == -1


def test_a_session_that_ends_in_the_middle_is_an_ssh_error() -> None:
    with odd_server(len(CONTENT), honest) as (client, server):

        def vanish(*_: int) -> bytes:
            server._sock.shutdown(socket.SHUT_RDWR)
            return b""

        server._answer = vanish
        with pytest.raises(paramiko.SSHException, match="dropped"):
            fetch(client)
