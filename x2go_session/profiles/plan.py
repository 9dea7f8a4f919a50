"""What a profile makes of a session: its options and its services.

    terminal = Terminal(
        control, session_options(profile), services=services(profile, printing.action)
    )

Pure, but for `services`, which looks whether shared folders are there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from x2go_session.errors import ProfileError, ServiceError
from x2go_session.options import (
    LINKS,
    PACKS_WITH_QUALITY,
    RDP,
    OptionError,
    Rdp,
    SessionOptions,
)
from x2go_session.profiles.profile import Profile, desktop_of
from x2go_session.services import Service
from x2go_session.services.mime_actions import ACTIONS, mime_action
from x2go_session.services.mimebox import MimeBox
from x2go_session.services.ports import LOOPBACK
from x2go_session.services.print_actions import PrintAction
from x2go_session.services.printing import Printing
from x2go_session.services.sharing import Sharing
from x2go_session.services.sound import Sound, SoundSystem
from x2go_session.session import SessionType

log = logging.getLogger("x2go_session.profiles.plan")

# x2goclient's word in the place of a command.
SHADOW: Final = "SHADOW"


def session_type(profile: Profile) -> SessionType:
    """Return what kind of session it is."""
    if profile.command == SHADOW:
        return SessionType.SHADOW
    if profile.published and desktop_of(profile.command) is None:
        return SessionType.PUBLISHED
    return SessionType.ROOTLESS if profile.rootless else SessionType.DESKTOP


def session_options(
    profile: Profile,
    *,
    desktop: str = "",
    view_only: bool = False,
    user: str = "",
    password: str = "",
) -> SessionOptions:
    """Return the options of the session that a profile describes.

    `desktop` is for a profile that shows somebody's desktop; `user` and `password` are
    what an RDP server is told. Raises `ProfileError`.
    """
    kind = session_type(profile)
    command = "XFCE" if profile.command == "XFCE4" else profile.command
    keyboard_type, layout, variant = _keyboard(profile)
    rdp = None
    if command == RDP:
        rdp = Rdp(
            server=profile.rdpserver,
            options=profile.rdpoptions,
            user=user or profile.user,
            password=password,
        )
    try:
        return SessionOptions(
            type=kind,
            command=command,
            geometry=geometry(profile),
            link=LINKS[profile.speed],
            pack=pack(profile),
            clipboard=profile.clipboard,
            xinerama=profile.xinerama,
            dpi=profile.dpi if profile.setdpi else None,
            sound=profile.soundsystem if sound_system(profile) else "none",
            xdmcp_server=profile.xdmcpserver,
            rdp=rdp,
            desktop=desktop,
            view_only=view_only,
            keyboard_type=keyboard_type,
            keyboard_layout=layout,
            keyboard_variant=variant,
        )
    except OptionError as error:
        raise ProfileError(f"profile {profile.name}: {error}") from error


def geometry(profile: Profile) -> str:
    """Return the size of the session's window, as `SessionOptions` has it."""
    if profile.fullscreen:
        return "fullscreen"
    return "maximize" if profile.maxdim else f"{profile.width}x{profile.height}"


def pack(profile: Profile) -> str:
    """Return the pack method, with its quality where it has one and that is not 0."""
    has_quality = profile.pack in PACKS_WITH_QUALITY and profile.quality
    return f"{profile.pack}-{profile.quality}" if has_quality else profile.pack


def window_title(profile: Profile, host: str = "") -> str | None:
    """Return the title that a desktop's window is to have; None leaves it as it is.

    `host` is the one of the profile's hosts that is connected to.
    """
    if not profile.setsessiontitle or session_type(profile) not in (
        SessionType.DESKTOP,
        SessionType.SHADOW,
    ):
        return None
    where = host or next(iter(profile.host), "")
    return (
        profile.sessiontitle.strip() or f"{profile.command} for {profile.user}@{where}"
    )


def sound_system(profile: Profile) -> SoundSystem | None:
    """Return the sound system of this side; None if there is to be no sound."""
    if not profile.sound or profile.soundsystem not in ("pulse", "esd"):
        return None
    return SoundSystem(profile.soundsystem)


def folders(profile: Profile) -> list[Path]:
    """Return the folders that are shared when the session starts."""
    if not profile.useexports:
        return []
    asked = [folder for folder, auto in profile.export.items() if auto]
    return [Path(os.path.expanduser(folder)) for folder in asked]


def not_supported(profile: Profile) -> list[str]:
    """Return what a profile asks for and will not get, each with its key.

    What makes it impossible to connect is an error of `connection`.
    """
    asked: dict[str, bool] = {
        "forwardsshagent: the SSH agent is not forwarded": profile.forwardsshagent,
        "krblogin: Kerberos logins are not supported": profile.krblogin,
        "kdrive: the server shows the session by its NX agent": profile.kdrive,
        "multidisp: use xinerama, or a geometry": profile.multidisp,
        "directrdp: sessions need an X2Go server": profile.directrdp,
        "soundsystem: there is no sound by arts": (
            profile.sound and profile.soundsystem == "arts"
        ),
        "soundtunnel: sound always goes through the tunnel": (
            profile.sound and not profile.soundtunnel
        ),
        "startsoundsystem: the sound server has to run": (
            profile.sound and profile.startsoundsystem
        ),
        "fstunnel: folders are always shared through the tunnel": (
            profile.useexports and not profile.fstunnel
        ),
    }
    return [problem for problem, is_asked in asked.items() if is_asked]


def services(
    profile: Profile,
    print_action: PrintAction | None = None,
    on_missing: Callable[[ServiceError], object] | None = None,
) -> list[Service]:
    """Return the services of a profile's session, in the order of their start.

    `print_action` is what the `printing` file says. A folder that is not there is not
    shared, and `on_missing` is told.
    """
    encodings = (profile.iconvfrom, profile.iconvto) if profile.useiconv else None
    sharing = Sharing(encodings)
    for folder in folders(profile):
        try:
            sharing.share(folder)
        except ServiceError as error:
            log.warning("not shared: %s", error)
            if on_missing is not None:
                on_missing(error)
    found: list[Service] = []
    if profile.useexports or profile.print or profile.usemimebox:
        found.append(sharing)
    system = sound_system(profile)
    if system is not None:
        server = None if profile.defsndport else f"{LOOPBACK}:{profile.sndport}"
        found.append(Sound(system, server))
    if profile.print:
        found.append(Printing(sharing, print_action))
    if profile.usemimebox:
        action = profile.mimeboxaction.upper()
        found.append(
            MimeBox(
                sharing,
                mime_action(action if action in ACTIONS else ACTIONS[0]),
                [word for word in profile.mimeboxextensions.split(",") if word],
            )
        )
    return found


def _keyboard(profile: Profile) -> tuple[str, str, str]:
    """Return type, layout and variant."""
    if not profile.usekbd:
        return "null/null", "", ""
    kind = profile.type.strip() or "null/null"
    return kind, profile.layout.strip(), profile.variant.strip()
