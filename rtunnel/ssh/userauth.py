"""The authentication protocol of one connection, client side (RFC 4252, RFC 4256).

This says one request at a time and returns the server's answer; which requests are
worth making is decided in `rtunnel.ssh.auth`.

paramiko has such a client, too. This one exists because that one forgets the list of
methods that comes with a refusal, always signs (so that a locked key asks for its
passphrase before the server was asked about the key), and calls the person who
answers keyboard-interactive questions on the transport's thread.

Theory of operation. The transport's thread calls `_handler_table[type](message)` of
its `auth_handler` for messages 50 to 79. Here, every one goes into `_inbox`, but for
SUCCESS: what follows it may already be compressed, so the transport must know before
it reads on. The caller's thread sends a request and takes answers out of the inbox.
When the transport ends it calls `abort()`, which puts `None` there.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import paramiko
from paramiko.auth_handler import AuthHandler

from rtunnel.errors import AuthenticationFailed, ConnectError

log = logging.getLogger(__name__)

MSG_SERVICE_REQUEST: Final = 5
MSG_SERVICE_ACCEPT: Final = 6
MSG_USERAUTH_REQUEST: Final = 50
MSG_USERAUTH_FAILURE: Final = 51
MSG_USERAUTH_SUCCESS: Final = 52
MSG_USERAUTH_BANNER: Final = 53
# 60 to 79 depend on the method (RFC 4252, section 6).
MSG_USERAUTH_PK_OK: Final = 60
MSG_USERAUTH_PASSWD_CHANGEREQ: Final = 60
MSG_USERAUTH_INFO_REQUEST: Final = 60
MSG_USERAUTH_INFO_RESPONSE: Final = 61

# A server may ask others (PAM, LDAP) before it answers: LoginGraceTime of sshd_config.
ANSWER_TIMEOUT_S: Final = 120.0
PROMPTS_MAX: Final = 100  # of one request; OpenSSH's server sends at most 100


class Disconnected(ConnectError):
    """The connection ended in the middle of authentication."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said to a request.

    Either it let us in, or it lists the methods that can continue. With `partial`,
    the request was right and something more is wanted (RFC 4252, section 5.1).
    """

    success: bool
    partial: bool = False
    methods: tuple[str, ...] = ()


class _Receiver(AuthHandler):
    """What the transport has for its `auth_handler`; hands answers to `UserAuth`."""

    # `authenticated` and `banner` are written on the transport's thread, and before
    # what came with them is in the inbox.

    def __init__(self, transport: paramiko.Transport, user: str) -> None:
        super().__init__(transport)
        self.username = user
        self.inbox: queue.SimpleQueue[tuple[int, paramiko.Message] | None] = (
            queue.SimpleQueue()
        )
        self._table: dict[int, Callable[[paramiko.Message], None]] = {
            MSG_SERVICE_ACCEPT: partial(self._put, MSG_SERVICE_ACCEPT),
            MSG_USERAUTH_FAILURE: partial(self._put, MSG_USERAUTH_FAILURE),
            MSG_USERAUTH_SUCCESS: self._success,
            MSG_USERAUTH_BANNER: self._show_banner,
            MSG_USERAUTH_PK_OK: partial(self._put, MSG_USERAUTH_PK_OK),
        }

    @property
    def _handler_table(self) -> dict[int, Callable[[paramiko.Message], None]]:
        return self._table

    def abort(self) -> None:
        self.inbox.put(None)

    def _put(self, kind: int, message: paramiko.Message) -> None:
        self.inbox.put((kind, message))

    def _success(self, message: paramiko.Message) -> None:
        self.authenticated = True
        transport: Any = self.transport  # a weak reference: no cycle
        transport._auth_trigger()
        self._put(MSG_USERAUTH_SUCCESS, message)

    def _show_banner(self, message: paramiko.Message) -> None:
        text = message.get_string()
        self.banner = text  # type: ignore[assignment]  # bytes, as paramiko has it
        log.info("the server says: %s", printable(text))


class UserAuth:
    """Makes requests for one user; from one thread at a time.

    Every request blocks for the server's answer, and raises `Disconnected` when the
    connection ends and `AuthenticationFailed` when the server breaks the protocol or
    does not answer in time.
    """

    def __init__(
        self,
        transport: paramiko.Transport,
        user: str,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._transport: Any = transport
        self._user = user
        self._timeout_s = timeout_s
        self._receiver = _Receiver(transport, user)
        self._inbox = self._receiver.inbox

    # Requests.

    def begin(self) -> None:
        """Ask for the service "ssh-userauth" (RFC 4253, section 10)."""
        self._transport.auth_handler = self._receiver
        request = paramiko.Message()
        request.add_byte(bytes([MSG_SERVICE_REQUEST]))
        request.add_string("ssh-userauth")
        self._send(request)
        self._expect(self._deadline(), MSG_SERVICE_ACCEPT)

    def none(self) -> Answer:
        """Ask to be let in as we are; the refusal lists the methods (section 5.2)."""
        self._send(self._request("none"))
        return self._plain_answer()

    def would_accept(self, algorithm: str, blob: bytes) -> Answer | None:
        """Ask about a public key without signing; None if it would be accepted.

        RFC 4252, section 7: the server repeats algorithm and key in its answer.
        """
        self._send(self._key_request(algorithm, blob, signing=False))
        answer = self._answer(MSG_USERAUTH_PK_OK)
        if isinstance(answer, Answer):
            return answer
        if (answer.get_text(), answer.get_string()) != (algorithm, blob):
            raise AuthenticationFailed("the server accepted a key that was not offered")
        return None

    def publickey(
        self, algorithm: str, blob: bytes, sign: Callable[[bytes], bytes]
    ) -> Answer:
        """Show a public key and a signature made with its private half (section 7).

        What is signed: string session identifier, then the request itself.
        """
        request = self._key_request(algorithm, blob, signing=True)
        signed = paramiko.Message()
        signed.add_string(self._transport.session_id)
        signed.add_bytes(request.asbytes())
        request.add_string(sign(signed.asbytes()))
        self._send(request)
        return self._plain_answer()

    def password(self, password: str) -> Answer:
        """Show a password (section 8)."""
        request = self._request("password")
        request.add_boolean(False)
        request.add_string(password)
        self._send(request)
        answer = self._answer(MSG_USERAUTH_PASSWD_CHANGEREQ)
        if isinstance(answer, Answer):
            return answer
        raise AuthenticationFailed(
            "the password has expired: log in with ssh to set a new one"
        )

    def keyboard_interactive(
        self,
        answer: Callable[[str, str, tuple[tuple[str, bool], ...]], Sequence[str]],
    ) -> Answer:
        """Answer the server's questions, in as many rounds as it likes (RFC 4256).

        `answer(title, instructions, prompts)` is called on this thread.
        """
        request = self._request("keyboard-interactive")
        request.add_string("")  # language
        request.add_string("")  # submethods
        self._send(request)
        while True:
            said = self._answer(MSG_USERAUTH_INFO_REQUEST)
            if isinstance(said, Answer):
                return said
            title = printable(said.get_string())
            instructions = printable(said.get_string())
            said.get_string()  # language
            count = said.get_int()
            if count > PROMPTS_MAX:
                raise AuthenticationFailed(f"the server asks {count} questions at once")
            prompts = tuple(
                (printable(said.get_string()), said.get_boolean()) for _ in range(count)
            )
            answers = answer(title, instructions, prompts)
            if len(answers) != count:
                raise AuthenticationFailed(
                    f"the server asked {count} questions and {len(answers)} answers "
                    "were given"
                )
            response = paramiko.Message()
            response.add_byte(bytes([MSG_USERAUTH_INFO_RESPONSE]))
            response.add_int(count)
            for text in answers:
                response.add_string(text)
            self._send(response)

    # Wire.

    def _request(self, method: str) -> paramiko.Message:
        message = paramiko.Message()
        message.add_byte(bytes([MSG_USERAUTH_REQUEST]))
        message.add_string(self._user)
        message.add_string("ssh-connection")
        message.add_string(method)
        return message

    def _key_request(
        self, algorithm: str, blob: bytes, *, signing: bool
    ) -> paramiko.Message:
        message = self._request("publickey")
        message.add_boolean(signing)
        message.add_string(algorithm)
        message.add_string(blob)
        return message

    def _send(self, message: paramiko.Message) -> None:
        try:
            self._transport._send_user_message(message)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise Disconnected(f"the connection was lost: {error}") from error

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    def _expect(self, deadline: float, *kinds: int) -> tuple[int, paramiko.Message]:
        try:
            received = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AuthenticationFailed(
                f"the server did not answer within {self._timeout_s:.0f} s"
            ) from None
        if received is None:
            self._inbox.put(None)  # for whoever asks next
            raise Disconnected("the server closed the connection")
        if received[0] not in kinds:
            raise AuthenticationFailed(
                f"the server sent message {received[0]} out of turn"
            )
        return received

    def _answer(self, *more: int) -> Answer | paramiko.Message:
        kind, message = self._expect(
            self._deadline(), MSG_USERAUTH_SUCCESS, MSG_USERAUTH_FAILURE, *more
        )
        if kind == MSG_USERAUTH_SUCCESS:
            return Answer(True)
        if kind == MSG_USERAUTH_FAILURE:
            methods = printable(message.get_string()).split(",")
            accepted = message.get_boolean()
            return Answer(False, accepted, tuple(filter(None, methods)))
        return message

    def _plain_answer(self) -> Answer:
        answer = self._answer()
        assert isinstance(answer, Answer)  # no other kind was allowed
        return answer


def printable(data: bytes) -> str:
    """Return a server's text without what could steer a terminal (RFC 4252, 5.4)."""
    text = data.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
