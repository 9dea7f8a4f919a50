"""The broker as a command that an SSH login runs: the same answers as plain HTTP.

The user is who has logged in: sshd has seen to that. The command may run as another
user, who owns the broker's files, by sudo(8), which tells who called it.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import replace

from x2go_session.broker import plain
from x2go_session.broker.answers import CONNECTED, Answer
from x2go_session.broker.requests import Request, Task
from x2go_session.broker.server.broker import Broker
from x2go_session.broker.server.errors import LoginRefused
from x2go_session.broker.server.login import Credentials


def logged_in() -> str:
    """Return the name of the user who has logged in.

    sudo sets SUDO_USER, and lets nobody else do so; who has it from elsewhere has
    nothing but the rights of its own process.
    """
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def client_address() -> str:
    """Return where the login came from, as sshd tells; nothing if there is no sshd."""
    return os.environ.get("SSH_CONNECTION", "").partition(" ")[0]


def answer(broker: Broker, request: Request, user: str, address: str) -> str:
    """Return the answer to a request of a user who has logged in.

    `request.user` is who the client says to be: nobody else will do. Raises
    `LoginRefused`, `PasswordNotChanged`, `StateError`.
    """
    if request.user not in ("", user):
        raise LoginRefused(
            f"the login is that of {user!r}, not of {request.user[:64]!r}"
        )
    given = Credentials(user, address, authid=request.authid)
    answer = Answer(broker.logins.admit(given, known=True))
    match request.task:
        case Task.TEST_CONNECTION:
            return f"{CONNECTED}\n"
        case Task.LIST_SESSIONS:
            answer = replace(answer, profiles=broker.profiles(user, address))
        case Task.SELECT_SESSION:
            selected = broker.select(
                request.profile_id, user, address, login=request.login
            )
            answer = replace(answer, selected=selected)
        case Task.SET_PASSWORD:
            broker.logins.replace_password(given, request.new_password)
            answer = Answer(broker.logins.issue(given))
    return plain.format_answer(answer)
