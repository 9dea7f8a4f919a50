"""The `rtunnel` command; each of its commands is a module here.

Start-up is part of the interface: the module of a command is loaded when it is named,
and imports what is heavy when it runs. `rtunnel --version` comes at once, and so do
the errors of a command line.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Final, TextIO

import click

from rtunnel._version import __version__
from rtunnel.cli import exit_status
from rtunnel.cli.exit_status import ExitStatus
from rtunnel.errors import RTunnelError

log = logging.getLogger(__name__)

# What a shell reports for a command that died of SIGINT.
INTERRUPTED: Final = 130
DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


# The module and the function of each command.
COMMANDS: Final = {
    "bench": ("rtunnel.cli.bench_command", "bench"),
    "demo": ("rtunnel.cli.demo", "demo"),
    "doctor": ("rtunnel.cli.doctor", "doctor"),
    "gateway": ("rtunnel.cli.gateway_command", "gateway"),
    "open": ("rtunnel.cli.open_command", "open_tunnels"),
    "run": ("rtunnel.cli.run_command", "run"),
    "status": ("rtunnel.cli.status_command", "status"),
    "verify": ("rtunnel.cli.verify_command", "verify"),
}


class _Commands(click.Group):
    """The commands, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), function)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\n" + exit_status.describe(),
)
@click.version_option(__version__, prog_name="rtunnel", message="%(prog)s %(version)s")
def cli() -> None:
    """SSH reverse tunnels: ports on a server, answered on this side."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status. Errors are one line on stderr."""
    try:
        return _run(arguments)
    finally:
        _let_go(sys.stdout, sys.stderr)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(arguments, prog_name="rtunnel", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "rtunnel"
        _complain(f"{error.format_message()} (see '{path} --help')")
        return ExitStatus.USAGE
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except RTunnelError as error:
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
        click.echo(f"rtunnel: {message}", err=True)
