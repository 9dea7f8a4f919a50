"""`rtunnel bench`: measure this machine, beside ssh(1), asyncssh and paramiko."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rtunnel.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from rtunnel.bench.results import Report
    from rtunnel.bench.scenario import Settings

# As `rtunnel.bench.run` has them, which is not imported for `--help`.
SCENARIOS: Final = ("bulk", "latency", "wan", "mixed", "rate", "idle", "relay", "sftp")
ALL: Final = "all"
PEERS: Final = ("ssh", "asyncssh", "paramiko")
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 1


def _read_peers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...]:
    """Split the list; without one, all that are installed."""
    if value is None:
        missing = [peer for peer in PEERS if not _is_installed(peer)]
        for peer in missing:
            click.echo(f"{peer} is not installed: not compared", err=True)
        return tuple(peer for peer in PEERS if peer not in missing)
    peers = tuple(dict.fromkeys(filter(None, value.split(","))))
    for peer in peers:
        if peer not in PEERS:
            raise click.BadParameter(f"{peer!r} is none of {', '.join(PEERS)}")
        if not _is_installed(peer):
            raise click.BadParameter(f"{peer} is not installed")
    return peers


def _is_installed(peer: str) -> bool:
    if peer == "ssh":
        return shutil.which(peer) is not None
    return importlib.util.find_spec(peer) is not None


@click.command(short_help="Measure this machine, beside ssh, asyncssh and paramiko.")
@click.argument(
    "scenarios",
    metavar=f"[{'|'.join((*SCENARIOS, ALL))}]...",
    type=click.Choice((*SCENARIOS, ALL)),
    nargs=-1,
)
@click.option(
    "--against",
    metavar="PEER,...",
    callback=_read_peers,
    help=f"Compare with these of {', '.join(PEERS)}; default: all that are installed.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    help=f"Measure everybody so often; default: {ROUNDS}, quick {QUICK_ROUNDS}.",
)
@click.option("--quick", is_flag=True, help="Small sizes: shows that it runs.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures."
)
@click.option(
    "--report",
    "report_file",
    metavar="FILE.html",
    type=click.Path(path_type=Path),
    help="Draw a page with plots; nothing outside of the file is needed to see it.",
)
@click.option("--markdown", is_flag=True, help="Print the tables in Markdown.")
@click.option(
    "--from",
    "from_file",
    metavar="FILE.json",
    type=click.Path(path_type=Path, exists=True),
    help="Measure nothing: show what an earlier run wrote.",
)
def bench(
    *,
    scenarios: tuple[str, ...],
    against: tuple[str, ...],
    rounds: int | None,
    quick: bool,
    json_file: Path | None,
    report_file: Path | None,
    markdown: bool,
    from_file: Path | None,
) -> ExitStatus:
    """Measure this machine, beside ssh, asyncssh and paramiko.

    Starts an sshd, the gateway, targets and visitors of its own, on loopback. Every
    round measures each peer once, in turn; shown are medians, and ratios round by
    round. `all` takes about an hour; leave the machine alone meanwhile.

    \b
        bulk     one channel as fast as it goes, and its CPU seconds per GB
        latency  round trip of 64 bytes
        wan      bulk over 1 Gbit/s with a round trip of 100 ms
        mixed    round trip beside bulk on a narrow link
        rate     short connections a second
        idle     10,000 channels: memory, threads, what one more costs
        relay    two sockets, without SSH, beside socat and a loop in C
        sftp     put and get on rtunnel.Transport and paramiko.Transport
    """
    from rtunnel.bench import table
    from rtunnel.bench.process import BenchError
    from rtunnel.bench.report import draw
    from rtunnel.bench.results import Report
    from rtunnel.bench.scenario import Settings

    names = SCENARIOS if ALL in scenarios or not scenarios else scenarios
    settings = Settings(against, rounds or (QUICK_ROUNDS if quick else ROUNDS), quick)
    for path in (json_file, report_file):
        # Now, not after an hour.
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"{path}: there is no such folder")
    try:
        if from_file is not None:
            report = Report.load(from_file)
        else:
            report = _measure(tuple(dict.fromkeys(names)), settings, json_file)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    if json_file is not None and from_file is not None:
        report.save(json_file)
    if report_file is not None:
        report_file.write_text(draw(report), encoding="utf-8")
    click.echo(table.markdown(report) if markdown else table.text(report))
    return ExitStatus.ENDED


def _measure(
    names: Sequence[str], settings: Settings, json_file: Path | None
) -> Report:
    """Measure, and save after each scenario: what fails later does not undo it."""
    from rtunnel.bench import environment, run
    from rtunnel.bench.results import Report

    report = Report(environment.describe(_arguments(names, settings)), [])
    with _stopped_by_sigterm(), _progress() as on_step:
        for result in run.run(names, settings, on_step):
            report.results.append(result)
            if json_file is not None:
                report.save(json_file)
    return report


def _arguments(names: Sequence[str], settings: Settings) -> str:
    words = [*((ALL,) if tuple(names) == SCENARIOS else names)]
    words += ["--against", ",".join(settings.against) or "''"]
    words += ["--rounds", str(settings.rounds)]
    return " ".join([*words, *(["--quick"] if settings.quick else [])])


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: nothing that was started stays behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress() -> Iterator[Callable[[str, str, int, int], None]]:
    """Show on stderr what is measured: as bars on a terminal, else line by line."""
    if not sys.stderr.isatty():

        def tell(scenario: str, peer: str, number: int, rounds: int) -> None:
            text = f"{scenario}: round {number + 1} of {rounds}, {peer}"
            click.echo(text, err=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns: tuple[Any, ...] = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        TextColumn("round {task.fields[round]}, {task.fields[peer]:12}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}
        last = ""

        def show(scenario: str, peer: str, number: int, rounds: int) -> None:
            nonlocal last
            if scenario not in tasks:
                if last:
                    progress.update(tasks[last], completed=1, total=1, peer="done")
                    progress.stop_task(tasks[last])
                tasks[scenario] = progress.add_task(
                    scenario, total=rounds, round=1, peer=peer
                )
                last = scenario
            task = tasks[scenario]
            progress.update(task, completed=number, round=number + 1, peer=peer)

        yield show
        if last:
            progress.update(tasks[last], completed=1, total=1, peer="done")
