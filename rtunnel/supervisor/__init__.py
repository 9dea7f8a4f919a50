"""Keep tunnels up: many servers, from one TOML file or from code.

    with rtunnel.Supervisor("tunnels.toml") as supervisor:
        supervisor.wait()

Who does what: `config` is the schema of the file, `supervisor` has the servers and
what changes while they run, `server` keeps one connection, `port` one tunnel on it;
`pacing` says how long to wait, `logins` how many may log in at once, `health` whether
a target works, `watch` that the file changed; `checking` looks for mistakes beforehand.
"""

from rtunnel.supervisor.checking import check
from rtunnel.supervisor.config import (
    Config,
    HealthConfig,
    ServerConfig,
    TunnelConfig,
    load,
)
from rtunnel.supervisor.pacing import Pace
from rtunnel.supervisor.supervisor import Supervisor

__all__ = [
    "Config",
    "HealthConfig",
    "Pace",
    "ServerConfig",
    "Supervisor",
    "TunnelConfig",
    "check",
    "load",
]
