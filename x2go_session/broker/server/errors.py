"""What a broker refuses, and what it cannot do."""

from __future__ import annotations

from x2go_session.errors import X2GoError


class BrokerServerError(X2GoError):
    """Base of what a broker raises."""


class LoginRefused(BrokerServerError):
    """The user is not who he says, or may not come in."""


class TooManyFailures(LoginRefused):
    """So many were wrong that nothing is looked at for a while: `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many failures; nothing is looked at for {wait_s:.0f} s")
        self.wait_s = wait_s


class PasswordNotChanged(BrokerServerError):
    """The password cannot be changed here, or may not be what was asked for."""


class StateError(BrokerServerError):
    """The state of the broker cannot be read or written."""


class ServerError(BrokerServerError):
    """An X2Go server did not do what it was asked to."""
