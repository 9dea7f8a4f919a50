"""What a session broker is asked, in the forms of the wire. Pure.

HTTP has the fields of a form in the body of a POST, in the order of x2goclient:

    task=listsessions&user=U&password=P&authid=A
    task=selectsession&sid=S&user=U&password=P&authid=A

JSON has the same with `listprofiles` and `profile-id`. SSH has options of a command:

    x2gobroker --user U --authid A --task selectsession --sid S
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

# A public key of RSA 16384 in percent-encoding, and then some.
MOST_REQUEST_BYTES: Final = 32 * 1024
MOST_FIELDS: Final = 32
# Both names are known by both forms of x2gobroker's answers.
LIST_PROFILES: Final = "listprofiles"


class Task(Enum):
    """What can be asked. `LOGIN` asks for nothing: whether the password is right."""

    LOGIN = ""
    LIST_SESSIONS = "listsessions"
    SELECT_SESSION = "selectsession"
    SET_PASSWORD = "setpass"
    TEST_CONNECTION = "testcon"


@dataclass(frozen=True, slots=True)
class Request:
    """A request; empty texts are left out, but for user and password.

    `login` is the user on the server, if it is another. `pubkey` is offered: a line of
    authorized_keys(5).
    """

    task: Task
    user: str = ""
    password: str = field(default="", repr=False)
    authid: str = field(default="", repr=False)
    profile_id: str = ""
    login: str = ""
    pubkey: str = field(default="", repr=False)
    new_password: str = field(default="", repr=False)

    def form(self, *, json: bool = False) -> bytes:
        """Return the body of a POST (application/x-www-form-urlencoded)."""
        task, sid = self.task.value, "sid"
        if json:
            sid = "profile-id"
            if self.task is Task.LIST_SESSIONS:
                task = LIST_PROFILES
        fields = {
            "task": task,
            sid: self.profile_id,
            "newpass": self.new_password,
            "login": self.login,
            "pubkey": self.pubkey,
        }
        given = {name: text for name, text in fields.items() if text}
        given |= {"user": self.user, "password": self.password}
        if self.authid:
            given["authid"] = self.authid
        return urlencode(given, quote_via=quote).encode("ascii")

    @classmethod
    def from_form(cls, body: bytes) -> Request:
        """Read the body of a POST; of several fields of a name, the first.

        Raises ValueError for what is no form, has too many fields, or another task.
        """
        pairs = parse_qsl(
            body.decode("utf-8"),
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=MOST_FIELDS,
        )
        return cls.from_fields(dict(reversed(pairs)))

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Request:
        """Return what the fields of a form say. Raises ValueError for another task."""
        task = fields.get("task", "")
        return cls(
            Task.LIST_SESSIONS if task == LIST_PROFILES else Task(task),
            fields.get("user", ""),
            fields.get("password", ""),
            fields.get("authid", ""),
            fields.get("sid", fields.get("profile-id", "")),
            fields.get("login", ""),
            fields.get("pubkey", ""),
            fields.get("newpass", ""),
        )

    def command(self, program: str) -> str:
        """Return the command line for sh(1) on a broker's machine.

        No password is in it: the processes of that machine show it to everybody. Raises
        ValueError for a request that has one to set, and for `LOGIN`.
        """
        if self.new_password or self.task in (Task.LOGIN, Task.SET_PASSWORD):
            raise ValueError(f"no command can ask for this: {self.task.name}")
        words = [program, "--user", self.user]
        if self.authid:
            words += ["--authid", self.authid]
        words += ["--task", self.task.value]
        if self.profile_id:
            words += ["--sid", self.profile_id]
        if self.login:
            words += ["--login", self.login]
        return shlex.join(words)
