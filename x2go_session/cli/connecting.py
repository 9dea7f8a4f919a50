"""The connection of a command: flags to options, and questions to the user."""

from __future__ import annotations

import contextlib
import getpass
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

import rtunnel
from x2go_session.control import Control

_LEVELS: Final = (logging.WARNING, logging.INFO, logging.DEBUG)


def options_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return what `rtunnel.connect` gets from the flags."""
    given = [*values["ssh_options"]]
    if values["family"]:
        given.append(f"AddressFamily={values['family']}")
    options: dict[str, Any] = {
        "user": values["user"],
        "port": values["port"],
        "identity_files": values["identity_files"],
        "jump": values["jump"],
        "config_file": values["config_file"],
        "compression": values["compression"] or None,
        "ssh_options": given,
    }
    if sys.stdin.isatty():
        options |= {
            "password": _secret,
            "passphrase": _secret,
            "host_key_prompt": _host_key_is_right,
        }
    return options


def connect(values: dict[str, Any]) -> rtunnel.Tunnel:
    """Connect as the flags say. Raises what `rtunnel.connect` raises."""
    return rtunnel.connect(values["destination"], **options_of(values))


@contextmanager
def control(values: dict[str, Any]) -> Iterator[Control]:
    """A control session for the time of a block."""
    with connect(values) as tunnel:
        yield Control(tunnel)


def show_log(verbosity: int, quiet: bool) -> None:
    """Write log records to stderr: warnings, and more for each -v."""
    level = logging.ERROR if quiet else _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    for name in ("rtunnel", "x2go_session"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level if verbosity else logging.ERROR)
    # Reported here in better words.
    logging.getLogger("rtunnel.ssh.paramiko").setLevel(logging.CRITICAL)


def _secret(question: str) -> str | None:
    with contextlib.suppress(EOFError):
        return getpass.getpass(f"{question.rstrip(': ')}: ")
    return None


def _host_key_is_right(question: Any) -> bool:
    return click.confirm(
        f"The host key of {question.host} is not known.\n"
        f"{question.key_type} key fingerprint: {question.fingerprint}\n"
        f"Is it right, and shall it be added to {question.known_hosts}?",
        err=True,
    )
