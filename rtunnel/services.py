"""What serves visitors without a target: SOCKS, a folder, a command, an application.

They stand where a target may stand, as one text::

    socks                    dial what the visitor asks for (SOCKS 4, 4A and 5)
    folder:/srv/www          the files of a folder, by HTTP, to be read
    exec:COMMAND             a command for each visitor, its socket as stdin and stdout
    app:module:attribute     an ASGI or WSGI application

A host may have such a name: what is followed by a port number is a host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from rtunnel.errors import InvalidAddress

_NAMED: Final = re.compile(r"(folder|exec|app):(?![0-9]+\Z)", re.ASCII)
_IMPORTABLE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_SOCKS: Final = "socks"


@dataclass(frozen=True, slots=True)
class SocksService:
    """Dials what the visitor asks for, as `ssh -R port` does."""

    def __str__(self) -> str:
        return _SOCKS


@dataclass(frozen=True, slots=True)
class FolderService:
    """Serves the files of a folder by HTTP."""

    path: str

    def __post_init__(self) -> None:
        if not self.path or "\0" in self.path:
            raise _invalid(self, "the path is missing; expected folder:/path")

    def __str__(self) -> str:
        return f"folder:{self.path}"


@dataclass(frozen=True, slots=True)
class ExecService:
    """Runs a command of the shell for each visitor."""

    command: str

    def __post_init__(self) -> None:
        if not self.command.strip() or "\0" in self.command:
            raise _invalid(self, "the command is missing; expected exec:command")

    def __str__(self) -> str:
        return f"exec:{self.command}"


@dataclass(frozen=True, slots=True)
class AppService:
    """Serves an ASGI or WSGI application."""

    module: str
    attribute: str

    def __post_init__(self) -> None:
        for name in (self.module, self.attribute):
            if not _IMPORTABLE.fullmatch(name):
                raise _invalid(self, "expected app:module:attribute")

    def __str__(self) -> str:
        return f"app:{self.module}:{self.attribute}"


Service: TypeAlias = SocksService | FolderService | ExecService | AppService


def parse_service(text: str) -> Service | None:
    """Read the text of a service; None if it is not one. Raises `InvalidAddress`."""
    if text == _SOCKS:
        return SocksService()
    match = _NAMED.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    if match[1] == "folder":
        return FolderService(rest)
    if match[1] == "exec":
        return ExecService(rest)
    module, _, attribute = rest.partition(":")
    return AppService(module, attribute)


def split_at_service(text: str) -> tuple[str, Service] | None:
    """Read `something:service`; None if no service is in it.

    Raises `InvalidAddress` if it is one that makes no sense.
    """
    # A colon behind a backslash is one of a path (parse_forward).
    for match in re.finditer(r"(?<!\\)(?:\\\\)*:", text):
        service = parse_service(text[match.end() :])
        if service is not None:
            return text[: match.end() - 1], service
    return None


def _invalid(service: Service, why: str) -> InvalidAddress:
    return InvalidAddress(f"cannot understand {str(service)!r}: {why}")
