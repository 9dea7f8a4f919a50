"""Ask a session broker over SSH: a command there, whose output is the answer.

sshd has let the user in, so no password is needed, and none is sent. An authid goes
only where the caller has one from the broker's operator: a command line is seen by
everybody on that machine, and the protocol has no other place for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping
from typing import Any, Final

import rtunnel
from rtunnel.errors import ConnectionLost, RequestTimeout
from x2go_session.broker import plain
from x2go_session.broker.answers import DENIED, Answer, decoded
from x2go_session.broker.over_http import ANSWER_TIMEOUT_S
from x2go_session.broker.requests import Request, Task
from x2go_session.broker.url import BrokerUrl
from x2go_session.errors import (
    BrokerAnswerError,
    BrokerDenied,
    BrokerUnreachable,
    NotSupported,
)

log = logging.getLogger("x2go_session.broker")

# What a shell reports when there is no such command.
NOT_FOUND: Final = 127
MOST_WORDS: Final = 200


class SshBroker:
    """A broker behind an SSH login; the connection stays until `close`.

    `options` are those of `rtunnel.connect`.
    """

    def __init__(
        self,
        url: BrokerUrl,
        *,
        options: Mapping[str, Any],
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._url = url
        self._options = options
        self._timeout_s = timeout_s
        # Protects the tunnel.
        self._lock = threading.Lock()
        self._tunnel: rtunnel.Tunnel | None = None

    def ask(self, request: Request) -> Answer:
        """Return the answer to a request. Blocks; any thread.

        Raises `BrokerUnreachable`, `BrokerDenied`, `BrokerAnswerError`, and what
        `rtunnel.connect` raises; `NotSupported` for setpass.
        """
        if request.task is Task.SET_PASSWORD:
            raise NotSupported(
                "over SSH, the new password would be in a command line that everybody "
                "on the broker's machine can see: use the broker's HTTPS, or passwd(1)"
            )
        command = request.command(self._url.path)
        try:
            output = rtunnel.run_command(
                self._connected().transport, command, self._timeout_s
            )
        except RequestTimeout as error:
            raise BrokerUnreachable(
                f"the broker {self._url} did not answer within {self._timeout_s:g} s"
            ) from error
        except ConnectionLost:
            self.close()
            raise
        log.debug("answered: broker=%s status=%s", self._url, output.exit_status)
        if DENIED.encode() in output.stderr:
            raise BrokerDenied(f"the broker {self._url} denies access to this user")
        if output.exit_status == NOT_FOUND:
            raise BrokerAnswerError(
                f"there is no {self._url.path} at {self._url.address}: the path of the "
                "URL is the broker's program"
            )
        if output.exit_status != 0:
            raise BrokerAnswerError(
                f"the broker {self._url} failed (status {output.exit_status}): "
                f"{_words(output.stderr) or 'it did not say why'}"
            )
        if not output.stdout.strip():
            # As x2gobroker says it.
            raise BrokerDenied(
                f"the broker {self._url} denies access to this user, or wants an authid"
            )
        return plain.parse_answer(decoded(output.stdout), request.task)

    def close(self) -> None:
        """End the connection, if there is one."""
        with self._lock:
            if self._tunnel is not None:
                self._tunnel.close()
            self._tunnel = None

    def _connected(self) -> rtunnel.Tunnel:
        with self._lock:
            if self._tunnel is not None and self._tunnel.transport.is_active():
                return self._tunnel
            if self._tunnel is not None:
                self._tunnel.close()
            self._tunnel = rtunnel.connect(self._url.address, **self._options)
            return self._tunnel


def _words(stderr: bytes) -> str:
    """Return the last line that a program wrote, as it may be shown."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    with contextlib.suppress(IndexError):
        return "".join(c if c.isprintable() else "?" for c in lines[-1])[:MOST_WORDS]
    return ""
