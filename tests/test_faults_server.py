"""What becomes of tunnels when the server is short of something: docs/faults.md."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel.errors import ForwardRefused
from tests.support.other_servers import connect
from tests.support.shortage import short_of_descriptors
from tests.support.sshd import Sshd
from tests.support.tunnels import PORT_0, Target, echo, read_exactly, visit


def test_a_server_without_descriptors_keeps_its_streams_and_serves_visitors_later(
    tmp_path: Path, backend: str
) -> None:
    with (
        Sshd(tmp_path) as sshd,
        connect(sshd.login, backend) as tunnel,
        Target(echo) as target,
    ):
        listener = tunnel.listen(PORT_0, to=target.spec)
        with visit(listener.port) as first:
            first.sendall(b"before")
            assert read_exactly(first, 6) == b"before"
            with contextlib.ExitStack() as shortage:
                for pid in sshd.sessions():
                    shortage.enter_context(short_of_descriptors(pid))
                # The kernel takes it in; sshd cannot.
                second = visit(listener.port)
                second.sendall(b"waiting")
                first.sendall(b"during")
                assert read_exactly(first, 6) == b"during"
                assert target.accepted == 1
            with second:
                assert read_exactly(second, 7) == b"waiting"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, on which no file can be made any more."""
    folder = tmp_path / "full"
    folder.mkdir()
    options = "size=4k,nr_inodes=2,mode=0777"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True
    )
    try:
        (folder / "the last one").touch()
        with pytest.raises(OSError, match="No space left"):
            (folder / "one more").touch()
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_socket_path_on_a_full_disk_is_refused_and_leaves_the_ports_alone(
    sshd: Sshd, backend: str, full_disk: Path
) -> None:
    with connect(sshd.login, backend) as tunnel, Target(echo) as target:
        port = tunnel.listen(PORT_0, to=target.spec)
        with pytest.raises(ForwardRefused, match=r"app\.sock"):
            tunnel.listen(str(full_disk / "app.sock"), to=target.spec)
        with visit(port.port) as visitor:
            visitor.sendall(b"served")
            assert read_exactly(visitor, 6) == b"served"
        (full_disk / "the last one").unlink()
        tunnel.listen(str(full_disk / "app.sock"), to=target.spec)
