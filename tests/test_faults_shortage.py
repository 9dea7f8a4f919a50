"""What lacks is ours: visitors, checks and host keys are not blamed for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel.addresses import TcpTarget
from rtunnel.ssh.known_hosts import add_known_host, read_known_hosts
from rtunnel.supervisor.config import HealthConfig
from rtunnel.supervisor.health import look
from tests.support.command import Command, open_arguments
from tests.support.shortage import short_of_descriptors
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    Target,
    ask,
    echo,
    read_all,
    read_exactly,
    send_and_end,
    visit,
)

# What doing nothing may cost a process that has no descriptors.
IDLE_CPU_S = 0.5


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of 64 KiB, and fill it but for one page."""
    folder.mkdir()
    options = "size=64k,nr_inodes=8"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Take what space is left; return the file that has it."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return filler


def test_without_descriptors_a_visitor_is_refused_and_the_others_go_on(
    sshd: Sshd, backend: str
) -> None:
    with Target(echo) as target:
        destination = f"{sshd.user}@127.0.0.1"
        forwards = ("-R", f"127.0.0.1:0:{target.spec}", "-R", "127.0.0.1:0")
        arguments = open_arguments(sshd, *forwards, destination)
        with Command(*arguments, RTUNNEL_BACKEND=backend) as command:
            port, socks = command.port(), command.port()
            pid = command.process.pid
            with visit(port) as stays, contextlib.ExitStack() as shortage:
                stays.sendall(b"x")
                assert read_exactly(stays, 1) == b"x"
                shortage.enter_context(short_of_descriptors(pid))
                before = sshd.log.read_text().count("resource shortage")
                began_s = cpu_s(pid)
                for number in range(5):
                    assert ask(port) == b""
                    assert ask(socks) == b"", number
                wait_until(
                    lambda: (
                        sshd.log.read_text().count("resource shortage") >= before + 10
                    )
                )
                time.sleep(1)  # of doing nothing
                assert cpu_s(pid) - began_s < IDLE_CPU_S
                stays.sendall(b"y")
                assert read_exactly(stays, 1) == b"y"
            with visit(port) as sock:
                send_and_end(sock, b"again")
                assert read_all(sock) == b"again"


def test_a_check_that_lacks_descriptors_says_nothing_about_the_target() -> None:
    with Target(echo) as target:
        check = HealthConfig(interval_s=1)
        place = TcpTarget("127.0.0.1", target.port)

        async def look_without() -> tuple[bool | None, str]:
            with short_of_descriptors(os.getpid()):
                return await look(place, check)

        works, reason = asyncio.run(look_without())
        assert works is None
        assert "Too many open files" in reason


def test_a_line_of_known_hosts_that_a_full_disk_cut_off_is_no_other_key(
    tmp_path: Path, sshd: Sshd
) -> None:
    kind, text = sshd.known_hosts.read_text().split()[1:3]
    blob = base64.b64decode(text)
    with full_disk(tmp_path / "disk") as disk:
        path = disk / "known_hosts"
        fill(disk)
        filler = disk / "filler"
        os.truncate(filler, filler.stat().st_size - 4096)
        # The page ends amid the key, where what is left is base64 all the same.
        path.write_text("#" * (4096 - len(f"host {kind} ") - 40 - 1) + "\n")
        with pytest.raises(OSError, match="No space left"):
            add_known_host(path, "host", kind, blob, hashed=False)
        assert path.stat().st_size == 4096
        assert read_known_hosts([path]) == []
        filler.unlink()
        add_known_host(path, "host", kind, blob, hashed=False)
        (known,) = read_known_hosts([path])
        assert known.blob == blob
