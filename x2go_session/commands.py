"""The command lines that the server gets, built from options. Pure text.

All words that come from outside are quoted for sh(1).
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping
from typing import Final

from x2go_session.options import (
    DESKTOP_COMMANDS,
    PUBLISHED,
    RDP,
    SERVER_WORDS,
    XDMCP,
    OptionError,
    SessionOptions,
)
from x2go_session.session import Session, SessionType

# How a blank is written within the command that a session runs.
SPACE: Final = "X2GO_SPACE_CHAR"
DETACHED: Final = ">/dev/null 2>&1 </dev/null &"


def words(*parts: str) -> str:
    """Return a command line of these words, quoted."""
    return shlex.join(parts)


def start_agent(options: SessionOptions) -> str:
    """Return the command that starts a session."""
    environment = {"X2GO_XINERAMA": "true" if options.xinerama else "false"}
    if options.dpi is not None:
        environment["X2GODPI"] = str(options.dpi)
    if options.command == XDMCP:
        environment["X2GOXDMCP"] = options.xdmcp_server
    arguments = [
        "x2gostartagent",
        options.geometry,
        options.link,
        options.pack,
        f"unix-kde-depth_{options.depth}",
        options.keyboard_layout or "null",
        options.keyboard_type,
        "1" if options.sets_keyboard else "0",
        options.type.value,
        name_of_command(options),
    ]
    if options.type is not SessionType.SHADOW:
        arguments.append(options.clipboard)
    return f"{_assignments(environment)} {words(*arguments)}"


def name_of_command(options: SessionOptions) -> str:
    """Return what the name of the session says about its command."""
    if options.type is SessionType.PUBLISHED:
        return PUBLISHED
    if options.type is SessionType.SHADOW:
        user, display = options.shadowed
        return f"{0 if options.view_only else 1}XSHAD{user}XSHAD:{display}"
    return posixpath.basename(program(options.command)) or "command"


def resume_session(name: str, options: SessionOptions) -> str:
    """Return the command that resumes a session."""
    return words(
        "x2goresume-session",
        name,
        options.geometry,
        options.link,
        options.pack,
        options.keyboard_layout or "null",
        options.keyboard_type,
        "1" if options.sets_keyboard else "0",
        options.clipboard,
        "true" if options.xinerama else "false",
    )


def run_command(
    session: Session,
    options: SessionOptions,
    environment: Mapping[str, str],
    features: frozenset[str],
) -> str | None:
    """Return the command that runs the session's program; None if it runs none."""
    if options.type is SessionType.SHADOW or options.command == XDMCP:
        return None
    published = options.type is SessionType.PUBLISHED
    command = PUBLISHED if published else what_runs(options, features)
    sound = "nosnd" if published or options.sound == "none" else options.sound
    line = words(
        *("setsid", "x2goruncommand", str(session.display), str(session.agent_pid)),
        *(session.name, str(session.ports.sound), command.replace(" ", SPACE)),
        *(sound, options.type.value),
    )
    return f"{_assignments(environment)} {line} {DETACHED}".lstrip()


def what_runs(options: SessionOptions, features: frozenset[str]) -> str:
    """Return the command itself, in the words that this server understands."""
    if options.rdp is not None:
        return rdesktop(options)
    if "X2GO_SERVERSIDE_DESKTOPCOMMANDS" in features:
        return options.command
    return DESKTOP_COMMANDS.get(options.command.upper(), options.command)


def rdesktop(options: SessionOptions) -> str:
    """Return the command line for a session on an RDP server."""
    rdp = options.rdp
    assert rdp is not None
    if any(char.isspace() for char in rdp.user + rdp.password):
        raise OptionError("RDP: the server cannot pass blanks in user or password")
    filled = (
        word.replace("X2GO_USER", rdp.user).replace("X2GO_PASSWORD", rdp.password)
        for word in rdp.options.split()
    )
    size = ["-g", options.geometry.partition("+")[0]]
    if options.type is SessionType.DESKTOP or "x" not in size[1]:
        size = ["-f", "-N"]
    # rdesktop does not know depth 17, which stands for 16 with another visual.
    depth = 16 if options.depth == 17 else options.depth
    return " ".join(["rdesktop", *size, *filled, rdp.server, "-a", str(depth)])


def set_keyboard(session: Session, options: SessionOptions) -> str | None:
    """Return the command that sets layout and variant; None if they stay."""
    arguments = []
    if options.keyboard_layout not in ("", "null"):
        arguments += ["-layout", options.keyboard_layout]
    if options.keyboard_variant not in ("", "null"):
        arguments += ["-variant", options.keyboard_variant]
    if not (options.sets_keyboard and arguments):
        return None
    return f"DISPLAY=:{session.display} {words('setxkbmap', *arguments)}"


def run_published(
    session: Session, exec_line: str, environment: Mapping[str, str]
) -> str:
    """Return the command that starts an application in a PUBLISHED session."""
    inside = {
        "DISPLAY": f":{session.display}",
        "X2GO_SESSION": session.name,
        **environment,
    }
    return f"{_assignments(inside)} setsid {exec_line} {DETACHED}"


def find_program(command: str) -> str | None:
    """Return the command that finds a program; None if the server finds it itself."""
    name = program(command)
    if command in SERVER_WORDS or command.upper() in DESKTOP_COMMANDS:
        return None
    if command in (PUBLISHED, XDMCP, RDP):
        return None
    return words("command", "-v", name)


def program(command: str) -> str:
    """Return the first word of a command line."""
    try:
        split = shlex.split(command)
    except ValueError as error:
        raise OptionError(f"command {command!r}: {error}") from error
    return split[0] if split else ""


def _assignments(environment: Mapping[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(text)}" for name, text in environment.items())
