"""Passwords in a file of Apache's htpasswd(1); read anew when it changed."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

from passlib.apache import (  # type: ignore[import-untyped]
    HtpasswdFile,
    htpasswd_context,
)
from passlib.exc import UnknownHashError  # type: ignore[import-untyped]

from rtunnel.errors import ConfigError
from x2go_session.broker.server.errors import PasswordNotChanged

# No plain text: a hash that is not understood would be the password itself.
SCHEMES: Final = [name for name in htpasswd_context.schemes() if name != "plaintext"]
NEW_SCHEME: Final = "bcrypt"
# bcrypt looks at no more.
MOST_BYTES: Final = 72


class HtpasswdAuthenticator:
    """Verifies by a file of htpasswd(1). Raises `ConfigError` if it cannot be read."""

    asks_password = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._context: Any = htpasswd_context.copy(schemes=SCHEMES, default=NEW_SCHEME)
        self._read: tuple[int, int, HtpasswdFile] | None = None
        # For users who are not there, where nobody is.
        self._nobody = self._context.hash(os.urandom(16).hex())
        self._file()

    def verify(self, user: str, password: str) -> bool:
        if not password or len(password.encode()) > MOST_BYTES:
            return False
        file = self._file()
        try:
            stored = file.get_hash(user)
            tried = stored or self._hash_of_somebody(file)
            right: bool = self._context.verify(password, tried)
        except (UnknownHashError, ValueError):  # and names that the form cannot have
            return False
        return right and stored is not None

    def change_password(self, user: str, new: str) -> None:
        if not new or len(new.encode()) > MOST_BYTES:
            raise PasswordNotChanged(f"a password has 1 to {MOST_BYTES} bytes")
        with (self._path.parent / f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self._file()
            if not self._has(file, user):
                raise PasswordNotChanged("there is no such user in the file")
            with self._lock:
                file.set_hash(user, self._context.hash(new))
                self._write(file.to_string())

    def _hash_of_somebody(self, file: HtpasswdFile) -> Any:
        """Return what takes as long to verify as the hash of a user who is there.

        Else the time of an answer would tell who is: it differs by a factor of 40
        between the kinds of hashes.
        """
        return next(map(file.get_hash, file.users()), self._nobody)

    @staticmethod
    def _has(file: HtpasswdFile, user: str) -> bool:
        try:
            return file.get_hash(user) is not None
        except ValueError:
            return False

    def _file(self) -> HtpasswdFile:
        try:
            with self._lock, self._path.open("rb") as opened:
                found = os.fstat(opened.fileno())
                known = self._read
                if known is None or known[:2] != (found.st_ino, found.st_mtime_ns):
                    file = HtpasswdFile.from_string(
                        opened.read(), context=self._context
                    )
                    known = self._read = (found.st_ino, found.st_mtime_ns, file)
                return known[2]
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{self._path} is no file of htpasswd: {error}") from None

    def _write(self, content: bytes) -> None:
        mode = self._path.stat().st_mode & 0o777
        with tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False) as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(file.name, self._path)
