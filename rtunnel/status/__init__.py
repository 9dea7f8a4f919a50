"""What a running process tells about itself, and who shows it.

import rtunnel

started = rtunnel.status.now()

def source():
    return rtunnel.status.of_process(
        "open", started, (rtunnel.status.of_tunnel("home", tunnel),)
    )

with rtunnel.status.StatusServer(source, "127.0.0.1", 9200):
    tunnel.wait()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rtunnel.status.model import ConnectionInfo as ConnectionInfo
    from rtunnel.status.model import ListenerRow as ListenerRow
    from rtunnel.status.model import ProcessStatus as ProcessStatus
    from rtunnel.status.model import now as now
    from rtunnel.status.model import of_process as of_process
    from rtunnel.status.model import of_tunnel as of_tunnel
    from rtunnel.status.readiness import SelfTests as SelfTests
    from rtunnel.status.runtime import published as published
    from rtunnel.status.runtime import running as running
    from rtunnel.status.server import StatusServer as StatusServer

# Where each name is defined; loaded when it is first used. Those who only tell
# something load the model, and not a server.
_HOME: Final = {
    "ConnectionInfo": "rtunnel.status.model",
    "ListenerRow": "rtunnel.status.model",
    "ProcessStatus": "rtunnel.status.model",
    "SelfTests": "rtunnel.status.readiness",
    "StatusServer": "rtunnel.status.server",
    "now": "rtunnel.status.model",
    "of_process": "rtunnel.status.model",
    "of_tunnel": "rtunnel.status.model",
    "published": "rtunnel.status.runtime",
    "running": "rtunnel.status.runtime",
}

__all__ = [
    "ConnectionInfo",
    "ListenerRow",
    "ProcessStatus",
    "SelfTests",
    "StatusServer",
    "now",
    "of_process",
    "of_tunnel",
    "published",
    "running",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
