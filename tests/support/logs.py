"""The log of this process, which commands that tests call set up for themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGES = ("rtunnel", "x2go_session", "paramiko")


def _loggers() -> list[logging.Logger]:
    known = logging.getLogger().manager.loggerDict
    names = [name for name in known if name.split(".")[0] in PACKAGES]
    return [logging.getLogger(), *map(logging.getLogger, names)]


@contextmanager
def logging_as_before() -> Iterator[None]:
    """Take handlers, levels and propagation back to what they were."""
    before = {
        logger: (logger.level, logger.propagate, list(logger.handlers))
        for logger in _loggers()
    }
    yield
    for logger in _loggers():
        level, propagate, handlers = before.get(logger, (logging.NOTSET, True, []))
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
