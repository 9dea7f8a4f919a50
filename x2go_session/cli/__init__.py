"""The `x2go-session` command: X2Go sessions from the shell."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO

import click

import rtunnel
from rtunnel.errors import RTunnelError
from x2go_session.cli import broker_client, connecting, exit_status
from x2go_session.cli.broker import broker
from x2go_session.cli.doctor import Finding, look_here, look_there
from x2go_session.cli.exit_status import ExitStatus
from x2go_session.cli.flags import (
    session_flags,
    session_options,
    ssh_flags,
    start_flags,
)
from x2go_session.cli.holding import Holder, ToldToEnd, find
from x2go_session.cli.output import Output
from x2go_session.errors import NoSuchSession, X2GoError
from x2go_session.local import ask, shown_here
from x2go_session.replies import SessionInfo

log = logging.getLogger("x2go_session.cli")

NAME: Final = "x2go-session"
# What a shell reports for a command that died of SIGINT.
INTERRUPTED: Final = 130
DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\n" + exit_status.describe(),
)
@click.version_option(
    rtunnel.__version__, prog_name=NAME, message="%(prog)s %(version)s"
)
def cli() -> None:
    """X2Go sessions: remote desktops and applications, shown on this display.

    x2go-session VERB [ssh flags] [options] [user@]host [session]
    """


cli.add_command(broker)
broker_client.add_to(broker)


def _command(
    name: str, *, session: bool | None, help: str
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command with ssh's flags; it gets them as a dictionary, and what prints.

    `session`: whether one is to be named; None: it may be.
    """

    def make(function: Callable[[dict[str, Any], Output], int | None]) -> click.Command:
        def run(**values: Any) -> int | None:
            connecting.show_log(values["verbosity"], values["quiet"])
            values["sessions_root"] = Path(os.path.expanduser(values["sessions_root"]))
            output = Output(as_json=values["as_json"], quiet=values["quiet"])
            return function(values, output)

        # The options of the command itself, as click's decorators left them.
        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        wrapped: Callable[..., Any] = run
        if session is not False:
            wrapped = click.argument("session", required=bool(session))(wrapped)
        wrapped = click.argument("destination", required=name != "doctor")(wrapped)
        return cli.command(name, help=help)(ssh_flags(wrapped))

    return make


@_command("list", session=False, help="List the user's sessions on a server.")
def list_sessions(values: dict[str, Any], output: Output) -> None:
    """List sessions."""
    with connecting.control(values) as control:
        sessions = control.sessions()
    shown = shown_here(values["sessions_root"])
    for info in sessions:
        if output.as_json:
            output.row(_row(info) | {"shown_here": info.name in shown})
        else:
            state = "suspended" if info.is_suspended else "running"
            here = ", shown here" if info.name in shown else ""
            output.line(f"{info.name}  {state}{here}, from {info.client}")
    if not sessions and not output.as_json:
        output.line("no sessions")


@_command("start", session=False, help="Start a session, and stay with it.")
@session_flags
@start_flags
def start(values: dict[str, Any], output: Output) -> int:
    """Start a session."""
    options = session_options(values)
    return Holder(values, output).hold(options)


@_command("resume", session=None, help="Show a session here, and stay with it.")
@session_flags
def resume(values: dict[str, Any], output: Output) -> int:
    """Resume a session."""
    options = session_options(values)
    with connecting.control(values) as control:
        info = find(control, values["session"])
    return Holder(values, output).hold(options, info.name)


@_command("suspend", session=None, help="Suspend a session; it waits on the server.")
def suspend(values: dict[str, Any], output: Output) -> None:
    """Suspend a session."""
    _end(values, output, "suspend", "suspended")


@_command("terminate", session=None, help="End a session and all that runs in it.")
def terminate(values: dict[str, Any], output: Output) -> None:
    """Terminate a session."""
    _end(values, output, "terminate", "terminated")


@_command("share", session=None, help="Mount a folder in a session shown here.")
@click.option("--folder", required=True, type=click.Path(path_type=Path), metavar="DIR")
@click.option("--read-only", is_flag=True, help="It cannot be changed from there.")
def share(values: dict[str, Any], output: Output) -> None:
    """Share a folder."""
    folder = values["folder"].absolute()
    request = {
        "do": "share",
        "folder": str(folder),
        "read_only": values["read_only"],
    }
    mount_point = ask(_folder_of_session(values), request)
    if output.as_json:
        output.row({"folder": str(folder), "mount_point": mount_point})
    else:
        output.line(f"shared: {folder} at {mount_point}")


@_command("unshare", session=None, help="Unmount a folder, or all of them.")
@click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="Only this one."
)
def unshare(values: dict[str, Any], output: Output) -> None:
    """Unshare folders."""
    folder = values["folder"].absolute() if values["folder"] else None
    request = {"do": "unshare", "folder": str(folder) if folder else None}
    ask(_folder_of_session(values), request)
    if output.as_json:
        output.row({"unshared": str(folder) if folder else "all"})
    else:
        output.line(f"not shared any more: {folder or 'all folders'}")


@_command("print-jobs", session=None, help="List what a session shown here printed.")
def print_jobs(values: dict[str, Any], output: Output) -> None:
    """List print jobs."""
    jobs = ask(_folder_of_session(values), {"do": "print-jobs"})
    for job in jobs:
        if output.as_json:
            output.row(job)
        else:
            output.line(
                f"{job['number']:3d}  {job['title']!r}  {job['state']}  {job['detail']}"
            )
    if not jobs and not output.as_json:
        output.line("no print jobs")


@_command("doctor", session=False, help="See what this machine and a server lack.")
def doctor(values: dict[str, Any], output: Output) -> int:
    """Look for what is missing."""
    findings = _show(output, "here", list(look_here()))
    if values["destination"]:
        with connecting.control(values) as control:
            findings += _show(output, "there", list(look_there(control)))
    missing = any(not each.found and "any" in each.needed_for for each in findings)
    return ExitStatus.CLIENT if missing else ExitStatus.ENDED


def _show(output: Output, where: str, findings: list[Finding]) -> list[Finding]:
    for each in findings:
        if output.as_json:
            output.row(
                {
                    "where": where,
                    "what": each.what,
                    "found": each.found,
                    "detail": each.detail,
                }
            )
        else:
            output.line(str(each))
    return findings


def _end(values: dict[str, Any], output: Output, verb: str, done: str) -> None:
    """Have a session suspended or terminated: by the client that shows it, if one does.

    That one unmounts folders and closes ports first.
    """
    with connecting.control(values) as control:
        name = find(control, values["session"]).name
        try:
            ask(values["sessions_root"] / f"S-{name}", {"do": verb})
        except NoSuchSession:
            if verb == "suspend":
                control.suspend_session(name)
            else:
                control.terminate_session(name)
    if output.as_json:
        output.row({"session": name, "state": done})
    else:
        output.line(f"{done}: {name}")


def _folder_of_session(values: dict[str, Any]) -> Path:
    """Return the folder of the named session, or of the only one that is shown here."""
    root: Path = values["sessions_root"]
    name = values["session"]
    if name is None:
        shown = shown_here(root)
        if len(shown) != 1:
            names = ", ".join(shown) or "none"
            raise NoSuchSession(f"name the session; on this machine are {names}")
        name = shown[0]
    return root / f"S-{Path(name).name}"


def _row(info: SessionInfo) -> dict[str, Any]:
    return {
        "session": info.name,
        "state": "suspended" if info.is_suspended else "running",
        "type": info.type.value,
        "command": info.command,
        "display": info.display,
        "server": info.server,
        "client": info.client,
        "started": info.started.isoformat() if info.started else None,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status. Errors are one line on stderr."""
    try:
        return _run(arguments)
    finally:
        _let_go(sys.stdout, sys.stderr)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(arguments, prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else NAME
        _complain(f"{error.format_message()} (see '{path} --help')")
        return ExitStatus.USAGE
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except ToldToEnd:
        return ExitStatus.ENDED
    except (X2GoError, RTunnelError) as error:
        _complain(str(error))
        log.debug("where it came from", exc_info=error)
        return exit_status.status_of(error)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        return ExitStatus.UNEXPECTED  # who read our output is gone
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            _complain(f"what was to be written is lost: {error}")
        else:
            _complain(
                f"unexpected {type(error).__name__}: {error}; please report this, with "
                "what -vv shows"
            )
        log.debug("where it came from", exc_info=error)
        return ExitStatus.UNEXPECTED
    return int(result or ExitStatus.ENDED)


def _let_go(*streams: TextIO) -> None:
    """Drop what cannot be written, for a full disk, or since nobody reads any more.

    Python would try it once more at its end, and make the exit status 120.
    """
    for stream in streams:
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(message: str) -> None:
    with suppress(OSError):  # a full disk; the exit status tells it, too
        click.echo(f"{NAME}: {message}", err=True)
