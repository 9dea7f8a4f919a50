"""`rtunnel open`: what `ssh -N -R` does, by the same flags."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from rtunnel.addresses import (
    Bind,
    Destination,
    Target,
    TcpBind,
    parse_destination,
    parse_forward,
)
from rtunnel.cli import exit_status, logs, terminal
from rtunnel.cli.ending import ToldToEnd, told_to_end_by_signals
from rtunnel.cli.exit_status import ExitStatus
from rtunnel.cli.status_command import serve_option
from rtunnel.cli.visitor_options import rules_for, visitor_options
from rtunnel.errors import ConnectionLost, InvalidAddress
from rtunnel.services import Service

if TYPE_CHECKING:
    from rtunnel import Listener, Tunnel
    from rtunnel.status.model import ProcessStatus

# How often --tui draws.
PICTURE_PERIOD_S: Final = 1.0


def _read_by(
    parse: Callable[[str], object],
) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback of click that reads a parameter, each one if there are more."""

    def read(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            return tuple(map(parse, value)) if parameter.multiple else parse(value)
        except InvalidAddress as error:
            raise click.BadParameter(str(error), context, parameter) from None

    return read


@click.command(
    "open",
    short_help="Open reverse tunnels and keep them until told to end.",
    epilog="\b\n" + exit_status.describe(),
)
@click.option(
    "-R",
    "forwards",
    metavar="[BIND:]PORT:HOST:HOSTPORT",
    callback=_read_by(parse_forward),
    multiple=True,
    required=True,
    help="Listen on the server; take connections to host:hostport from here. Also "
    "port:unix:/path, /remote.sock:host:port, *:port:..., [::1]:port:...; port alone "
    "for a SOCKS proxy; port:folder:/path, port:exec:command, port:app:module:object. "
    "Port 0 lets the server choose. May be given more than once: all are opened, or "
    "none.",
)
@click.option("-p", "port", type=click.IntRange(1, 65535), help="Port of the server.")
@click.option("-l", "user", metavar="USER", help="User on the server.")
@click.option(
    "-i", "identity_files", metavar="KEY", multiple=True, help="Private key to use."
)
@click.option(
    "-J",
    "jump",
    metavar="[USER@]HOST[:PORT],...",
    help="Connect through these servers.",
)
@click.option(
    "-F",
    "config_file",
    metavar="FILE",
    help="Read this instead of ~/.ssh/config; 'none' reads no file.",
)
@click.option(
    "-o",
    "ssh_options",
    metavar="OPTION=VALUE",
    multiple=True,
    help="An option as ssh_config(5) has them.",
)
@click.option(
    "-b", "bind_address", metavar="ADDRESS", help="Connect from this address."
)
@click.option("-c", "ciphers", metavar="CIPHERS", help="Ciphers, the best one first.")
@click.option("-m", "macs", metavar="MACS", help="MACs, the best one first.")
@click.option("-4", "family", flag_value="inet", help="Connect by IPv4 only.")
@click.option("-6", "family", flag_value="inet6", help="Connect by IPv6 only.")
@click.option("-C", "compression", is_flag=True, help="Compress; the engine cannot.")
@visitor_options
@serve_option
@click.option(
    "--tui", "live_view", is_flag=True, help="Show live what the tunnels are doing."
)
@click.option("-v", "verbosity", count=True, help="Say more; up to -vvv.")
@logs.format_option
@click.option("-q", "quiet", is_flag=True, help="No warnings, only errors.")
@click.option(
    *("-N", "-T", "-n", "-x", "-a"),
    "as_always",
    is_flag=True,
    help="Taken and ignored: no command, terminal, stdin, X11 or agent is forwarded.",
)
@click.argument("destination", callback=_read_by(parse_destination))
def open_tunnels(
    *,
    forwards: tuple[tuple[Bind, Target | Service], ...],
    destination: Destination,
    user: str | None,
    port: int | None,
    identity_files: tuple[str, ...],
    jump: str | None,
    config_file: str | None,
    ssh_options: tuple[str, ...],
    bind_address: str | None,
    ciphers: str | None,
    macs: str | None,
    family: str | None,
    compression: bool,
    status_on: tuple[str, int] | None,
    live_view: bool,
    verbosity: int,
    log_format: logs.LogFormat,
    quiet: bool,
    as_always: bool,
    **rules: Any,
) -> ExitStatus:
    """Open reverse tunnels through the SSH server DESTINATION.

    The flags mean what they mean in ssh(1): put `rtunnel open` where `ssh -N` stood.
    One line per forward is printed when all of them listen. Then this stays until
    SIGINT or SIGTERM, or until the connection is lost.

    \b
        rtunnel open -R 8080:localhost:3000 user@host
    """
    logs.show(verbosity, quiet, log_format)
    listening = rules_for(forwards, rules)
    flags = {
        "AddressFamily": family,
        "BindAddress": bind_address,
        "Ciphers": ciphers,
        "MACs": macs,
    }
    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    options = {
        "user": user,
        "port": port,
        "identity_files": identity_files,
        "jump": jump,
        "config_file": config_file,
        "compression": compression or None,
        "ssh_options": (*given, *ssh_options),
    }
    try:
        with told_to_end_by_signals():
            _hold(destination, options, forwards, listening, status_on, live_view)
    except ToldToEnd:
        return ExitStatus.ENDED
    return ExitStatus.CONNECTION_LOST


def _hold(
    destination: Destination,
    options: dict[str, Any],
    forwards: tuple[tuple[Bind, Target | Service], ...],
    rules: list[dict[str, Any]],
    status_on: tuple[str, int] | None,
    live_view: bool,
) -> None:
    """Connect, open all forwards, say so, and stay while the connection stands."""
    import rtunnel
    from rtunnel.status.readiness import SelfTests
    from rtunnel.status.runtime import published

    if terminal.is_there():
        options |= {
            "password": terminal.ask_secret,
            "passphrase": terminal.ask_secret,
            "interactive": terminal.answer_prompts,
            "host_key_prompt": terminal.confirm_host_key,
        }
    telling = _Telling(destination)
    with (
        published(telling.status, status_on, SelfTests(telling.tunnels)) as server,
        rtunnel.connect(destination, **options) as tunnel,
    ):
        telling.tunnel = tunnel
        # All or nothing, as with ExitOnForwardFailure=yes: a refused forward ends the
        # connection, and with it those that were opened before.
        listeners = [
            tunnel.listen(bind, to=target, **rule)
            for (bind, target), rule in zip(forwards, rules, strict=True)
        ]
        for listener, (_, target) in zip(listeners, forwards, strict=True):
            click.echo(f"listening on {_place(destination, listener)} -> {target}")
        telling.opened = True
        if server is not None:
            click.echo(f"status on {server.url}")
        sys.stdout.flush()
        try:
            if live_view:
                telling.show_until_the_end(tunnel)
            tunnel.wait()
        except ConnectionLost as lost:
            where = f"the connection to {destination.host} was lost"
            raise ConnectionLost(f"{where}: {lost}", lost.code) from lost


class _Telling:
    """What `open` tells of itself, from before the connection on."""

    def __init__(self, destination: Destination) -> None:
        from rtunnel.status.model import now

        self._destination = str(destination)
        self._started = now()
        # Set by the main thread, read by any.
        self.tunnel: Tunnel | None = None
        self.opened = False  # all of the forwards

    def status(self) -> ProcessStatus:
        """Return what is true now. Never blocks. Any thread."""
        from rtunnel.status import model

        where, tunnel = self._destination, self.tunnel
        if tunnel is None:
            connection = model.ConnectionInfo(where, where, "connecting")
        else:
            connection = model.of_tunnel(where, tunnel, destination=where)
        ready = self.opened and model.works(connection)
        return model.of_process("open", self._started, (connection,), ready=ready)

    def tunnels(self) -> list[tuple[str, Tunnel]]:
        """Return the tunnel under its name, once it stands."""
        return [] if self.tunnel is None else [(self._destination, self.tunnel)]

    def show_until_the_end(self, tunnel: Tunnel) -> None:
        """Show it live until the tunnel ends; raises what `Tunnel.wait` raises."""
        from rtunnel.cli.status_view import live

        with live(traffic=False) as show:
            show([self.status()])
            while not tunnel.wait(PICTURE_PERIOD_S):
                show([self.status()])


def _place(destination: Destination, listener: Listener) -> str:
    """Return where a listener can be reached: the server, and what it listens on."""
    bind = listener.bind
    if isinstance(bind, TcpBind):
        bind = TcpBind(bind.address, listener.port)  # port 0: what the server chose
    return f"{destination.host}:{bind}"
