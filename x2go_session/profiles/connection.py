"""How a profile is connected to: what `rtunnel.connect` is to be told.

    found = connection(profile, password=ask)
    tunnel = rtunnel.connect(found.destination, **found.options)

Nothing is connected or read here. A profile with several hosts names machines that do
the same: one of them is drawn, unless `choose` says another way. The SSH proxy of a
profile is a jump host, with a login of its own.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from x2go_session.errors import NotSupported, ProfileError
from x2go_session.profiles.profile import Profile

# What is asked for as in `rtunnel.connect`: the secret, or who is asked for it.
Secret = str | Callable[[str], str | None]
# In the place of a key that the broker will send.
KEY_OF_BROKER: Final = "<will-be-exchanged-during-session-selection>"
_HOST: Final = re.compile(r"[^\s,@/\[\]]+")
_USER: Final = re.compile(r"[^\s,]*")


@dataclass(frozen=True, slots=True)
class Connection:
    """The arguments of `rtunnel.connect`; `host` is the one of the profile's hosts."""

    host: str
    destination: str
    options: dict[str, Any] = field(repr=False)


def connection(
    profile: Profile,
    *,
    choose: Callable[[Sequence[str]], str] = random.choice,
    user: str | None = None,
    password: Secret | None = None,
    passphrase: Secret | None = None,
    proxy_password: Secret | None = None,
    proxy_passphrase: Secret | None = None,
) -> Connection:
    """Return how to connect to a profile. Never blocks.

    `user` is another one than the profile's. Where the profile says that the proxy has
    the same user or secrets, they are taken from here. Raises `NotSupported` for a
    login that is not known here (Kerberos, an HTTP proxy), and `ProfileError`.
    """
    _check_supported(profile)
    host = choose(profile.host)
    user = user or profile.user
    options: dict[str, Any] = {
        "user": user or None,
        "port": profile.sshport,
        "password": password,
        "passphrase": passphrase,
        **_keys(profile.key, profile.autologin),
    }
    ssh_options = options.setdefault("ssh_options", [])
    if profile.uniquehostkeyaliases:
        ssh_options.append(f"HostKeyAlias={profile.id}")
    if profile.usesshproxy:
        same = profile.sshproxysamepass
        options["jump"] = _jump(profile, user)
        options["jump_options"] = {
            "password": password if same else proxy_password,
            "passphrase": passphrase if same else proxy_passphrase,
            **_keys(
                profile.key if same else profile.sshproxykeyfile,
                profile.sshproxyautologin,
            ),
        }
    return Connection(host, _bracketed(profile, "host", host), options)


def _check_supported(profile: Profile) -> None:
    if not profile.host:
        raise NotSupported(
            f"profile {profile.name}: it has no host; sessions without an X2Go server "
            "(direct RDP) are not supported"
        )
    if profile.krblogin:
        raise NotSupported(
            f"profile {profile.name}: krblogin: Kerberos logins are not supported; set "
            "krblogin=0, and log in with a key or a password"
        )
    if profile.usesshproxy and profile.sshproxytype != "SSH":
        raise NotSupported(
            f"profile {profile.name}: sshproxytype: a proxy of type "
            f"{profile.sshproxytype} is not supported; use one of type SSH"
        )


def _keys(key: str, automatic: bool) -> dict[str, Any]:
    """Return the options that say which keys are tried."""
    files = [os.path.expanduser(key)] if key and key != KEY_OF_BROKER else []
    options: dict[str, Any] = {"identity_files": files}
    if not automatic:
        # The key that is named, or none; neither the agent's nor the usual files.
        options["agent"] = False
        if not files:
            options["ssh_options"] = ["PubkeyAuthentication=no"]
    return options


def _jump(profile: Profile, user: str) -> str:
    host, colon, port = profile.sshproxyhost.rpartition(":")
    if not (colon and port.isdecimal() and ":" not in host):
        host, port = profile.sshproxyhost, str(profile.sshproxyport)
    name = user if profile.sshproxysameuser else profile.sshproxyuser
    if not _USER.fullmatch(name):
        raise ProfileError(
            f"profile {profile.name}: sshproxyuser: {name!r} is not a user name"
        )
    before = f"{name}@" if name else ""
    return f"{before}{_bracketed(profile, 'sshproxyhost', host)}:{port}"


def _bracketed(profile: Profile, key: str, host: str) -> str:
    host = host.removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(host):
        raise ProfileError(
            f"profile {profile.name}: {key}: {host!r} is not a host name"
        )
    return f"[{host}]" if ":" in host else host
