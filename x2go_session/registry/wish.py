"""What a session is to be: a profile, and what was said on top of it.

What is said are the parameters of python-x2go's `register_session`. As far as a profile
has a key for one, that key is changed; the rest is kept beside it. Pure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from x2go_session.errors import NotSupported, ProfileError
from x2go_session.options import SOUND_SYSTEMS, OptionError, SessionOptions
from x2go_session.profiles.parameters import RENAMED
from x2go_session.profiles.plan import SHADOW, session_options
from x2go_session.profiles.profile import Profile
from x2go_session.services.print_actions import PrintAction, print_action

log = logging.getLogger("x2go_session.registry.wish")

# python-x2go's names of session options, and those of `SessionOptions`.
_OPTIONS: Final = {
    "geometry": "geometry",
    "link": "link",
    "pack": "pack",
    "depth": "depth",
    "dpi": "dpi",
    "kbtype": "keyboard_type",
    "kblayout": "keyboard_layout",
    "kbvariant": "keyboard_variant",
}
_CONNECT: Final = {"known_hosts": "known_hosts", "timeout": "connect_timeout_s"}
# Keys that are in no file, and in no other form.
_KEY_OBJECTS: Final = ("pkey", "sshproxy_pkey")
_PLAIN: Final = ("applications", "xinerama", "clipboard", "kdrive")
# What an X2Go client would not say in a file, and is not needed here.
_IGNORED: Final = frozenset(
    {
        *("control_backend", "terminal_backend", "info_backend", "list_backend"),
        *("proxy_backend", "settings_backend", "printing_backend", "client_rootdir"),
        *("sessions_rootdir", "ssh_rootdir", "rootdir", "logger", "loglevel"),
        *("client_instance", "keep_controlsession_alive", "cache_type"),
        *("published_applications_no_submenus", "proxy_options", "profile_id"),
        *("profile_name", "session_name", "add_to_known_hosts", "password"),
        *("passphrase", "print_action", "print_action_args", "allow_agent"),
        *("force_password_auth", "sshproxy_allow_agent", "sshproxy_password"),
        *("sshproxy_passphrase", "sshproxy_force_password_auth"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a session is to be.

    `options` are fields of `SessionOptions`, `connect` arguments of `rtunnel.connect`;
    both are on top of what the profile says. The secrets are texts, or None.
    """

    profile: Profile
    options: Mapping[str, Any] = field(default_factory=dict)
    connect: Mapping[str, Any] = field(default_factory=dict)
    password: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    proxy_password: str | None = field(default=None, repr=False)
    proxy_passphrase: str | None = field(default=None, repr=False)
    print_action: PrintAction | None = None

    def session_options(self, password: str = "") -> SessionOptions:
        """Return the options to start with. Raises `ProfileError`."""
        more = dict(self.options)
        try:
            options = session_options(
                self.profile,
                desktop=more.pop("desktop", ""),
                view_only=more.pop("view_only", False),
                password=password,
            )
            return replace(options, **more)
        except OptionError as error:
            raise ProfileError(f"{self.profile.name}: {error}") from error

    def shadowing(self, desktop: str, *, view_only: bool) -> Wish:
        """Return the same for a session that shows somebody's desktop."""
        return replace(
            self,
            profile=replace(self.profile, command=SHADOW),
            options={**self.options, "desktop": desktop, "view_only": view_only},
        )


def wish_of(base: Profile | Wish, parameters: Mapping[str, Any]) -> Wish:
    """Return a profile or wish with python-x2go's parameters on top.

    One that is None says nothing; one that nobody knows is logged and left. Raises
    `ProfileError` for a value that makes no sense, `NotSupported`.
    """
    before = base if isinstance(base, Wish) else Wish(profile=base)
    given = {name: value for name, value in parameters.items() if value is not None}
    for name in _KEY_OBJECTS:
        if name in given:
            raise NotSupported(
                f"{name}: keys are taken from files and agents; use key_filename"
            )
    fields: dict[str, Any] = {}
    options = dict(before.options)
    connect = dict(before.connect)
    for name, value in given.items():
        if name in _SPECIAL:
            fields |= _SPECIAL[name](value)
        elif name in _OPTIONS:
            options[_OPTIONS[name]] = "" if value == "null" else value
        elif name in _CONNECT:
            connect[_CONNECT[name]] = value
        elif name in _PLAIN:
            fields[name] = tuple(value) if isinstance(value, list) else value
        elif name in _KEYS:
            fields[_KEYS[name]] = value
        elif name not in _IGNORED:
            log.warning("unknown parameter of a session: name=%s", name)
    if given.get("add_to_known_hosts"):
        connect["host_key_policy"] = "accept-new"
    if given.get("allow_agent"):
        fields["autologin"] = True
    try:
        values = {**before.profile.values(), **_thawed(fields)}
        profile = Profile.from_values(before.profile.id, values)
    except ValueError as error:
        raise ProfileError(str(error)) from error
    return replace(
        before,
        profile=profile,
        options=options,
        connect=connect,
        password=given.get("password", before.password),
        passphrase=given.get("passphrase", before.passphrase),
        proxy_password=given.get("sshproxy_password", before.proxy_password),
        proxy_passphrase=given.get("sshproxy_passphrase", before.proxy_passphrase),
        print_action=_print_action(given) or before.print_action,
    )


# Parameters that are several keys, or another type than theirs.


def _hosts(value: Any) -> dict[str, Any]:
    return {"host": [value] if isinstance(value, str) else list(value)}


def _key_files(value: Any) -> dict[str, Any]:
    files = [value] if isinstance(value, str) else [str(each) for each in value]
    return {"key": files[0] if files else ""}


def _kind(value: Any) -> dict[str, Any]:
    kinds = {"application": True, "desktop": False}
    if value not in kinds:
        raise ProfileError(f"session_type {value!r}: use one of {', '.join(kinds)}")
    return {"rootless": kinds[value]}


def _sound(value: Any) -> dict[str, Any]:
    if value not in SOUND_SYSTEMS:
        raise ProfileError(
            f"snd_system {value!r}: use one of {', '.join(SOUND_SYSTEMS)}"
        )
    return {"sound": value != "none", "soundsystem": value}


def _print_action(given: Mapping[str, Any]) -> PrintAction | None:
    action = given.get("print_action")
    if isinstance(action, str):
        return print_action(action, **given.get("print_action_args", {}))
    return action


def _thawed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in fields.items()
    }


_SPECIAL: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = {
    "server": _hosts,
    "cmd": lambda value: {"command": value},
    "key_filename": _key_files,
    "session_type": _kind,
    "snd_system": _sound,
    "snd_port": lambda value: {"sndport": value, "defsndport": False},
    "share_local_folders": lambda value: {"export": dict.fromkeys(value, True)},
    "mimebox_extensions": lambda value: {"mimeboxextensions": ",".join(value)},
    "mimebox_action": lambda value: {"mimeboxaction": value},
    "sshproxy_reuse_authinfo": lambda value: {"sshproxysamepass": value},
}
_KEYS: Final = {
    name: key for key, name in RENAMED.items() if name not in ("profile_name",)
}
