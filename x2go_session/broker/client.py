"""The client of a session broker: log in, see the profiles, have a server chosen.

    with open_broker("https://me@broker.example.org/json/", password=ask) as broker:
        profiles = broker.list_profiles()
        selected = broker.select("office")

A broker gives an authid with each answer, which is good for one request and stands for
the password: so the password is sent once. An authid that the broker takes no more (it
was restarted, or an answer was lost) costs one more login, unseen.
"""

from __future__ import annotations

import dataclasses
import getpass
import ipaddress
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import rtunnel
from x2go_session.broker.answers import ALL_DOWN, NO_SERVER, Answer, SelectedSession
from x2go_session.broker.over_http import ANSWER_TIMEOUT_S, HttpBroker
from x2go_session.broker.over_ssh import SshBroker
from x2go_session.broker.requests import Request, Task
from x2go_session.broker.url import BrokerUrl
from x2go_session.errors import BrokerDenied, NoServerAvailable, ProfileError
from x2go_session.profiles.profile import Profile

log = logging.getLogger("x2go_session.broker")

# The secret, or who is asked for it, once.
Secret = str | Callable[[str], str | None]
# What python-x2go offers its keys with: they are for sessions, which need no more.
KEY_OPTIONS: Final = "no-X11-forwarding,no-pty,no-user-rc"


class Carrier(Protocol):
    """What brings a request to a broker, and its answer back."""

    def ask(self, request: Request) -> Answer:
        """Return the answer to a request."""

    def close(self) -> None:
        """End what is open."""


class Broker:
    """A session broker, for one user. Methods block, and may be called by any thread.

    All raise `BrokerUnreachable`, `BrokerDenied` and `BrokerAnswerError`; over SSH what
    `rtunnel.connect` raises, too. `unreadable` has the profiles that the last
    `list_profiles` left out, by id, and why.
    """

    def __init__(
        self,
        url: BrokerUrl,
        carrier: Carrier,
        *,
        user: str,
        password: Secret | None = None,
        authid: str | None = None,
    ) -> None:
        self.url = url
        self.user = user
        self.unreadable: dict[str, ProfileError] = {}
        self._carrier = carrier
        self._password = password
        # From the broker's operator; it goes with the password.
        self._preset = authid or ""
        # One request at a time: each needs the authid of the one before. Protects what
        # is below.
        self._lock = threading.Lock()
        self._authid = ""

    def __repr__(self) -> str:
        return f"<Broker {self.url} user={self.user}>"

    def connect(self) -> None:
        """Log in: see that the broker is there, and takes user and password."""
        # An SSH broker knows no request without a task.
        self._ask(
            Task.TEST_CONNECTION if self.url.scheme == "ssh" else Task.LOGIN,
        )

    def test(self) -> None:
        """See that the broker works, for this user (`testcon`)."""
        self._ask(Task.TEST_CONNECTION)

    def list_profiles(self) -> dict[str, Profile]:
        """Return the user's session profiles, by id.

        One that makes no sense hides no other: it is left out, and in `unreadable`.
        """
        answer = self._ask(Task.LIST_SESSIONS)
        profiles = {}
        unreadable = {}
        for id, values in (answer.profiles or {}).items():
            try:
                profiles[id] = Profile.from_values(id, values)
            except ProfileError as error:
                log.warning("left out: %s", error)
                unreadable[id] = error
        self.unreadable = unreadable
        return profiles

    def select(
        self, profile_id: str, *, login: str = "", offer_key: bool = True
    ) -> SelectedSession:
        """Have a server chosen for a profile; return how to come in there.

        `login` is the user on the server, if it is another. A broker that speaks JSON
        is offered a key made for this; if it takes it, that is the `private_key`. Keys
        of brokers are gone from the server soon (20 s): connect at once.

        Raises `NoServerAvailable`.
        """
        fields = {"profile_id": profile_id, "login": login}
        key = None
        if offer_key and self.url.is_json:
            key = rtunnel.KeyPair.generate()
            comment = f"{login or self.user}@127.0.0.1"
            fields["pubkey"] = f"{KEY_OPTIONS} {key.public_line} {comment}"
        selected = self._ask(Task.SELECT_SESSION, **fields).selected
        assert selected is not None, "asked for, and read"
        if selected.server == NO_SERVER:
            raise NoServerAvailable(
                f"the broker {self.url} has no server for the profile {profile_id!r}: "
                "list the profiles; is it one of them?"
            )
        if selected.server == ALL_DOWN:
            raise NoServerAvailable(
                f"no server of the profile {profile_id!r} is up, says the broker "
                f"{self.url}"
            )
        if key is not None and selected.key_accepted:
            return dataclasses.replace(selected, private_key=key.private_text)
        return selected

    def setpass(self, new_password: str) -> None:
        """Change the user's password, where the broker can.

        x2gobroker says yes and does nothing. Raises `NotSupported` over SSH.
        """
        # An authid would stand for the password, which is to be proven here.
        with self._lock:
            self._authid = ""
            self._exchange(Task.SET_PASSWORD, {"new_password": new_password})
            self._password = new_password

    def close(self) -> None:
        """End what is open, and forget the password."""
        self._carrier.close()
        with self._lock:
            self._authid = self._preset = ""
            self._password = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, task: Task, **fields: str) -> Answer:
        with self._lock:
            if not self._authid or self.url.scheme == "ssh":
                return self._exchange(task, fields)
            try:
                return self._exchange(task, fields)
            except BrokerDenied:
                self._authid = ""
                if self._password is None:
                    raise
            log.info("logging in again: the broker did not take its authid")
            return self._exchange(task, fields)

    def _exchange(self, task: Task, fields: Mapping[str, str]) -> Answer:
        """Ask once; under the lock."""
        over_ssh = self.url.scheme == "ssh"
        authid, self._authid = self._authid, ""
        answer = self._carrier.ask(
            Request(
                task,
                self.user,
                password="" if authid or over_ssh else self._secret(),
                authid=authid or self._preset,
                **fields,
            )
        )
        # Over SSH, it is used only where it must be: others there see it.
        if answer.authid is not None and (self._preset or not over_ssh):
            self._authid = answer.authid
        return answer

    def _secret(self) -> str:
        if callable(self._password):
            self._password = self._password(f"Password of {self.user} at {self.url}")
        return self._password or ""


def open_broker(
    url: str,
    *,
    user: str | None = None,
    password: Secret | None = None,
    authid: str | None = None,
    ca_file: str | Path | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
    ssh: Mapping[str, Any] | None = None,
) -> Broker:
    """Return the client of a broker; the first request connects.

    `url` is as in `x2go_session.broker.url`; `user` and `password` win over what it
    says, and the user is otherwise the one of this machine. `password` may be a
    function that is asked for it, when it is needed. `authid` is one that the broker's
    operator gave. `ca_file` has certificates of authorities to trust beside those of
    the system. `timeout_s` holds for a whole request. `ssh` has more options of
    `rtunnel.connect`, for an SSH broker: there, the password is that of the login.

    Never blocks. Raises `InvalidAddress`, `ConfigError`.
    """
    where = BrokerUrl.parse(url)
    who = user or where.user or getpass.getuser()
    secret = password if password is not None else where.password
    where = dataclasses.replace(where, user=who, password=None)
    carrier: Carrier
    if where.scheme == "ssh":
        options = {"user": who, "password": secret, **(ssh or {})}
        carrier = SshBroker(where, options=options, timeout_s=timeout_s)
    else:
        if not where.is_encrypted and not _is_here(where.host):
            log.warning("the password goes over the network as it is: use https")
        carrier = HttpBroker(
            where, ca_file=Path(ca_file) if ca_file else None, timeout_s=timeout_s
        )
    return Broker(where, carrier, user=who, password=secret, authid=authid)


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
