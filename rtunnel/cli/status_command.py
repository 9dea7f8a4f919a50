"""`rtunnel status`: what the running rtunnel processes of this user are doing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from rtunnel.addresses import TcpBind, parse_bind
from rtunnel.cli import logs
from rtunnel.cli.ending import ToldToEnd, told_to_end_by_signals
from rtunnel.cli.exit_status import ExitStatus
from rtunnel.errors import InvalidAddress

if TYPE_CHECKING:
    from rtunnel.status.model import ProcessStatus


def _read_place(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, int] | None:
    if value is None:
        return None
    try:
        bind = parse_bind(value)
        if not isinstance(bind, TcpBind):
            raise InvalidAddress(f"invalid status address {value!r}: give ADDR:PORT")
    except InvalidAddress as error:
        raise click.BadParameter(str(error), context, parameter) from None
    return bind.address, bind.port


# For each command that stays: where it serves its status over HTTP. The parameter is
# `status_on`, an address and a port, or None.
serve_option: Callable[[Any], Any] = click.option(
    "--status",
    "status_on",
    metavar="[ADDR:]PORT",
    callback=_read_place,
    help="Serve a page, /metrics, /healthz, /readyz and /status over HTTP here: on "
    "loopback only; port 0 takes any that is free.",
)


@click.command(short_help="Show what the running rtunnel processes are doing.")
@click.argument("pid", type=click.IntRange(1), required=False)
@click.option("--watch", is_flag=True, help="Stay, and show what changes.")
@click.option(
    "--json", "as_json", is_flag=True, help="Write JSON: a list of processes."
)
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often --watch looks.",
)
@click.option("-v", "verbosity", count=True, help="Say more; up to -vvv.")
def status(
    pid: int | None, watch: bool, as_json: bool, interval_s: float, verbosity: int
) -> ExitStatus:
    """Show what the running rtunnel processes of this user are doing.

    All of them, or the one with this PID: each connection and its listeners, tables on
    a terminal and plain lines elsewhere. With --watch and --json, each look is one
    line.
    """
    logs.show(verbosity, quiet=False)
    if watch:
        try:
            with told_to_end_by_signals():
                _watch(pid, as_json, interval_s)
        except ToldToEnd:
            return ExitStatus.ENDED
    statuses = _look(pid, complain=True)
    if pid is not None and not statuses:
        raise click.UsageError(f"no rtunnel process {pid} of this user is running")
    if as_json:
        _write_json(statuses, indent=2)
    elif statuses:
        _print(statuses)
    else:
        click.echo("no rtunnel process of this user is running", err=True)
    return ExitStatus.ENDED


def _look(pid: int | None, complain: bool = False) -> list[ProcessStatus]:
    """Ask the processes; with `complain`, say why one of them does not answer."""
    from rtunnel.status.runtime import running

    statuses = []
    for found in running():
        if pid is not None and found.pid != pid:
            continue
        if found.status is not None:
            statuses.append(found.status)
        elif complain:
            click.echo(f"rtunnel: process {found.pid}: {found.error}", err=True)
    return statuses


def _write_json(statuses: list[ProcessStatus], indent: int | None) -> None:
    from rtunnel.status.model import to_json

    click.echo(json.dumps([to_json(each) for each in statuses], indent=indent))


def _print(statuses: list[ProcessStatus]) -> None:
    from rich.console import Console

    from rtunnel.cli.status_view import View, lines

    console = Console()
    if console.is_terminal:
        console.print(View(console).draw(statuses))
    else:
        click.echo("\n".join(line for each in statuses for line in lines(each)))


def _watch(pid: int | None, as_json: bool, interval_s: float) -> None:
    """Look again and again, until told to end."""
    from rtunnel.cli.status_view import live

    with live(traffic=True) as show:
        while True:
            statuses = _look(pid)
            if as_json:
                _write_json(statuses, indent=None)
                sys.stdout.flush()
            else:
                show(statuses)
            time.sleep(interval_s)
