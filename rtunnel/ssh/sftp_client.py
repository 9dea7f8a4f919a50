"""`paramiko.SFTPClient` with faster `get` and `put`; everything else is paramiko's."""

from __future__ import annotations

from typing import IO, Any, Final

import paramiko

from rtunnel.ssh import seams
from rtunnel.ssh.sftp_transfer import (
    MOST_REQUESTS,
    Download,
    Progress,
    Upload,
)

CMD_EXTENDED_REPLY: Final = 201
LIMITS: Final = "limits@openssh.com"
# What every server takes in one request (draft-ietf-secsh-filexfer-02, section 3).
BLOCK_BYTES: Final = 32 * 1024
# The most that is asked for, whatever a server offers: OpenSSH's own limit.
MOST_BLOCK_BYTES: Final = 255 * 1024


class SftpClient(paramiko.SFTPClient):
    """A `paramiko.SFTPClient` on a socket, with the same methods.

    Each waits for the server. One thread at a time, as with paramiko's.
    """

    def __init__(self, sock: Any) -> None:
        self._extensions: set[str] = set()
        self._block_bytes: tuple[int, int] | None = None
        super().__init__(sock)

    def _send_version(self) -> int:
        version, extensions = seams.agree_on_sftp_version(self)
        self._extensions = extensions
        return version

    def _blocks(self) -> tuple[int, int]:
        """Return the bytes of a read and of a write that the server takes."""
        if self._block_bytes is None:
            self._block_bytes = (BLOCK_BYTES, BLOCK_BYTES)
            if LIMITS in self._extensions:
                self._block_bytes = self._ask_for_limits()
        return self._block_bytes

    def _ask_for_limits(self) -> tuple[int, int]:
        """Ask for the largest requests (OpenSSH PROTOCOL, section 4.8)."""
        kind, reply = seams.request_of_sftp(self, LIMITS)
        if kind != CMD_EXTENDED_REPLY:
            return BLOCK_BYTES, BLOCK_BYTES
        _packet, read, write = (reply.get_int64() for _ in range(3))
        # 0: the server does not say.
        return (
            min(read or BLOCK_BYTES, MOST_BLOCK_BYTES),
            min(write or BLOCK_BYTES, MOST_BLOCK_BYTES),
        )

    def getfo(
        self,
        remotepath: Any,
        fl: IO[bytes],
        callback: Progress | None = None,
        prefetch: bool = True,
        max_concurrent_prefetch_requests: int | None = None,
    ) -> int:
        """Write a file of the server to `fl`; return how many bytes it had.

        Without `prefetch`, one request at a time. Raises OSError with what the server
        says, SSHException if the connection is over.
        """
        size = self.stat(remotepath).st_size or 0
        most = max_concurrent_prefetch_requests or MOST_REQUESTS
        with self.open(remotepath, "rb") as file:
            transfer = Download(self, file, self._blocks()[0], most if prefetch else 1)
            with transfer:
                return transfer.run(fl.write, size, callback)

    def putfo(
        self,
        fl: IO[bytes],
        remotepath: Any,
        file_size: int = 0,
        callback: Progress | None = None,
        confirm: bool = True,
    ) -> paramiko.SFTPAttributes:
        """Write what `fl` has to a file of the server; return its attributes.

        With `confirm`, the server is asked for the size afterwards. Raises OSError with
        what the server says, and if the size is another one; SSHException if the
        connection is over.
        """
        with self.file(remotepath, "wb") as file:
            transfer = Upload(self, file)
            with transfer:
                size = transfer.run(fl.read, self._blocks()[1], file_size, callback)
        if not confirm:
            return paramiko.SFTPAttributes()
        attributes = self.stat(remotepath)
        if attributes.st_size != size:
            raise OSError(f"size mismatch in put!  {attributes.st_size} != {size}")
        return attributes
