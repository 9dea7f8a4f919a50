"""`rtunnel verify`: is a configuration for `rtunnel run` right?"""

from __future__ import annotations

from pathlib import Path

import click

from rtunnel.cli import exit_status
from rtunnel.cli.exit_status import ExitStatus
from rtunnel.errors import ConfigError


@click.command(
    "verify",
    short_help="Check a configuration file for `rtunnel run`.",
    epilog="\b\n" + exit_status.describe(),
)
@click.argument("file", type=click.Path(path_type=Path))
def verify(file: Path) -> ExitStatus:
    """Check FILE, a configuration for `rtunnel run`; connect to nobody.

    Every mistake is a line on stderr, with the line of the file that it is in. What
    ssh_config says about the servers is looked at, too.

    \b
        rtunnel verify tunnels.toml
    """
    from rtunnel.supervisor import check, load

    try:
        config = load(file)
        mistakes = check(file, config)
    except ConfigError as error:
        mistakes = str(error).splitlines()
    for mistake in mistakes:
        click.echo(mistake, err=True)
    if mistakes:
        return ExitStatus.CONFIGURATION
    servers, tunnels = len(config.servers), config.tunnel_count
    click.echo(
        f"{file} is right: {servers} server{'s' * (servers != 1)}, "
        f"{tunnels} tunnel{'s' * (tunnels != 1)}"
    )
    return ExitStatus.ENDED
