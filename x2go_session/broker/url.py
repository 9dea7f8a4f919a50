"""The URL of a session broker: how it is reached, and what it speaks there. Pure.

    https://[user[:password]@]host[:port]/plain/        x2goclient's form
    https://[user[:password]@]host[:port]/json/         python-x2go's form
    ssh://[user[:password]@]host[:port]/usr/bin/x2gobroker

User and password are percent-encoded (RFC 3986, 3.2.1), and kept out of what is shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from rtunnel.errors import InvalidAddress

PORTS: Final = {"http": 80, "https": 443, "ssh": 22}
SSH_PROGRAM: Final = "/usr/bin/x2gobroker"
FORMS: Final = (
    "use https://host/plain/, https://host/json/ or ssh://host/usr/bin/x2gobroker, "
    "with [user[:password]@] before the host, percent-encoded"
)
_HOST: Final = re.compile(r"[A-Za-z0-9_.:%-]+")
_BLANK: Final = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """Where a broker is. `str()` and `repr()` show no password."""

    scheme: str
    host: str
    port: int
    path: str
    user: str = ""
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> BrokerUrl:
        """Read a URL. Raises `InvalidAddress`, which does not show its text."""
        if _BLANK.search(text):
            raise InvalidAddress(f"the broker's URL has a blank in it: {FORMS}")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            # Its words might be those of a password.
            raise InvalidAddress(
                f"the broker's URL has no port where one should be: {FORMS}"
            ) from error
        if parts.scheme not in PORTS:
            raise InvalidAddress(
                f"the broker's URL is not one of http, https or ssh: {FORMS}"
            )
        host = parts.hostname or ""
        if not _HOST.fullmatch(host) or host.startswith("-") or port == 0:
            raise InvalidAddress(f"the broker's URL has no host or port: {FORMS}")
        if parts.query or parts.fragment:
            raise InvalidAddress(
                f"the broker's URL has something behind ? or #: {FORMS}"
            )
        return cls(
            parts.scheme,
            host,
            port or PORTS[parts.scheme],
            _path(parts),
            unquote(parts.username or ""),
            None if parts.password is None else unquote(parts.password),
        )

    @property
    def is_json(self) -> bool:
        """Whether its path is that of a broker that speaks JSON."""
        return self.scheme != "ssh" and self.path.split("/")[1] == "json"

    @property
    def is_encrypted(self) -> bool:
        """Whether others on the way cannot read what is said."""
        return self.scheme != "http"

    @property
    def address(self) -> str:
        """`host:port`, as a connection wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        address = self.address
        if self.port == PORTS[self.scheme]:
            address = address.removesuffix(f":{self.port}")
        return f"{self.scheme}://{address}{self.path}"


def _path(parts: SplitResult) -> str:
    path = parts.path
    if parts.scheme == "ssh":
        return unquote(path) if path.strip("/") else SSH_PROGRAM
    return path or "/"
