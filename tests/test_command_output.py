"""Commands and small files on the server: within a time, and with its own words."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko
import pytest

import rtunnel
from rtunnel import Tunnel
from rtunnel.errors import ConnectionLost, RequestTimeout
from rtunnel.ssh import seams
from tests.support.link import Link
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import TIMEOUT_S, open_transport, transport_class


@contextmanager
def linked(sshd: Sshd, backend: str) -> Iterator[tuple[Link, Tunnel]]:
    """A tunnel on a connection that can be frozen and cut."""
    with (
        Link(sshd.port) as link,
        Tunnel(
            open_transport(sshd.login.by(link.port), transport_class(backend)),
            backend=backend,
        ) as tunnel,
    ):
        yield link, tunnel


def test_a_command_gives_its_output_both_ways_and_its_status(tunnel: Tunnel) -> None:
    output = rtunnel.run_command(tunnel.transport, "echo out; echo err >&2; exit 3")
    assert output == rtunnel.CommandOutput(b"out\n", b"err\n", 3)


def test_a_command_that_fills_stderr_before_stdout_is_read_to_its_end(
    tunnel: Tunnel,
) -> None:
    script = "head -c 5000000 /dev/zero >&2; echo done"
    output = rtunnel.run_command(tunnel.transport, script)
    assert (output.stdout, len(output.stderr)) == (b"done\n", 5_000_000)


def test_a_command_reads_an_empty_stdin(tunnel: Tunnel) -> None:
    assert rtunnel.run_command(tunnel.transport, "cat").stdout == b""


def test_a_command_that_a_signal_ended_has_no_status(tunnel: Tunnel) -> None:
    output = rtunnel.run_command(tunnel.transport, "kill -KILL $$")
    assert output.exit_status is None


def test_the_time_covers_a_command_that_writes_on_and_on(tunnel: Tunnel) -> None:
    begin = time.monotonic()
    script = "while :; do echo tick; sleep 0.1; done"
    with pytest.raises(RequestTimeout, match="while did not end in time"):
        rtunnel.run_command(tunnel.transport, script, timeout_s=1)
    assert time.monotonic() - begin >= 1
    # The connection goes on.
    assert rtunnel.run_command(tunnel.transport, "echo yes").stdout == b"yes\n"


def test_a_command_ends_with_its_connection(tunnel: Tunnel, sshd: Sshd) -> None:
    with pytest.raises(ConnectionLost):
        rtunnel.run_command(tunnel.transport, "kill -KILL $PPID; cat")


def test_a_connection_that_is_reset_under_a_command_is_lost(
    sshd: Sshd, backend: str
) -> None:
    with linked(sshd, backend) as (link, tunnel), ThreadPoolExecutor(1) as pool:
        link.freeze()
        running = pool.submit(rtunnel.run_command, tunnel.transport, "true")
        wait_until(lambda: seams.has_stock_channels(tunnel.transport))
        link.cut()
        with pytest.raises(ConnectionLost):
            running.result(TIMEOUT_S)


def test_a_connection_that_breaks_while_a_command_is_sent_is_lost(
    tunnel: Tunnel,
) -> None:
    # The write fails at once; the thread that reads is told a moment later.
    tunnel.transport.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLost):
        rtunnel.run_command(tunnel.transport, "true")


def runs(channel: object) -> bool:
    """Whether the command of a channel was started."""
    return isinstance(channel, paramiko.Channel) and bool(channel.eof_sent)


class SlowEnd:
    """A channel whose end takes long, so that those before it are closed already."""

    def _unlink(self) -> None:
        time.sleep(0.5)


def test_a_command_does_not_seem_to_have_ended_while_its_connection_does(
    sshd: Sshd, backend: str
) -> None:
    with linked(sshd, backend) as (link, tunnel), ThreadPoolExecutor(1) as pool:
        transport: Any = tunnel.transport
        running = pool.submit(rtunnel.run_command, transport, "sleep 60")
        wait_until(lambda: any(runs(c) for c in transport._channels.values()))
        end = SlowEnd()
        transport._channels.put(1 << 40, end)
        link.cut()
        with pytest.raises(ConnectionLost):
            running.result(TIMEOUT_S)


def test_a_file_is_put_with_its_mode(tunnel: Tunnel, tmp_path: Path) -> None:
    path = tmp_path / "file"
    rtunnel.put_file(tunnel.transport, str(path), b"content", 0o640)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_put_says_why(tunnel: Tunnel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rtunnel.put_file(tunnel.transport, str(tmp_path / "no" / "file"), b"")
