"""SSH reverse tunnels: one connection, many server ports, each to its own handler.

    import rtunnel

    with rtunnel.connect("user@host") as tunnel:
        web = tunnel.listen(8080, to="localhost:3000")
        tunnel.wait()

These are the public names; what is imported from elsewhere in this package may change
without notice. Each is loaded when it is first used, so `import rtunnel` costs little.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Unpack

from rtunnel import errors
from rtunnel._version import __version__

# A library is silent until its user sets up logging.
logging.getLogger("rtunnel").addHandler(logging.NullHandler())

if TYPE_CHECKING:
    from rtunnel import aio as aio
    from rtunnel import pump as pump
    from rtunnel import status as status
    from rtunnel import toml_file as toml_file
    from rtunnel.addresses import Destination
    from rtunnel.ssh.command import CommandOutput as CommandOutput
    from rtunnel.ssh.command import put_file as put_file
    from rtunnel.ssh.command import run_command as run_command
    from rtunnel.ssh.options import ConnectOptions
    from rtunnel.ssh.transport import Transport as Transport
    from rtunnel.stats import ListenerStats as ListenerStats
    from rtunnel.stats import RelayStats as RelayStats
    from rtunnel.stats import TunnelStats as TunnelStats
    from rtunnel.subsystem import KeyPair as KeyPair
    from rtunnel.subsystem import SubsystemServer as SubsystemServer
    from rtunnel.supervisor import Supervisor as Supervisor
    from rtunnel.tunnel import Listener as Listener
    from rtunnel.tunnel import Tunnel as Tunnel
    from rtunnel.tunnel import Visitor as Visitor

# Where each public name that is loaded at its first use is defined.
_HOME: Final = {
    "CommandOutput": "rtunnel.ssh.command",
    "KeyPair": "rtunnel.subsystem",
    "Listener": "rtunnel.tunnel",
    "ListenerStats": "rtunnel.stats",
    "RelayStats": "rtunnel.stats",
    "SubsystemServer": "rtunnel.subsystem",
    "Supervisor": "rtunnel.supervisor",
    "Transport": "rtunnel.ssh.transport",
    "Tunnel": "rtunnel.tunnel",
    "TunnelStats": "rtunnel.stats",
    "Visitor": "rtunnel.tunnel",
    "put_file": "rtunnel.ssh.command",
    "run_command": "rtunnel.ssh.command",
}
_MODULES: Final = ("aio", "pump", "status", "toml_file")

__all__ = [
    "CommandOutput",
    "KeyPair",
    "Listener",
    "ListenerStats",
    "RelayStats",
    "SubsystemServer",
    "Supervisor",
    "Transport",
    "Tunnel",
    "TunnelStats",
    "Visitor",
    "__version__",
    "aio",
    "connect",
    "errors",
    "pump",
    "put_file",
    "run_command",
    "status",
    "toml_file",
]


def connect(
    destination: str | Destination, **options: Unpack[ConnectOptions]
) -> Tunnel:
    """Connect to an SSH server and return the tunnel that stands on the connection.

    `destination` is `user@host:port`, an `ssh://` URL or a host alias of
    ssh_config(5), which is read as ssh(1) reads it. The options are the fields of
    `rtunnel.ssh.options.Options`, which win over it.

    The host key is checked against known_hosts, and an unknown one is refused; then
    agent, keys and passwords are tried. Blocks until the connection stands; call from
    any thread. Raises `ConnectError` (`HostUnreachable`, `HostKeyError`,
    `AuthenticationFailed`), `ConfigError`, `InvalidAddress` and `BackendUnavailable`.
    """
    from rtunnel.ssh.connect import open_transport
    from rtunnel.tunnel import Tunnel

    transport = open_transport(destination, **options)
    try:
        return Tunnel(transport)
    except BaseException:
        transport.close()
        raise


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
