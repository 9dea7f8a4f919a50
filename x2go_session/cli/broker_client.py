"""`x2go-session broker list`, `select`, `test`, `setpass`: ask a session broker.

No password is an argument: it is asked for, or read from a file.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rtunnel.errors import ConfigError
from x2go_session.cli import connecting
from x2go_session.cli.flags import login_flags
from x2go_session.cli.output import Output

if TYPE_CHECKING:
    from x2go_session.broker import Broker

# A password is a line; whatever is longer is another file.
LONGEST_SECRET: Final = 4096

_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_FLAGS: Final = (
    click.option(
        "--broker-url",
        required=True,
        metavar="URL",
        help="https://[user@]host/plain/ or /json/, ssh://[user@]host/program.",
    ),
    click.option(
        "--password-file", type=_FILE, help="Read the password from its first line."
    ),
    click.option(
        "--authid-file", type=_FILE, help="Read an authid of the broker's operator."
    ),
    click.option(
        "--ca-file", type=_FILE, help="Trust this authority beside the system's."
    ),
)
_COMMANDS: Final[list[click.Command]] = []

Body = Callable[["Broker", Output, dict[str, Any]], None]


def add_to(group: click.Group) -> None:
    """Add these commands to those of `x2go-session broker`."""
    for command in _COMMANDS:
        group.add_command(command)


def _command(name: str, help: str) -> Callable[[Body], Body]:
    """Make a command that gets a broker, what prints, and its own options."""

    def make(function: Body) -> Body:
        def run(**values: Any) -> None:
            connecting.show_log(values["verbosity"], values["quiet"])
            output = Output(as_json=values["as_json"], quiet=values["quiet"])
            with _open(values) as broker:
                function(broker, output, values)

        # The options of the command itself, as click's decorators left them.
        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        wrapped: Callable[..., Any] = run
        for flag in reversed(_FLAGS):
            wrapped = flag(wrapped)
        _COMMANDS.append(click.command(name, help=help)(login_flags(wrapped)))
        return function

    return make


@_command("list", help="List the session profiles that a broker offers.")
def _list(broker: Broker, output: Output, values: dict[str, Any]) -> None:
    profiles = broker.list_profiles()
    for id, profile in profiles.items():
        if output.as_json:
            output.row(
                {
                    "profile": id,
                    "name": profile.name,
                    "type": profile.metatype,
                    "command": profile.command,
                    "hosts": list(profile.host),
                }
            )
        else:
            hosts = ", ".join(profile.host)
            output.line(f"{id}  {profile.name!r}  {profile.metatype}, on {hosts}")
    for error in broker.unreadable.values():
        _warn(f"left out: {error}")
    if not profiles and not output.as_json:
        output.line("no profiles")


@_command("select", help="Have a server chosen for a session.")
@click.argument("profile")
@click.option("--login", default="", metavar="USER", help="User on the server.")
@click.option(
    "--key-file",
    type=_FILE,
    help="Offer a key, and write the one that is to be used here. It is good for "
    "some seconds.",
)
def _select(broker: Broker, output: Output, values: dict[str, Any]) -> None:
    path: Path | None = values["key_file"]
    selected = broker.select(
        values["profile"], login=values["login"], offer_key=path is not None
    )
    has_key = path is not None and selected.private_key is not None
    if path is not None and selected.private_key is not None:
        _write_new(path, selected.private_key)
    session = selected.session.name if selected.session is not None else None
    if output.as_json:
        output.row(
            {
                "server": selected.server,
                "port": selected.port,
                "key_file": str(path) if has_key else None,
                "session": session,
            }
        )
        return
    port = f" port {selected.port}" if selected.port else ""
    output.line(f"server: {selected.server}{port}")
    if has_key:
        output.line(f"key: {path}")
    if session is not None:
        output.line(f"to resume: {session}")


@_command("test", help="See that a broker works, and takes user and password.")
def _test(broker: Broker, output: Output, values: dict[str, Any]) -> None:
    broker.test()
    if output.as_json:
        output.row({"broker": str(broker.url), "user": broker.user, "works": True})
    else:
        output.line(f"the broker works: {broker.url}, for {broker.user}")


@_command("setpass", help="Change the password, where the broker can.")
@click.option(
    "--new-password-file", type=_FILE, help="Read the new one from its first line."
)
def _setpass(broker: Broker, output: Output, values: dict[str, Any]) -> None:
    if values["new_password_file"] is not None:
        new = _first_line(values["new_password_file"])
    elif sys.stdin.isatty():
        new = getpass.getpass("New password: ")
        if new != getpass.getpass("Again: "):
            raise click.UsageError("these are two passwords; nothing was changed")
    else:
        raise click.UsageError("there is nobody to ask: use --new-password-file")
    if not new:
        raise click.UsageError("an empty password is none; nothing was changed")
    broker.setpass(new)
    if output.as_json:
        output.row({"broker": str(broker.url), "user": broker.user, "changed": True})
    else:
        output.line(f"the broker took the new password of {broker.user}")


def _open(values: dict[str, Any]) -> Broker:
    from x2go_session.broker import open_broker
    from x2go_session.broker.url import BrokerUrl

    options = connecting.options_of({**values, "port": None})
    password = options.pop("password", None)
    in_url = BrokerUrl.parse(values["broker_url"]).password
    if in_url is not None:
        _warn("others here can see a password in a command line: use --password-file")
        password = in_url
    if values["password_file"] is not None:
        password = _first_line(values["password_file"])
    authid: Path | None = values["authid_file"]
    return open_broker(
        values["broker_url"],
        user=options.pop("user"),
        password=password,
        authid=_first_line(authid) if authid is not None else None,
        ca_file=values["ca_file"],
        ssh=options,
    )


def _warn(text: str) -> None:
    click.echo(text, err=True)


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline(LONGEST_SECRET + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if len(line) > LONGEST_SECRET:
        raise ConfigError(f"the first line of {path} is too long to be a secret")
    return line.rstrip("\r\n")


def _write_new(path: Path, text: str) -> None:
    """Write a file that was not there, and that only this user can read."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(number, "w") as file:
        file.write(text)
