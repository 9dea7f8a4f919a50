"""X2Go sessions over the rtunnel core: sound, printing, MIME box and shared folders.

A thin layer: each service of an X2Go remote desktop is a server port with a
handler. Only public names of `rtunnel` are used here.

A program written for python-x2go's client runs with

    import x2go_session as x2go

in the place of `import x2go`: `X2GoClient`, its exceptions and what else it returns are
names of this package, loaded when they are first used. See docs/x2go-client.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from x2go_session.client import X2GoClient as X2GoClient
    from x2go_session.client import X2GoSession as X2GoSession
    from x2go_session.client.exceptions import *  # noqa: F403
    from x2go_session.client.info import (
        X2GoServerSessionInfo as X2GoServerSessionInfo,
    )


# Beside those, whatever begins as the names of python-x2go's classes do.
_OTHERS: Final = ("AuthenticationException",)
_HOMES: Final = (
    "x2go_session.client",
    "x2go_session.client.exceptions",
    "x2go_session.client.info",
)


def __getattr__(name: str) -> Any:
    """Load python-x2go's names when they are first used."""
    if name.startswith("X2Go") or name in _OTHERS:
        for home in _HOMES:
            found = vars(import_module(home))
            if name in found:
                globals()[name] = found[name]
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
