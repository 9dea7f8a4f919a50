"""Everybody is who he says: where the X2Go servers ask for passwords, and only they."""

from __future__ import annotations

from x2go_session.broker.server.errors import PasswordNotChanged


class NoAuthenticator:
    """Lets everybody in."""

    asks_password = False

    def verify(self, user: str, password: str) -> bool:
        return True

    def change_password(self, user: str, new: str) -> None:
        raise PasswordNotChanged("this broker has no passwords")
