"""`rtunnel doctor`: what would run here, and why not something faster."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import subprocess
from importlib import metadata
from typing import TYPE_CHECKING, Final

import click

from rtunnel._version import __version__
from rtunnel.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from rtunnel.backend import BackendReport

SSH_TIMEOUT_S: Final = 10


@click.command(short_help="Tell what would run here, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def doctor(as_json: bool) -> ExitStatus:
    """Tell what would run here, and why.

    Shows each backend with the reason why it can run or cannot, the libcrypto that
    was found and whether its known-answer test passed, and the versions that matter
    in a report of a fault. Connects nowhere.

    \b
    Exit status: 0 if the engine would run, or the backend that RTUNNEL_BACKEND names;
    9 if only a slower one can, or what was named cannot.
    """
    from rtunnel import backend

    report = backend.report()
    versions = _versions()
    if as_json:
        facts = {"versions": versions, "backend": dataclasses.asdict(report)}
        click.echo(json.dumps(facts, indent=2))
    else:
        _show(versions, report)
    best = backend.BACKENDS[0] if report.requested == backend.AUTO else report.requested
    return ExitStatus.ENDED if report.chosen == best else ExitStatus.BACKEND


def _versions() -> dict[str, str]:
    return {
        "rtunnel": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "paramiko": _installed("paramiko"),
        "cryptography": _installed("cryptography"),
        "openssh": _openssh(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _openssh() -> str:
    """Return what `ssh -V` says: not needed here, but what one compares with."""
    ssh = shutil.which("ssh")
    if ssh is None:
        return "not installed"
    try:
        done = subprocess.run(
            [ssh, "-V"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SSH_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{ssh} does not run: {error}"
    return done.stderr.strip()


def _show(versions: dict[str, str], report: BackendReport) -> None:
    for name, version in versions.items():
        click.echo(f"{name:14} {version}")
    crypto = report.libcrypto
    click.echo(
        f"{'libcrypto':14} "
        + (f"{crypto.path} ({crypto.version})" if crypto else "none that can be used")
    )
    click.echo()
    for state in report.states:
        mark = (
            click.style("yes", fg="green")
            if state.available
            else click.style("no ", fg="red")
        )
        click.echo(f"{state.name:10} {mark} {state.reason}")
    click.echo()
    if report.chosen is None:
        click.secho(f"Nothing would run here: {report.reason}", fg="red", bold=True)
    else:
        chosen = click.style(report.chosen, bold=True)
        click.echo(f"Here runs: {chosen} ({report.reason})")
