"""The connection to the server of a profile, which all its sessions share."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import rtunnel
from rtunnel.errors import (
    AuthenticationFailed,
    HostKeyError,
    RTunnelError,
)
from x2go_session import profiles
from x2go_session.control import Control
from x2go_session.errors import ControlError, NotConnected
from x2go_session.events import Events, host_key_prompt
from x2go_session.profiles.profile import Profile
from x2go_session.registry.lists import Kept, ServerLists
from x2go_session.registry.wish import Wish

# What ssh(1) looks for in ~/.ssh.
USUAL_KEYS: Final = ("id_ed25519", "id_ecdsa", "id_rsa")
_NO_KEYS: Final = "PubkeyAuthentication=no"
# Gives the profile to connect by: with the server that a broker chose, say.
Chooser = Callable[[Profile, Events], AbstractContextManager[Profile]]


@contextlib.contextmanager
def _as_it_says(profile: Profile, stream: Events) -> Iterator[Profile]:
    yield profile


@dataclass(frozen=True, kw_only=True)
class Login:
    """Who logs in, and with what; None: as the wish says.

    `keys_too` False: with the password alone.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    proxy_user: str | None = None
    proxy_password: str | None = field(default=None, repr=False)
    proxy_passphrase: str | None = field(default=None, repr=False)
    keys_too: bool = True
    proxy_keys_too: bool = True


class ServerConnection:
    """One connection to one server, for all sessions of a profile. Any thread.

    `ssh_folder` stands in for ~/.ssh, if there is one of another name: known hosts,
    configuration, keys. `choose` may have a say in which server it is.
    """

    def __init__(
        self, ssh_folder: Path | None = None, choose: Chooser = _as_it_says
    ) -> None:
        self._ssh_folder = ssh_folder
        self._choose = choose
        # Held by whoever connects or disconnects.
        self._connecting = threading.RLock()
        self._control: Control | None = None
        self.host = ""
        self.user = ""
        self.lists = ServerLists()
        self._versions: Kept[dict[str, str]] = Kept()
        self._applications: Kept[str] = Kept()

    @property
    def is_connected(self) -> bool:
        """Whether it stands, as far as this side knows. Never blocks."""
        control = self._control
        return control is not None and control.is_alive

    @property
    def control(self) -> Control:
        """The control session. Raises `NotConnected`."""
        control = self._control
        if control is None:
            raise NotConnected("the session is not connected: connect it first")
        return control

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port that are connected to. Raises `NotConnected`."""
        found = self.control.tunnel.transport.getpeername()
        return str(found[0]), int(found[1])

    def connect(self, wish: Wish, login: Login, stream: Events) -> bool:
        """Connect, unless it is; return whether it was not. Blocks.

        An unknown host key is a question in `stream`. Raises what `rtunnel.connect`
        raises, and `ProfileError`.
        """
        with self._connecting:
            if self.is_connected:
                return False
            self.disconnect()
            with self._choose(wish.profile, stream) as profile:
                chosen = replace(wish, profile=profile)
                destination, options = self._how(chosen, login, stream)
                tunnel = rtunnel.connect(destination, **options)
            self._control = Control(tunnel)
            self.user = login.user or wish.profile.user
            self.lists = ServerLists()
            self._versions = Kept()
            self._applications = Kept()
            return True

    def disconnect(self) -> None:
        """Close the connection; sessions go on over there, suspended. Blocks."""
        with self._connecting:
            control, self._control = self._control, None
            if control is not None:
                with contextlib.suppress(RTunnelError):
                    control.tunnel.close()

    def check_host(self, wish: Wish, stream: Events) -> bool:
        """Whether the server has the host key that it should have. Blocks.

        Nobody logs in. An unknown key is a question in `stream`. Raises
        `HostUnreachable` and the like.
        """
        if self.is_connected:
            return True
        destination, options = self._how(wish, Login(keys_too=False), stream)
        options |= {"password": None, "passphrase": None}
        try:
            rtunnel.connect(destination, **options).close()
        except AuthenticationFailed:
            pass
        except HostKeyError:
            return False
        return True

    def versions(self, *, fresh: bool = False) -> dict[str, str]:
        """Return the versions of the server's components; asked once. Blocks."""
        return dict(self._versions.get(self.control.versions, fresh=fresh))

    def applications_text(self, *, fresh: bool = False) -> str:
        """Return what x2gogetapps prints; asked once. Blocks."""
        return self._applications.get(self.control.applications_text, fresh=fresh)

    def is_alive(self) -> bool:
        """Whether the server answers. Blocks."""
        if not self.is_connected:
            return False
        try:
            return self.control.run("echo").status == 0
        except (RTunnelError, ControlError):
            return False

    def _how(
        self, wish: Wish, login: Login, stream: Events
    ) -> tuple[str, dict[str, Any]]:
        """Return the arguments of `rtunnel.connect`."""
        profile = wish.profile
        found = profiles.connection(
            profile,
            **({"choose": self._same_again} if self.host in profile.host else {}),
            user=login.user,
            password=login.password or wish.password,
            passphrase=login.passphrase or wish.passphrase,
            proxy_password=login.proxy_password or wish.proxy_password,
            proxy_passphrase=login.proxy_passphrase or wish.proxy_passphrase,
        )
        self.host = found.host
        options = {**found.options, **self._own_folder(profile), **wish.connect}
        if not login.keys_too:
            _forbid_keys(options)
        if "jump_options" in options:
            options["jump_options"] = dict(options["jump_options"])
            if login.proxy_user:
                options["jump_options"]["user"] = login.proxy_user
            if not login.proxy_keys_too:
                _forbid_keys(options["jump_options"])
        options["host_key_prompt"] = host_key_prompt(stream)
        return found.destination, options

    def _same_again(self, hosts: Sequence[str]) -> str:
        """Sessions are where they were."""
        return self.host

    def _own_folder(self, profile: Profile) -> dict[str, Any]:
        folder = self._ssh_folder
        if folder is None:
            return {}
        config = folder / "config"
        own: dict[str, Any] = {
            "known_hosts": str(folder / "known_hosts"),
            "config_file": str(config) if config.exists() else "none",
        }
        if profile.autologin and not profile.key:
            own["identity_files"] = [str(path) for path in usual_keys(folder)]
        return own


def usual_keys(folder: Path) -> list[Path]:
    """Return the private keys that a folder like ~/.ssh has."""
    return [folder / name for name in USUAL_KEYS if (folder / name).exists()]


def has_key(
    key: str,
    automatic: bool,
    folder: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> bool:
    """Whether somebody could log in without being asked, as far as this side knows.

    With the file `key`, or if `automatic` with a key of the agent or of `folder`.
    """
    if key and os.path.exists(os.path.expanduser(key)):
        return True
    found = usual_keys(folder or Path("~/.ssh").expanduser())
    return automatic and bool(found or environment.get("SSH_AUTH_SOCK"))


def _forbid_keys(options: dict[str, Any]) -> None:
    given = options.get("ssh_options") or []
    options |= {
        "identity_files": [],
        "agent": False,
        "ssh_options": [*given, _NO_KEYS] if _NO_KEYS not in given else given,
    }
