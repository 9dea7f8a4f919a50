"""What a session is to be: its type and command, and how its windows are shown.

The values are those that the server understands; each is checked here, so that a
mistake is told before anything is started.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from x2go_session.errors import X2GoError
from x2go_session.session import SessionType

LINKS: Final = ("modem", "isdn", "adsl", "wan", "lan")
CLIPBOARD: Final = ("both", "client", "server", "none")
SOUND_SYSTEMS: Final = ("pulse", "esd", "arts", "none")
COLOUR_DEPTHS: Final = (8, 15, 16, 17, 24, 30, 32)
# Only these take a quality from 0 to 9 behind a dash.
PACKS_WITH_QUALITY: Final = (
    *("8-jpeg", "16m-jpeg", "8-png-jpeg", "16m-png-jpeg"),
    *("8-png", "16m-png", "16m-rgb", "16m-rle"),
)
_COLOURS: Final = ("8", "64", "256", "512", "4k", "32k", "64k", "256k", "2m", "16m")
_PACK_KINDS: Final = ("", "-rdp", "-tight", "-hitachi", "-jpeg", "-png", "-png-jpeg")
PACKS: Final = frozenset(
    {"nopack", "adaptive", "16m-rgb", "16m-rle", "rfb-hextile", "rfb-tight"}
    | {"rfb-tight-compressed", "rdp", "rdp-compressed"}
    | {colours + kind for colours in _COLOURS for kind in _PACK_KINDS}
)

# Words for desktops; older servers do not know them, but their commands.
DESKTOP_COMMANDS: Final = {
    "CINNAMON": "cinnamon-session-cinnamon2d",
    "GNOME": "gnome-session",
    "ICEWM": "icewm",
    "KDE": "startkde",
    "LXDE": "startlxde",
    "LXQT": "startlxqt",
    "MATE": "mate-session",
    "TRINITY": "starttrinity",
    "UNITY": "unity",
    "XFCE": "xfce4-session",
}
# Words that every server replaces by what is installed there.
SERVER_WORDS: Final = ("TERMINAL", "WWWBROWSER", "MAILCLIENT", "OFFICE")
PUBLISHED: Final = "PUBLISHED"
XDMCP: Final = "XDMCP"
RDP: Final = "RDP"

_GEOMETRY: Final = re.compile(r"[1-9]\d{0,4}x[1-9]\d{0,4}(\+\d{1,5}\+\d{1,5})?")
_WORD: Final = re.compile(r"[A-Za-z0-9_.,:/()+-]*")
_HOST: Final = re.compile(r"[A-Za-z0-9_.:-]+")
_DESKTOP: Final = re.compile(r"(?P<user>[A-Za-z0-9_.-]+)@:(?P<display>\d{1,4}(\.0)?)")


class OptionError(X2GoError, ValueError):
    """An option that the server would not understand, or that makes no sense."""


@dataclass(frozen=True, kw_only=True)
class Rdp:
    """A session on an RDP server, shown by rdesktop on the X2Go server.

    X2GO_USER and X2GO_PASSWORD in the options stand for `user` and `password`. On the
    X2Go server the command line, password included, is seen by its users.
    """

    server: str
    options: str = "-u X2GO_USER -p X2GO_PASSWORD"
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Everything that is said about a session before it starts.

    `geometry` is "WIDTHxHEIGHT[+X+Y]", "fullscreen" or "maximize". `pack` may end in a
    quality ("16m-jpeg-9"). `keyboard_type` is "model/layout" as the server has it
    ("pc105/us"), "auto" (as the client's display has it) or "null/null" (left alone).
    `desktop` is what a SHADOW session shows, "user@:display". Raises `OptionError`.
    """

    type: SessionType = SessionType.ROOTLESS
    command: str = "TERMINAL"
    geometry: str = "800x600"
    link: str = "adsl"
    pack: str = "16m-jpeg-9"
    depth: int = 24
    keyboard_type: str = "auto"
    keyboard_layout: str = ""
    keyboard_variant: str = ""
    clipboard: str = "both"
    xinerama: bool = False
    dpi: int | None = None
    sound: str = "none"
    xdmcp_server: str = "localhost"
    rdp: Rdp | None = None
    desktop: str = ""
    view_only: bool = False

    def __post_init__(self) -> None:
        _one_of("link", self.link, LINKS)
        _one_of("clipboard", self.clipboard, CLIPBOARD)
        _one_of("sound", self.sound, SOUND_SYSTEMS)
        if self.depth not in COLOUR_DEPTHS:
            raise OptionError(f"depth {self.depth}: use one of {COLOUR_DEPTHS}")
        if self.dpi is not None and not 10 <= self.dpi <= 1000:
            raise OptionError(f"dpi {self.dpi}: use a number from 10 to 1000")
        special = ("fullscreen", "maximize")
        if self.geometry not in special and not _GEOMETRY.fullmatch(self.geometry):
            raise OptionError(
                f"geometry {self.geometry!r}: use WIDTHxHEIGHT, WIDTHxHEIGHT+X+Y, "
                "fullscreen or maximize"
            )
        self._check_pack()
        for name in ("keyboard_type", "keyboard_layout", "keyboard_variant"):
            if not _WORD.fullmatch(getattr(self, name)):
                raise OptionError(f"{name} {getattr(self, name)!r}: not a name of XKB")
        self._check_command()

    def _check_pack(self) -> None:
        pack, _, quality = self.pack.rpartition("-")
        if pack in PACKS_WITH_QUALITY and re.fullmatch(r"\d", quality):
            return
        if self.pack not in PACKS:
            raise OptionError(
                f"pack {self.pack!r}: use nopack, or colours and a method as in "
                "16m-jpeg-9, 256k-png, 64k"
            )

    def _check_command(self) -> None:
        shadow = self.type is SessionType.SHADOW
        if shadow != bool(self.desktop):
            raise OptionError("desktop: a SHADOW session needs one, no other has one")
        if shadow and not _DESKTOP.fullmatch(self.desktop):
            raise OptionError(f"desktop {self.desktop!r}: use user@:display")
        if any(char in self.command for char in "\0\r\n"):
            raise OptionError("command: it has to be one line")
        needs_command = self.type in (SessionType.DESKTOP, SessionType.ROOTLESS)
        if needs_command and not self.command.strip():
            raise OptionError("command: say what the session is to run")
        if self.command == XDMCP and not _HOST.fullmatch(self.xdmcp_server):
            raise OptionError(f"xdmcp_server {self.xdmcp_server!r}: not a host name")
        if (self.command == RDP) != (self.rdp is not None):
            raise OptionError("rdp: the command RDP needs it, no other has it")
        if self.rdp is not None and not _HOST.fullmatch(self.rdp.server):
            raise OptionError(f"RDP server {self.rdp.server!r}: not a host name")

    @property
    def shadowed(self) -> tuple[str, str]:
        """The user and the display of the desktop that is shown."""
        found = _DESKTOP.fullmatch(self.desktop)
        if found is None:
            raise OptionError("desktop: this is not a SHADOW session")
        return found["user"], found["display"]

    @property
    def sets_keyboard(self) -> bool:
        """Whether the server is to set the session's keyboard."""
        return self.keyboard_type not in ("null/null", "auto")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{name} {value!r}: use one of {', '.join(known)}")
