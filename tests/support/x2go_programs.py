"""A program with python-x2go's client: its profiles, and which HOOKs it was told."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import x2go_session as x2go
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from tests.support.x2go_client_api import SIGNATURES
from x2go_session.profiles import SessionProfiles

PROFILE = "Lab"
HOOKS = [name for name in SIGNATURES if name.startswith("HOOK_")]


class ToldClient(x2go.X2GoClient):
    """Notes each HOOK that is called, with its arguments and its thread.

    `answers` are what HOOKs return; an exception is raised.
    """

    def __init__(self, **options: Any) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.threads: set[str] = set()
        self.answers: dict[str, Any] = {"HOOK_check_host_dialog": True}
        super().__init__(**options)

    def hooks(self, name: str) -> list[dict[str, Any]]:
        """Return the arguments of each call of a HOOK so far."""
        return [arguments for hook, arguments in list(self.told) if hook == name]

    def wait_hook(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait until a HOOK was called so often; return the arguments of the last."""
        wait_until(lambda: len(self.hooks(name)) >= count, PATIENCE_S)
        return self.hooks(name)[count - 1]


def _noting(name: str) -> Callable[..., Any]:
    def hook(self: ToldClient, **arguments: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        self.told.append((name, arguments))
        answer = self.answers.get(name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return hook


for each in HOOKS:
    setattr(ToldClient, each, _noting(each))


class Lab:
    """The folders of a program, with a profile for the X2Go server."""

    def __init__(self, server: X2goServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.share = folder / "share"
        self.share.mkdir(parents=True)
        (self.share / "from here").write_text("read over there")
        (folder / "ssh").mkdir()
        shutil.copy(server.known_hosts, folder / "ssh" / "known_hosts")
        self.profiles = SessionProfiles(folder / "config", None)
        self.add(PROFILE)

    def add(self, name: str, **values: Any) -> str:
        """Add a profile for the server; return its id."""
        standard: dict[str, Any] = {
            "host": [self.server.host],
            "sshport": self.server.port,
            "user": self.server.user,
            "key": str(self.server.user_key),
            "autologin": False,
            "command": "xclock",
            "usekbd": False,
        }
        profile_id = self.profiles.add(name, **{**standard, **values})
        self.profiles.write()
        return profile_id

    @property
    def parameters(self) -> dict[str, Any]:
        """What registers a session without a profile."""
        return {
            "server": self.server.host,
            "port": self.server.port,
            "username": self.server.user,
            "key_filename": str(self.server.user_key),
            "snd_system": "none",
        }

    @property
    def folders(self) -> dict[str, str]:
        """The arguments of a client that say where it has its files."""
        return {
            "client_rootdir": str(self.folder / "config"),
            "sessions_rootdir": str(self.folder / "x2go"),
            "ssh_rootdir": str(self.folder / "ssh"),
        }

    def client(self, **options: Any) -> ToldClient:
        """Make a client."""
        return ToldClient(**{**self.folders, **options})


def in_lab(server: X2goServer, display: Display, folder: Path) -> Iterator[Lab]:
    """Yield a lab whose clients show windows on this display; end all sessions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPLAY", display.name)
        server.end_sessions()
        try:
            yield Lab(server, folder)
        finally:
            server.end_sessions()
