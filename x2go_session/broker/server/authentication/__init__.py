"""Who a user is: one small interface, and what stands behind it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rtunnel.errors import ConfigError

if TYPE_CHECKING:
    from x2go_session.broker.server.settings import AuthenticationSettings


class Authenticator(Protocol):
    """Verifies passwords. Any thread; blocks."""

    asks_password: bool
    """Whether there is anything to verify."""

    def verify(self, user: str, password: str) -> bool:
        """Say whether the password is the user's, in a time that does not tell why not.

        Raises `ConfigError` if it cannot be asked.
        """

    def change_password(self, user: str, new: str) -> None:
        """Give a user another password. Raises `PasswordNotChanged`."""


def open_authenticator(settings: AuthenticationSettings) -> Authenticator:
    """Return what the settings name. Raises `ConfigError`."""
    # Each needs a library of its own.
    made: Authenticator
    module = _module(settings.mechanism)
    match settings.mechanism:
        case "htpasswd":
            made = module.HtpasswdAuthenticator(Path(settings.file or ""))
        case "pam":
            made = module.PamAuthenticator(settings.service)
        case "none":
            made = module.NoAuthenticator()
    return made


def _module(mechanism: str) -> Any:
    try:
        return import_module(f"{__name__}.{mechanism}")
    except ImportError as error:
        raise ConfigError(
            f"mechanism {mechanism!r} needs more than is installed ({error}): "
            "pip install 'rtunnel[broker]'"
        ) from None
