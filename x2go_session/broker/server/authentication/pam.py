"""Passwords of the system, by PAM: by a service of /etc/pam.d, `x2go-broker`.

Most modules let root alone ask about any user.
"""

from __future__ import annotations

from typing import Final

import pam  # type: ignore[import-untyped]

from x2go_session.broker.server.errors import PasswordNotChanged

DEFAULT_SERVICE: Final = "x2go-broker"


class PamAuthenticator:
    """Verifies by PAM: the password, and that the account may be used now."""

    asks_password = True

    def __init__(self, service: str = DEFAULT_SERVICE) -> None:
        self._service = service

    def verify(self, user: str, password: str) -> bool:
        if not user or not password or "\0" in user + password:
            return False
        return bool(
            pam.authenticate(user, password, service=self._service, resetcreds=False)
        )

    def change_password(self, user: str, new: str) -> None:
        raise PasswordNotChanged(
            "passwords of the system are not changed here: use passwd(1) on a server"
        )
