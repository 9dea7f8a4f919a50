"""Run a command on the server, and put a small file there, within a time.

The time covers everything: opening the channel, the command, and reading all that it
writes. paramiko's own calls have a limit for each wait at best.
"""

from __future__ import annotations

import contextlib
import select
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import paramiko

from rtunnel.errors import ChannelOpenError, ConnectionLost, RequestTimeout
from rtunnel.ssh import seams
from rtunnel.ssh.seams import AnyTransport

COMMAND_TIMEOUT_S: Final = 20.0
# Replies are kept in memory: whoever wants more of them opens a session of its own.
MOST_OUTPUT_BYTES: Final = 16 * 1024 * 1024
READ_BYTES: Final = 64 * 1024
# From a write that failed to the end of the connection: its thread has to wake up.
END_SEEN_S: Final = 1.0
# paramiko says -1 where the server told no exit status: the command died of a signal.
NO_STATUS: Final = -1


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """What a command wrote, and its exit status; None if a signal ended it."""

    stdout: bytes
    stderr: bytes
    exit_status: int | None


def run_command(
    transport: AnyTransport,
    command: str,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> CommandOutput:
    """Run a command on the server, with an empty stdin, and return what it wrote.

    Blocks until the command has ended and all was read; any thread but the
    transport's. Raises `RequestTimeout` when that takes longer than `timeout_s` (the
    channel is closed then), `ChannelOpenError` when the server runs no commands or no
    more of them now (MaxSessions), `ConnectionLost`. (RFC 4254, section 6.5)
    """
    deadline = time.monotonic() + timeout_s
    with _explained(transport, command.partition(" ")[0]):
        channel = transport.open_session(timeout=timeout_s)
        with contextlib.closing(channel):
            channel.settimeout(max(deadline - time.monotonic(), 0.001))
            channel.exec_command(command)
            channel.shutdown_write()
            stdout, stderr = _read_both(channel, deadline)
            left = deadline - time.monotonic()
            if not channel.status_event.wait(max(left, 0)):
                raise TimeoutError
            status = channel.exit_status
    if status == NO_STATUS and seams.is_over(transport):
        raise ConnectionLost("the connection ended while a command ran")
    return CommandOutput(stdout, stderr, None if status == NO_STATUS else status)


def put_file(
    transport: AnyTransport,
    path: str,
    content: bytes,
    mode: int = 0o600,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> None:
    """Write a small file on the server by SFTP, readable as `mode` says from the start.

    What is there is overwritten. Blocks; any thread but the transport's. Raises
    OSError with the server's words when it may not be written, `RequestTimeout`,
    `ChannelOpenError` when the server has no SFTP, `ConnectionLost`.
    """
    with _explained(transport, "SFTP"), contextlib.closing(_sftp(transport)) as sftp:
        sftp.get_channel().settimeout(timeout_s)
        with sftp.open(path, "w") as file:
            # Before there is anything to read in it.
            file.chmod(stat.S_IMODE(mode))
            file.write(content)


def _sftp(transport: AnyTransport) -> Any:
    return transport.open_sftp_client()


def _read_both(channel: paramiko.Channel, deadline: float) -> tuple[bytes, bytes]:
    """Read stdout and stderr to their ends: they share one window, so both at once."""
    out, err = bytearray(), bytearray()
    # Readable while there is something to read in either, and after the end.
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimeoutError
        # The end first: what came before it is there to be read.
        ended = channel.closed or channel.eof_received
        while channel.recv_ready():
            out += channel.recv(READ_BYTES)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(READ_BYTES)
        if len(out) + len(err) > MOST_OUTPUT_BYTES:
            raise ChannelOpenError(
                f"the command wrote more than {MOST_OUTPUT_BYTES} bytes", 0
            )
        if ended:
            return bytes(out), bytes(err)


@contextlib.contextmanager
def _explained(transport: AnyTransport, what: str) -> Iterator[None]:
    """Raise what paramiko raises as one of our errors."""
    try:
        yield
    except TimeoutError as error:
        raise RequestTimeout(f"{what} did not end in time") from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        if isinstance(error, EOFError):
            # Whoever writes may find the socket broken before its reader does.
            transport.join(END_SEEN_S)
        # Whoever waits for an answer gets what the socket said: that is an OSError.
        if seams.is_over(transport):
            raise ConnectionLost(f"the connection ended: {error}") from error
        if isinstance(error, OSError):
            raise
        code = getattr(error, "code", 0)
        raise ChannelOpenError(f"the server refused {what}: {error}", code) from error
