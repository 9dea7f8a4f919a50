"""Ask an ssh-agent for its keys and for signatures (draft-ietf-sshm-ssh-agent).

One request, one answer, over a Unix socket:

    uint32 length, byte type, contents

An agent that asks its owner before it signs answers late, so there is no time limit
on an answer; closing the agent from another thread ends the wait.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from rtunnel.errors import ProtocolError
from rtunnel.wire import Reader, string, u32

_REQUEST_IDENTITIES: Final = 11
_IDENTITIES_ANSWER: Final = 12
_SIGN_REQUEST: Final = 13
_SIGN_RESPONSE: Final = 14
ANSWER_BYTES_MAX: Final = 256 * 1024  # AGENT_MAX_LEN of OpenSSH
KEYS_MAX: Final = 2048  # MAX_AGENT_IDENTITIES of OpenSSH
# Without a flag, an agent signs with SHA-1 for an RSA key (RFC 8332).
_FLAGS: Final = {"rsa-sha2-256": 2, "rsa-sha2-512": 4}
_CUT_SHORT: Final = "the agent sent an answer that is cut short"


class AgentError(Exception):
    """The agent cannot be reached, or refused, or answered nonsense."""


@dataclass(frozen=True, slots=True)
class AgentKey:
    """A public key, or certificate, that the agent can sign for."""

    blob: bytes
    comment: str


class Agent:
    """A connection to an agent; not for several threads at once."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises `AgentError`."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(str(path))
        except OSError as error:
            self._sock.close()
            raise AgentError(f"no agent answers at {path}: {error.strerror}") from error

    def keys(self) -> list[AgentKey]:
        """Return the agent's keys, in its order. Raises `AgentError`."""
        answer = self._ask(_REQUEST_IDENTITIES, b"", _IDENTITIES_ANSWER)
        try:
            count = answer.u32()
            if count > KEYS_MAX:
                raise AgentError(f"the agent says it has {count} keys")
            return [
                AgentKey(answer.string(), answer.string().decode("utf-8", "replace"))
                for _ in range(count)
            ]
        except ProtocolError:
            raise AgentError(_CUT_SHORT) from None

    def sign(self, blob: bytes, data: bytes, algorithm: str) -> bytes:
        """Return the signature (RFC 4253, section 6.6) by a key of the agent.

        Blocks as long as the agent asks its owner. Raises `AgentError`.
        """
        request = string(blob) + string(data) + u32(_FLAGS.get(algorithm, 0))
        try:
            return self._ask(_SIGN_REQUEST, request, _SIGN_RESPONSE).string()
        except ProtocolError:
            raise AgentError(_CUT_SHORT) from None

    def close(self) -> None:
        """Close the connection; a wait in another thread ends with `AgentError`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, kind: int, contents: bytes, expected: int) -> Reader:
        try:
            size = (1 + len(contents)).to_bytes(4)
            self._sock.sendall(size + bytes([kind]) + contents)
            length = int.from_bytes(self._read(4))
            if not 1 <= length <= ANSWER_BYTES_MAX:
                raise AgentError(f"the agent sent an answer of {length} bytes")
            answer = self._read(length)
        except OSError as error:
            raise AgentError(f"the agent is gone: {error.strerror}") from error
        if answer[0] != expected:
            raise AgentError("the agent refused")
        return Reader(answer[1:])

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._sock.recv(size - len(data))
            if not chunk:
                raise AgentError("the agent closed the connection")
            data += chunk
        return bytes(data)
