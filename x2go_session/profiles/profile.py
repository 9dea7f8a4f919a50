"""One session profile: what a section of the `sessions` file says, typed.

The fields are the keys of the file, under their names there, with the defaults of
python-x2go. What is not known here is in `extra`, as it stands in the file.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from x2go_session.errors import ProfileError
from x2go_session.options import (
    CLIPBOARD,
    DESKTOP_COMMANDS,
    LINKS,
    PACKS,
    PACKS_WITH_QUALITY,
    RDP,
    SOUND_SYSTEMS,
)
from x2go_session.profiles.values import Kind, Value, read, text_of, write

GENERIC_APPLICATIONS: Final = ("WWWBROWSER", "MAILCLIENT", "OFFICE", "TERMINAL")
# python-x2go's spelling of the desktops, which differs from the upper case of others.
_DESKTOP_SPELLING: Final = {"ICEWM": "IceWM", "LXQT": "LXQt"}
_PORTS: Final = (1, 65535)


def _checked(kind: Kind, default: Any, check: Callable[[Any], str | None]) -> Any:
    return field(default=default, metadata={"kind": kind, "check": check})


def _flag(default: bool) -> Any:
    return field(default=default, metadata={"kind": Kind.FLAG})


def _text(default: str = "") -> Any:
    return field(default=default, metadata={"kind": Kind.TEXT})


def _list(*default: str, kind: Kind = Kind.LIST) -> Any:
    return field(default=default, metadata={"kind": kind})


def _number(default: int, least: int = 0, most: int = 999_999_999) -> Any:
    def check(number: int) -> str | None:
        inside = least <= number <= most
        return None if inside else f"use a number from {least} to {most}"

    return _checked(Kind.NUMBER, default, check)


def _word(default: str, *words: str) -> Any:
    def check(word: str) -> str | None:
        return None if word in words else f"use one of {', '.join(words)}"

    return _checked(Kind.TEXT, default, check)


def _pack_is_known(pack: str) -> str | None:
    if pack in PACKS or pack in PACKS_WITH_QUALITY:
        return None
    return "use nopack, or colours and a method, as in 16m-jpeg, 256k-png, 64k"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A session profile: whom to connect to, what to run, how to show it.

    `id` is the name of its section.
    """

    id: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    name: str = _text("NEW_PROFILE")
    icon: str = _text(":icons/128x128/x2gosession.png")

    # The server, and who logs in.
    host: tuple[str, ...] = _list("server.mydomain", kind=Kind.HOSTS)
    user: str = field(default_factory=getpass.getuser, metadata={"kind": Kind.TEXT})
    sshport: int = _number(22, *_PORTS)
    key: str = _text()
    autologin: bool = _flag(True)
    autoconnect: bool = _flag(False)
    autostart: bool = _flag(False)
    forwardsshagent: bool = _flag(False)
    uniquehostkeyaliases: bool = _flag(False)
    krblogin: bool = _flag(False)
    usesshproxy: bool = _flag(False)
    sshproxyhost: str = _text("proxyhost.mydomain")
    sshproxyport: int = _number(22, *_PORTS)
    sshproxyuser: str = _text()
    sshproxykeyfile: str = _text()
    sshproxytype: str = _word("SSH", "SSH", "HTTP")
    sshproxysameuser: bool = _flag(False)
    sshproxysamepass: bool = _flag(False)
    sshproxyautologin: bool = _flag(True)

    # What runs.
    command: str = _text("TERMINAL")
    rootless: bool = _flag(True)
    published: bool = _flag(False)
    applications: tuple[str, ...] = _list(*GENERIC_APPLICATIONS)
    rdpserver: str = _text()
    rdpoptions: str = _text("-u X2GO_USER -p X2GO_PASSWORD")
    rdpclient: str = _text("rdesktop")
    rdpport: int = _number(3389, *_PORTS)
    directrdp: bool = _flag(False)
    directrdpsettings: str = _text()
    xdmcpserver: str = _text("localhost")
    kdrive: bool = _flag(False)

    # How it is shown.
    speed: int = _number(2, 0, len(LINKS) - 1)
    pack: str = _checked(Kind.TEXT, "16m-jpeg", _pack_is_known)
    quality: int = _number(9, 0, 9)
    fullscreen: bool = _flag(False)
    maxdim: bool = _flag(False)
    width: int = _number(800)
    height: int = _number(600)
    setdpi: bool = _flag(False)
    dpi: int = _number(96)
    xinerama: bool = _flag(False)
    multidisp: bool = _flag(False)
    display: int = _number(1)
    clipboard: str = _word("both", *CLIPBOARD)
    usekbd: bool = _flag(True)
    layout: str = _text("us")
    type: str = _text("pc105/us")
    variant: str = _text()
    setsessiontitle: bool = _flag(False)
    sessiontitle: str = _text()

    # Sound, printing, folders.
    sound: bool = _flag(False)
    soundsystem: str = _word("pulse", *SOUND_SYSTEMS)
    sndport: int = _number(4713, *_PORTS)
    startsoundsystem: bool = _flag(False)
    soundtunnel: bool = _flag(True)
    defsndport: bool = _flag(True)
    print: bool = _flag(False)
    useexports: bool = _flag(True)
    restoreexports: bool = _flag(False)
    export: Mapping[str, bool] = field(
        default_factory=dict, metadata={"kind": Kind.EXPORT}
    )
    fstunnel: bool = _flag(True)
    useiconv: bool = _flag(False)
    iconvto: str = _text("UTF-8")
    iconvfrom: str = _text("UTF-8")
    usemimebox: bool = _flag(False)
    mimeboxextensions: str = field(default="", metadata={"kind": Kind.COMMAS})
    mimeboxaction: str = _text("OPEN")

    @classmethod
    def from_values(cls, id: str, values: Mapping[str, Value]) -> Profile:
        """Return the profile that these values make, as a JSON broker gives them.

        A text is read as that of the file, where it is not the value itself. Raises
        `ProfileError`.
        """
        given: dict[str, Any] = {}
        extra = {}
        for key, value in values.items():
            if key not in KEYS:
                extra[key] = str(value)
                continue
            try:
                given[key] = frozen(read_value(key, _as_text(key, value)))
            except ValueError as error:
                raise ProfileError(f"profile {id}, {key}={value!r}: {error}") from error
        return cls(id=id, extra=extra, **given)

    def values(self) -> dict[str, Value]:
        """Return all keys with their values, in the types that python-x2go has."""
        return {key: _thawed(getattr(self, key)) for key in KEYS} | dict(self.extra)

    @property
    def metatype(self) -> str:
        """What kind of profile it is, in python-x2go's words."""
        if self.rdpserver and self.command == RDP:
            return "RDP/proxy" if self.host else "RDP/direct"
        if not self.host:
            return "not supported"
        desktop = desktop_of(self.command)
        if self.published:
            known = f"{desktop} + " if desktop else ""
            return f"{known}Published Applications"
        if self.rootless:
            return "Single Applications"
        return f"{desktop or 'CUSTOM'} Desktop"


# Every key of the file that is known: its kind is in the metadata of the field.
KEYS: Final = {each.name: each for each in fields(Profile) if "kind" in each.metadata}


def read_value(key: str, text: str) -> Value:
    """Return what the text of a key stands for; that of an unknown key is a string.

    Raises ValueError, with what to do.
    """
    if key not in KEYS:
        return text_of(text)
    if key == "speed" and text.strip().lower() in LINKS:
        return LINKS.index(text.strip().lower())
    value = read(KEYS[key].metadata["kind"], text)
    if problem := _problem(key, value):
        raise ValueError(problem)
    return value


def write_value(key: str, value: Value) -> str:
    """Return the text that a file has for a value of this key.

    Raises ValueError for a value that the key cannot have.
    """
    if key not in KEYS:
        kind = Kind.FLAG if isinstance(value, bool) else Kind.TEXT
        return write(kind, value if isinstance(value, bool) else str(value))
    text = write(KEYS[key].metadata["kind"], value)
    if problem := _problem(key, value):
        raise ValueError(f"{value!r}: {problem}")
    return text


def default_values() -> dict[str, Value]:
    """Return what a new profile says before anything is said."""
    return Profile().values()


def desktop_of(command: str) -> str | None:
    """Return the desktop that a command is ("XFCE", "LXQt"); None if it is none."""
    if command == "XFCE4":
        return "XFCE"
    for word, program in DESKTOP_COMMANDS.items():
        if command.upper() == word or command == program:
            return _DESKTOP_SPELLING.get(word, word)
    return None


def frozen(value: Value) -> Value | tuple[str, ...]:
    """Return a value as `Profile` has it."""
    return tuple(value) if isinstance(value, list) else value


def _problem(key: str, value: Value) -> str | None:
    check: Callable[[Any], str | None] | None = KEYS[key].metadata.get("check")
    return check(value) if check is not None else None


def _as_text(key: str, value: Value) -> str:
    try:
        return write_value(key, value)
    except ValueError:
        return str(value)


def _thawed(value: Any) -> Value:
    match value:
        case tuple():
            return list(value)
        case Mapping():
            return dict(value)
        case _:
            return value  # type: ignore[no-any-return]
