"""`rtunnel gateway`: an SSH server for reverse tunnels, and nothing else."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rtunnel.cli import exit_status, logs
from rtunnel.cli.ending import ToldToEnd, told_to_end_by_signals
from rtunnel.cli.exit_status import ExitStatus
from rtunnel.cli.status_command import serve_option
from rtunnel.cli.systemd import Notifier
from rtunnel.errors import ConfigError

if TYPE_CHECKING:
    from rtunnel.gateway import Gateway
    from rtunnel.gateway.config_file import GatewayConfig

log = logging.getLogger("rtunnel.gateway")

LISTEN: Final = ("127.0.0.1", 2222)
AUTHORIZED_KEYS: Final = Path("~/.ssh/authorized_keys")
# The keys that ssh(1) takes by itself, best first; their owner is who runs this.
OWN_KEYS: Final = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")
HOST_KEY: Final = "host_key"


@click.command(
    "gateway",
    short_help="Serve reverse tunnels: an SSH server, and nothing else.",
    epilog="\b\n" + exit_status.describe(),
)
@click.option(
    "--listen",
    metavar="ADDR:PORT",
    help="Where SSH clients connect to; *:PORT is every address. Else 127.0.0.1:2222.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the host key is kept; made if it does not exist. Else "
    "~/.local/state/rtunnel, or where XDG_STATE_HOME says.",
)
@click.option(
    "--authorized-keys",
    "key_files",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    help="Keys that may log in, as sshd has them; %u in its path is the user's name. "
    "May be given again. Else ~/.ssh/authorized_keys, or the public keys beside it.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Users, rights, groups and limits: TOML. What is given here wins over it.",
)
@serve_option
@click.option("-v", "verbosity", count=True, help="Say more; up to -vvv.")
@logs.format_option
@click.option("-q", "quiet", is_flag=True, help="No warnings, only errors.")
def gateway(
    *,
    listen: str | None,
    state: Path | None,
    key_files: tuple[Path, ...],
    config_file: Path | None,
    status_on: tuple[str, int] | None,
    verbosity: int,
    log_format: logs.LogFormat,
    quiet: bool,
) -> ExitStatus:
    """Serve reverse tunnels to ssh(1), rtunnel and every other SSH client.

    Clients log in with a key and get ports of this machine, by default those of its
    loopback interface from 1024 on. There is no shell, no command, no SFTP and no way
    into the network behind, unless a configuration file switches it on. Runs until
    SIGINT or SIGTERM.

    \b
        rtunnel gateway
        ssh -N -R 8080:localhost:3000 -p 2222 127.0.0.1
    """
    from rtunnel.gateway.config_file import GatewayConfig, load, read_place

    logs.show(verbosity, quiet, log_format)
    if not quiet and not verbosity:
        # Who comes and goes is of interest, as with sshd; each visitor is not.
        log.setLevel(logging.INFO)
        logging.getLogger("rtunnel.gateway.visitors").setLevel(logging.WARNING)
    config = GatewayConfig() if config_file is None else load(config_file)
    reload_asked = threading.Event()
    others: dict[int, Callable[[], None]] = {}
    if config_file is not None:
        others[signal.SIGHUP] = reload_asked.set
    try:
        with (
            told_to_end_by_signals(others),
            _serving(
                read_place(listen) if listen is not None else config.listen or LISTEN,
                _host_key(state, config),
                _keys(key_files, config),
                config,
                status_on or config.status,
            ) as serving,
        ):
            while reload_asked.wait():
                reload_asked.clear()
                assert config_file is not None
                _reload(serving, config_file, key_files)
    except ToldToEnd:
        return ExitStatus.ENDED
    return ExitStatus.UNEXPECTED


@contextmanager
def _serving(
    listen: tuple[str, int],
    host_key: Path,
    keys: list[str | Path],
    config: GatewayConfig,
    status_on: tuple[str, int] | None,
) -> Iterator[Gateway]:
    """Serve while the block runs, and say so."""
    from rtunnel.gateway import Gateway
    from rtunnel.status.runtime import published

    notifier = Notifier()
    options: dict[str, Any] = {"authorized_keys": keys, "host_key": host_key}
    gateway = Gateway(listen, **options, **config.options())
    with gateway, published(gateway.status, status_on) as server:
        _tell(gateway, listen, keys, config)
        if server is not None:
            click.echo(f"status on {server.url}")
        sys.stdout.flush()
        try:
            notifier.ready(f"port {gateway.port}")
            yield gateway
        finally:
            notifier.stopping()


def _reload(gateway: Gateway, config_file: Path, key_files: tuple[Path, ...]) -> None:
    """Take the file over as it is now; a mistake in it changes nothing."""
    from rtunnel.gateway.config_file import load

    try:
        config = load(config_file)
        gateway.reload(authorized_keys=_keys(key_files, config), **config.options())
    except ConfigError as error:
        log.error("not taken over: %s", error)


def _tell(
    gateway: Gateway,
    listen: tuple[str, int],
    keys: list[str | Path],
    config: GatewayConfig,
) -> None:
    host = listen[0] or "*"
    place = f"[{host}]:{gateway.port}" if ":" in host else f"{host}:{gateway.port}"
    click.echo(f"gateway on {place}")
    click.echo(f"host key {gateway.fingerprint}")
    who = [str(path) for path in keys]
    if config.users:
        who.append(f"{len(config.users)} users of the configuration")
    click.echo(f"who may log in: {', '.join(who)}")
    reach = "127.0.0.1" if host in ("*", "0.0.0.0", "::") else host
    click.echo(f"to try it: ssh -N -R 8080:localhost:3000 -p {gateway.port} {reach}")


def _host_key(state: Path | None, config: GatewayConfig) -> Path:
    if state is None and config.host_key is not None:
        return config.host_key
    if state is None:
        home = os.environ.get("XDG_STATE_HOME", "")
        base = Path(home) if os.path.isabs(home) else Path("~/.local/state")
        state = base.expanduser() / "rtunnel"
    return state / HOST_KEY


def _keys(given: tuple[Path, ...], config: GatewayConfig) -> list[str | Path]:
    """Return the files of keys that are good for every name.

    Without any, and without users: those of who runs this.
    """
    if given:
        return list(given)
    if config.authorized_keys is not None:
        return list(config.authorized_keys)
    if config.users:
        return []
    path = AUTHORIZED_KEYS.expanduser()
    if path.exists():
        return [path]
    own = [path.parent / name for name in OWN_KEYS if (path.parent / name).exists()]
    if not own:
        raise ConfigError(
            f"nobody could log in: there is no {AUTHORIZED_KEYS}, and no key of yours "
            "beside it; make one with ssh-keygen -t ed25519, or name a file with "
            "--authorized-keys"
        )
    return list(own)
