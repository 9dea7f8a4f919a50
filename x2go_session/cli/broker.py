"""`x2go-session broker`: the broker as a server, and as a command of an SSH login."""

from __future__ import annotations

import contextlib
import logging
import signal
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from rtunnel.errors import ConfigError
from x2go_session.broker.requests import LIST_PROFILES, Request, Task
from x2go_session.cli.connecting import show_log
from x2go_session.cli.holding import ToldToEnd

if TYPE_CHECKING:
    from x2go_session.broker.server.broker import Broker

TASKS: Final = (*(task.value for task in Task if task.value), LIST_PROFILES)


@click.group()
def broker() -> None:
    """Ask a session broker; or be one, that tells users which sessions they have."""


def _config(function: Any) -> Any:
    return click.option(
        "--config",
        required=True,
        multiple=True,
        callback=_the_only_one,
        type=click.Path(path_type=Path, dir_okay=False),
        help="The settings of the broker, in TOML.",
    )(function)


def _the_only_one(
    context: click.Context, parameter: click.Parameter, given: tuple[Path, ...]
) -> Path:
    """Refuse a second one: what runs for another user adds words of that user."""
    if len(given) > 1:
        raise click.BadParameter("it may be given once", context, parameter)
    return given[0]


def _verbosity(function: Any) -> Any:
    return click.option("-v", "verbosity", count=True, help="Say more; twice: all.")(
        function
    )


@broker.command()
@_config
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Serve HTTPS: the certificate and its chain, in PEM.",
)
@click.option(
    "--key", type=click.Path(path_type=Path, dir_okay=False), help="Its private key."
)
@click.option(
    "--trust-proxies",
    default="",
    metavar="ADDRESSES",
    help="Whose word counts on who a client is (X-Forwarded-For).",
)
@_verbosity
def serve(
    config: Path,
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    trust_proxies: str,
    verbosity: int,
) -> None:
    """Serve a broker over HTTP, or HTTPS with a certificate."""
    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key belong together")
    # uvicorn answers what runs, then raises the signal again for us.
    before = signal.signal(signal.SIGTERM, _end)
    try:
        show_log(max(verbosity, 1), False)
        serving = _module("serve")
        with contextlib.closing(_open(config)) as opened:
            serving.serve(
                opened,
                host,
                port,
                certificate=certificate,
                key=key,
                proxies=trust_proxies,
                ready=lambda url: click.echo(f"serving {url}plain/ and {url}json/"),
            )
    except KeyboardInterrupt:
        raise ToldToEnd from None
    finally:
        signal.signal(signal.SIGTERM, before)


@broker.command()
@_config
@click.option("--task", required=True, type=click.Choice(TASKS))
@click.option("--user", "claimed", default="", help="Who the client says to be.")
@click.option("--login", default="", help="The user on the server, if another.")
@click.option("--authid", "--auth-cookie", "--next-authid", default="")
@click.option("--sid", "--profile-id", "profile_id", default="", help="A profile.")
@click.option("--newpass", default="", help="The password to be, of setpass.")
# What a client of x2gobroker says, and what has no meaning here.
@click.option("--event", expose_value=False, hidden=True)
@click.option("--backend", expose_value=False, hidden=True)
@_verbosity
def ssh(
    config: Path,
    task: str,
    claimed: str,
    login: str,
    authid: str,
    profile_id: str,
    newpass: str,
    verbosity: int,
) -> None:
    """Answer one request of a user who has logged in by SSH."""
    show_log(verbosity, False)
    shell = _module("shell")
    request = Request(
        Task.LIST_SESSIONS if task == LIST_PROFILES else Task(task),
        user=claimed,
        authid=authid,
        profile_id=profile_id,
        login=login,
        new_password=newpass,
    )
    opened = _open(config)
    try:
        click.echo(
            shell.answer(opened, request, shell.logged_in(), shell.client_address()),
            nl=False,
        )
        # What earlier calls have left; this one's is due later.
        opened.keys.remove_due()
    finally:
        opened.close()


@broker.command()
@_config
@_verbosity
def sweep(config: Path, verbosity: int) -> None:
    """Remove one-shot keys that are due; for a timer, where no `serve` runs."""
    show_log(verbosity, False)
    opened = _open(config)
    try:
        click.echo(f"removed: {opened.keys.remove_due()}")
    finally:
        opened.close()


@broker.command()
@_config
def verify(config: Path) -> None:
    """Look for mistakes in settings and profiles."""
    opened = _open(config)
    try:
        click.echo(f"{config}: ok, {opened.number_of_profiles()} profiles")
    finally:
        opened.close()


def _open(config: Path) -> Broker:
    settings = _module("settings").read_settings(config)
    opened: Broker = _module("broker").open_broker(settings)
    return opened


def _module(name: str) -> Any:
    """Import a part of the broker, which needs more than the session layer does."""
    try:
        return import_module(f"x2go_session.broker.server.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a broker needs {error.name}: pip install 'rtunnel[broker]'"
        ) from None


def _end(number: int, frame: FrameType | None) -> None:
    logging.getLogger("x2go_session.broker").info("told to end: signal=%d", number)
    raise ToldToEnd
