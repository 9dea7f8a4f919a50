"""What `x2go-session doctor` looks at: this machine, and a server if one is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from rtunnel.errors import RTunnelError
from x2go_session.control import Control
from x2go_session.errors import X2GoError
from x2go_session.graphics import check_client
from x2go_session.services.sound import SoundSystem, find_server, read_cookie


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; without it, `needed_for` does not work."""

    what: str
    found: bool
    detail: str
    needed_for: str = ""

    def __str__(self) -> str:
        mark = "ok     " if self.found else "MISSING"
        return f"{mark} {self.what}: {self.detail}"


def look_here() -> Iterator[Finding]:
    """Yield what this machine has."""
    try:
        check_client()
    except X2GoError as error:
        yield Finding("windows", False, str(error), "any session")
    else:
        yield Finding(
            "windows", True, f"nxproxy, at display {os.environ.get('DISPLAY')}"
        )
    for program, needed_for in (
        ("xdg-open", "viewing prints and MIME box files"),
        ("lpr", "printing on a printer of this machine"),
    ):
        path = shutil.which(program)
        detail = path or f"not installed; needed for {needed_for}"
        yield Finding(program, path is not None, detail, needed_for)
    yield _sound()


def look_there(control: Control) -> Iterator[Finding]:
    """Yield what the server has."""
    try:
        features = control.features()
        version = control.versions().get("x2goserver", "unknown")
        yield Finding("x2goserver", True, f"version {version}")
    except X2GoError as error:
        yield Finding("x2goserver", False, str(error), "any session")
        return
    for feature, needed_for in (
        ("X2GO_PRINTING", "printing"),
        ("X2GO_MOUNTDIRS", "shared folders"),
        ("X2GO_LIST_DESKTOPS", "showing running desktops"),
        ("X2GO_PUBLISHED_APPLICATIONS", "published applications"),
    ):
        there = feature in features
        detail = "there" if there else f"not installed; needed for {needed_for}"
        yield Finding(feature, there, detail, needed_for)
    yield _mounting(control)
    yield _limit(control)


def _sound() -> Finding:
    try:
        read_cookie(SoundSystem.PULSE)
        server, silence = find_server(SoundSystem.PULSE)
    except (X2GoError, OSError) as error:
        return Finding("sound", False, str(error), "--sound pulse")
    if silence is not None:
        return Finding("sound", False, str(silence), "--sound pulse")
    return Finding("sound", True, f"PulseAudio at {server}")


def _mounting(control: Control) -> Finding:
    needed_for = "shared folders, printing, MIME box"
    found = control.run("command -v sshfs && ls -l /dev/fuse && test -w /dev/fuse")
    if found.status == 0 and control.can_mount():
        return Finding("FUSE", True, "sshfs and fusermount, and /dev/fuse is open")
    return Finding(
        "FUSE",
        False,
        f"install sshfs and fuse3, and let the user write to /dev/fuse; needed for "
        f"{needed_for}",
        needed_for,
    )


def _limit(control: Control) -> Finding:
    try:
        limit = control.session_limit()
        running = len(control.sessions())
    except (X2GoError, RTunnelError) as error:
        return Finding("sessions", False, str(error), "any new session")
    most = "any number" if limit is None else str(limit)
    return Finding("sessions", True, f"{running} now; {most} allowed")
