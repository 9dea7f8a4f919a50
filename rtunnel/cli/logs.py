"""Let the package's log be seen on stderr, as much of it as `-v` and `-q` ask for."""

from __future__ import annotations

import logging
from typing import Final

# What -v and -vv add.
_LEVELS: Final = (logging.WARNING, logging.INFO, logging.DEBUG)
# paramiko logs every packet at DEBUG, and with a traceback what is reported here in
# better words: it is heard from the third -v on. The second name is that under which
# rtunnel.Transport lets it log.
_PARAMIKO: Final = ("paramiko", "rtunnel.ssh.paramiko")
_WITH_PARAMIKO: Final = 3
_NEVER: Final = logging.CRITICAL + 1


def show(verbosity: int, quiet: bool) -> None:
    """Write log records to stderr from now on: warnings, and more for each `-v`."""
    level = logging.ERROR if quiet else _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    handler = logging.StreamHandler()
    detailed = level <= logging.DEBUG
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s %(name)s [%(threadName)s] %(message)s"
            if detailed
            else "rtunnel: %(message)s"
        )
    )
    logger = logging.getLogger("rtunnel")
    logger.addHandler(handler)
    logger.setLevel(level)
    for name in _PARAMIKO:
        paramiko = logging.getLogger(name)
        paramiko.propagate = False
        paramiko.addHandler(handler)
        heard = verbosity >= _WITH_PARAMIKO and not quiet
        paramiko.setLevel(logging.DEBUG if heard else _NEVER)
