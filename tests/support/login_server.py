"""A scripted SSH server that asks for passwords and answers, as sshd does with PAM.

sshd itself cannot be used for these: without PAM it checks the passwords of the
machine's own accounts.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_PARTIALLY_SUCCESSFUL, AUTH_SUCCESSFUL


class LoginServer(paramiko.ServerInterface):
    """Serve logins on 127.0.0.1; what was tried is in `tried`.

    `steps` are the methods that a user must pass one after the other, each a list of
    methods of which one is enough. `questions` are rounds of keyboard-interactive
    prompts with the answers that are right.
    """

    def __init__(
        self,
        host_key: Path,
        *,
        steps: Sequence[str] = ("password",),
        password: str = "right",
        questions: Sequence[Sequence[tuple[str, bool, str]]] = (),
        keys: Sequence[bytes] = (),
        hang_up_after: int | None = None,
    ) -> None:
        self.steps = list(steps)
        self.password = password
        self.questions = list(questions)
        self.keys = keys
        self.hang_up_after = hang_up_after
        self.tried: list[str] = []
        self.transports: list[paramiko.Transport] = []
        self._round = 0
        self._host_key = paramiko.PKey.from_path(host_key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> LoginServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for transport in self.transports:
            transport.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(sock)
            transport.add_server_key(self._host_key)
            self.transports.append(transport)
            transport.start_server(event=threading.Event(), server=self)

    # What paramiko asks.

    def get_allowed_auths(self, username: str) -> str:
        return self.steps[0] if self.steps else ""

    def check_auth_none(self, username: str) -> int:
        return AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        return self._judge("password", password == self.password)

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return self._judge("publickey", key.asbytes() in self.keys)

    def check_auth_interactive(
        self, username: str, submethods: str
    ) -> int | paramiko.InteractiveQuery:
        if not self.questions:
            return self._judge("keyboard-interactive", False)
        self._round = 0
        return self._ask()

    def check_auth_interactive_response(
        self, responses: list[str]
    ) -> int | paramiko.InteractiveQuery:
        right = [answer for _, _, answer in self.questions[self._round]]
        self._round += 1
        if responses != right:
            return self._judge("keyboard-interactive", False)
        if self._round < len(self.questions):
            return self._ask()
        return self._judge("keyboard-interactive", True)

    def _ask(self) -> paramiko.InteractiveQuery:
        prompts = [(text, echo) for text, echo, _ in self.questions[self._round]]
        return paramiko.InteractiveQuery("Title", "Instructions", *prompts)

    def _judge(self, method: str, right: bool) -> int:
        self.tried.append(method)
        if self.hang_up_after is not None and len(self.tried) >= self.hang_up_after:
            for transport in self.transports:
                transport.close()
        if not right or method not in self.steps[0].split(","):
            return AUTH_FAILED
        del self.steps[0]
        return AUTH_PARTIALLY_SUCCESSFUL if self.steps else AUTH_SUCCESSFUL
