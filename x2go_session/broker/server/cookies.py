"""Authids: cookies that stand for a password that was shown before.

A dynamic cookie is good for one request, whose answer has the next one; a static one
stays until its time is over. Either is bound to its user, and to the address that the
password came from unless told otherwise. The time counts from that password.

A preset cookie is another thing: a secret that all clients of a site are installed
with, and that must come with the first request, beside the password.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from collections.abc import Callable

from x2go_session.broker.server.errors import LoginRefused
from x2go_session.broker.server.state import State, StoredCookie


class Cookies:
    """Gives out cookies, and takes them back. Any thread; blocks.

    Raises `StateError`.
    """

    def __init__(
        self,
        state: State,
        *,
        lifetime_s: float,
        rotate: bool = True,
        bind_address: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._lifetime_s = lifetime_s
        self._rotate = rotate
        self._bind_address = bind_address
        self._clock = clock

    def issue(self, user: str, address: str) -> str:
        """Return a new cookie for a user who has just shown a password."""
        return self._add(user, address, self._clock())

    def exchange(self, cookie: str, user: str, address: str) -> str:
        """Take a cookie for a login; return the one for the next.

        Raises `LoginRefused` for one that is unknown, used, too old, or another's. A
        dynamic one is used up in any case.
        """
        digest = digest_of(cookie)
        look = self._state.take_cookie if self._rotate else self._state.find_cookie
        found = look(digest)
        if found is None:
            raise LoginRefused("the authid is unknown, or was used before")
        if not hmac.compare_digest(found.username.encode(), user.encode()):
            raise LoginRefused("the authid is that of another user")
        if self._bind_address and found.address != address:
            raise LoginRefused("the authid was given out at another address")
        if found.expires <= self._clock():
            raise LoginRefused("the authid is too old: the password is needed again")
        if not self._rotate:
            return cookie
        return self._add(user, address, found.authenticated)

    def forget(self, user: str) -> None:
        """Make all cookies of a user worthless."""
        self._state.forget_cookies(user)

    def _add(self, user: str, address: str, authenticated: float) -> str:
        # uuid4 has 122 bits of the system's random numbers; clients expect its form.
        cookie = str(uuid.uuid4())
        self._state.add_cookie(
            StoredCookie(
                digest_of(cookie),
                user,
                address,
                authenticated,
                authenticated + self._lifetime_s,
            )
        )
        return cookie


def digest_of(cookie: str) -> str:
    """Return what is stored of a cookie."""
    return hashlib.sha256(cookie.encode()).hexdigest()


def is_preset(cookie: str, preset: str) -> bool:
    """Say whether this is the preset cookie, in a time that tells nothing of it."""
    return hmac.compare_digest(digest_of(cookie), digest_of(preset))
