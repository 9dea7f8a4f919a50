"""Lets a user in, or not: by password or authid, with limits against guessing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from x2go_session.broker.server.attempts import Attempts
from x2go_session.broker.server.authentication import Authenticator
from x2go_session.broker.server.cookies import Cookies, is_preset
from x2go_session.broker.server.errors import LoginRefused

log = logging.getLogger("x2go_session.broker")

# RFC 4616 has 255 for either; whatever is longer is an attack on a hash function.
MOST_LETTERS: Final = 255

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows: a password, or an authid; and from where."""

    user: str
    address: str
    password: str = field(default="", repr=False)
    authid: str = field(default="", repr=False)


class Logins:
    """Decides who comes in. Any thread; blocks.

    Raises `LoginRefused`, `TooManyFailures`, `StateError`.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        cookies: Cookies,
        attempts: Attempts,
        preset: str | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._cookies = cookies
        self._attempts = attempts
        self._preset = preset

    @property
    def asks_password(self) -> bool:
        """Whether users are who they say."""
        return self._authenticator.asks_password

    def admit(self, given: Credentials, *, known: bool = False) -> str | None:
        """Let a user in; return the authid for the next request, or None for none.

        An authid that is no good is not made good by a password beside it. `known`
        users have shown who they are elsewhere (SSH).
        """
        if not self.asks_password and self._preset is None and not known:
            return None
        return self._counted(given, lambda: self._admit(given, known))

    def verify(self, given: Credentials) -> None:
        """See that the password is right, whatever authid there is."""
        self._counted(given, lambda: self._by_password(given))

    def change_password(self, given: Credentials, new: str) -> None:
        """Give a user another password, who shows the old one.

        All authids of the user are worthless then. Raises `PasswordNotChanged`, too.
        """
        self.verify(given)
        self.replace_password(given, new)

    def replace_password(self, given: Credentials, new: str) -> None:
        """Give another password to a user who was just verified, by whatever."""
        self._authenticator.change_password(given.user, new)
        self._cookies.forget(given.user)
        log.info("password changed: user=%r address=%s", given.user, given.address)

    def issue(self, given: Credentials) -> str:
        """Return an authid for a user who was just verified."""
        return self._cookies.issue(given.user, given.address)

    def _counted(self, given: Credentials, look: Callable[[], Found]) -> Found:
        try:
            if max(map(len, (given.user, given.password, given.authid))) > MOST_LETTERS:
                raise LoginRefused("user, password or authid is too long")
            self._attempts.begin(given.user, given.address)
            found = look()
        except LoginRefused as error:
            log.warning(
                "refused: user=%r address=%s reason=%s",
                *(given.user[:MOST_LETTERS], given.address, error),
            )
            raise
        self._attempts.succeeded(given.user, given.address)
        return found

    def _admit(self, given: Credentials, known: bool) -> str | None:
        preset = self._preset is not None and is_preset(given.authid, self._preset)
        if given.authid and not preset:
            return self._cookies.exchange(given.authid, given.user, given.address)
        if self._preset is not None and not preset:
            raise LoginRefused("the authid that all clients have is missing")
        if not self.asks_password and not known:
            return given.authid
        if not known:
            self._by_password(given)
        return self.issue(given)

    def _by_password(self, given: Credentials) -> None:
        if not given.user or not self._authenticator.verify(given.user, given.password):
            raise LoginRefused("wrong user or password")
