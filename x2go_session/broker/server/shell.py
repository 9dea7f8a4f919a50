"""The broker as a command that an SSH login runs: the same answers as plain HTTP.

The user is who has logged in: sshd has seen to that. The command may run as another
user, who owns the broker's files, by sudo(8), which tells who called it.
"""

from __future__ import annotations

import os
import pwd

from x2go_session.broker.server import answers
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


def answer(
    broker: Broker,
    task: str,
    *,
    user: str,
    address: str,
    claimed: str = "",
    authid: str = "",
    profile_id: str = "",
    login: str = "",
    new_password: str = "",
) -> str:
    """Return the answer to a task for a user who has logged in.

    `claimed` is who the client says to be: nobody else will do. Raises `LoginRefused`,
    `PasswordNotChanged`, `StateError`.
    """
    if claimed not in ("", user):
        raise LoginRefused(f"the login is that of {user!r}, not of {claimed!r}")
    given = Credentials(user, address, authid=authid)
    next_authid = broker.logins.admit(given, known=True)
    if task == "testcon":
        return f"{answers.CONNECTED}\n"
    text = answers.plain_granted(next_authid)
    if task == "listsessions":
        text += answers.plain_profiles(broker.profiles(user, address))
    elif task == "selectsession":
        text += answers.plain_selection(
            broker.select(profile_id, user, address, login=login)
        )
    elif task == "setpass":
        broker.logins.replace_password(given, new_password)
    return text
