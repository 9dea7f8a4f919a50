"""The gateway of this project, as a process of its own.

    python -m rtunnel.bench.gateway AUTHORIZED_KEYS

prints its port and the line for known_hosts, as JSON, and serves until it is killed.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from rtunnel.bench.load import MOST_HELD
from rtunnel.gateway import Gateway
from rtunnel.gateway.settings import Rights


def main(authorized_keys: Path) -> None:
    """Serve for ever."""
    rights = Rights(channels_max=MOST_HELD)
    with Gateway(authorized_keys=[authorized_keys], rights=rights) as gateway:
        known_hosts = gateway.known_hosts_line()
        print(json.dumps({"port": gateway.port, "known_hosts": known_hosts}))
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
