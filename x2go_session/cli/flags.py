"""Flags that commands share: ssh's for the connection, and those of a session."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from x2go_session.options import CLIPBOARD, LINKS, OptionError, SessionOptions
from x2go_session.session import SessionType
from x2go_session.terminal import SESSIONS_ROOT

Function = Callable[..., Any]

_PORT: Final = (
    click.option(
        "-p", "port", type=click.IntRange(1, 65535), help="Port of the server."
    ),
)

_LOGIN: Final = (
    click.option("-l", "user", metavar="USER", help="User on the server."),
    click.option(
        *("-i", "identity_files"), metavar="KEY", multiple=True, help="Private key."
    ),
    click.option(
        *("-J", "jump"), metavar="[USER@]HOST[:PORT],...", help="Connect through these."
    ),
    click.option(
        *("-F", "config_file"),
        metavar="FILE",
        help="Read this instead of ~/.ssh/config; 'none' reads no file.",
    ),
    click.option(
        *("-o", "ssh_options"),
        metavar="OPTION=VALUE",
        multiple=True,
        help="An option as ssh_config(5) has them.",
    ),
    click.option("-4", "family", flag_value="inet", help="Connect by IPv4 only."),
    click.option("-6", "family", flag_value="inet6", help="Connect by IPv6 only."),
    click.option("-C", "compression", is_flag=True, help="Compress."),
)

_OUTPUT: Final = (
    click.option("-v", "verbosity", count=True, help="Say more; up to -vv."),
    click.option("-q", "quiet", is_flag=True, help="Only results and errors."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object a line."),
)

_ROOT: Final = (
    click.option(
        "--sessions-root",
        type=click.Path(path_type=Path, file_okay=False),
        default=SESSIONS_ROOT,
        show_default=True,
        help="Where the folders of sessions are on this side.",
    ),
)

_SESSION: Final = (
    click.option(
        "--geometry",
        default="800x600",
        show_default=True,
        help="WIDTHxHEIGHT[+X+Y], fullscreen or maximize.",
    ),
    click.option("--link", type=click.Choice(LINKS), default="adsl", show_default=True),
    click.option(
        "--pack",
        default="16m-jpeg-9",
        show_default=True,
        help="How pictures are packed: colours, method, quality.",
    ),
    click.option(
        "--clipboard", type=click.Choice(CLIPBOARD), default="both", show_default=True
    ),
    click.option(
        "--keyboard-type",
        default="auto",
        show_default=True,
        help="MODEL/LAYOUT as in pc105/us, auto, or null/null to leave it alone.",
    ),
    click.option("--keyboard-layout", default="", metavar="LAYOUT", help="As in de."),
    click.option("--keyboard-variant", default="", metavar="VARIANT"),
    click.option("--xinerama", is_flag=True, help="Fill several screens."),
    click.option("--dpi", type=int, help="Dots per inch of the session."),
    click.option(
        "--sound",
        type=click.Choice(["pulse", "esd", "none"]),
        default="none",
        show_default=True,
        help="The sound system of this machine.",
    ),
    click.option(
        *("--share", "shares"),
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Mount this folder on the server.",
    ),
    click.option(
        *("--share-read-only", "read_only_shares"),
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="The same, and nothing in it can be changed from there.",
    ),
    click.option(
        "--printing",
        type=click.Choice(["pdfview", "pdfsave", "print", "printcmd"]),
        help="What is done with what the session prints.",
    ),
    click.option(
        "--print-to",
        metavar="WORDS",
        help="The viewer, folder, printer or command for that.",
    ),
    click.option(
        "--mimebox",
        type=click.Choice(["open", "openwith", "saveas"]),
        help="What is done with files that the session drops into the MIME box.",
    ),
    click.option(
        "--mimebox-to",
        metavar="WORDS",
        help="The program for openwith, the folder for saveas.",
    ),
    click.option(
        *("--mimebox-extension", "mimebox_extensions"),
        multiple=True,
        metavar="EXT",
        help="Take only files that end so, as pdf.",
    ),
    click.option(
        "--reconnect/--no-reconnect",
        default=True,
        show_default=True,
        help="Connect again and resume when the connection is lost.",
    ),
    click.option(
        "--at-exit",
        type=click.Choice(["suspend", "terminate"]),
        default="suspend",
        show_default=True,
        help="What becomes of the session at SIGINT or SIGTERM.",
    ),
)

_START: Final = (
    click.option(
        "--type",
        "kind",
        type=click.Choice([each.value for each in SessionType]),
        default="R",
        show_default=True,
        help="Desktop, Rootless application, Published applications, Shadow.",
    ),
    click.option(
        "--command",
        default="TERMINAL",
        show_default=True,
        help="What it runs: a command line, or a word as XFCE, KDE, TERMINAL.",
    ),
    click.option("--depth", type=int, default=24, show_default=True),
    click.option(
        "--desktop", default="", metavar="USER@:DISPLAY", help="For --type S."
    ),
    click.option("--view-only", is_flag=True, help="For --type S: only look."),
)


def ssh_flags(function: Function) -> Function:
    """Add the flags of the connection, and of what is printed."""
    return _add((*_PORT, *_LOGIN, *_OUTPUT, *_ROOT), function)


def login_flags(function: Function) -> Function:
    """Add the flags of a connection whose host and port come from elsewhere."""
    return _add((*_LOGIN, *_OUTPUT), function)


def session_flags(function: Function) -> Function:
    """Add the flags of a session that is shown here."""
    return _add(_SESSION, function)


def start_flags(function: Function) -> Function:
    """Add the flags that only a new session has."""
    return _add(_START, function)


def session_options(values: dict[str, Any]) -> SessionOptions:
    """Return what the flags say about a session. Raises `click.UsageError`."""
    names = {field.name for field in dataclasses.fields(SessionOptions)} - {"type"}
    chosen = {name: values[name] for name in names if name in values}
    if "kind" in values:
        chosen["type"] = SessionType(values["kind"])
    try:
        return SessionOptions(**chosen)
    except OptionError as error:
        raise click.UsageError(str(error)) from error


def _add(
    options: tuple[Callable[[Function], Function], ...], function: Function
) -> Function:
    for option in reversed(options):
        function = option(function)
    return function
