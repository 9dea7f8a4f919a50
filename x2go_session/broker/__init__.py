"""Session brokers: who tells users which profiles they have, and on which servers.

    from x2go_session.broker import key_file, open_broker, profile_for

    with open_broker("https://me@broker.example.org/json/", password=ask) as broker:
        profile = broker.list_profiles()["office"]
        selected = broker.select("office")
        with key_file(selected) as key:
            found = profiles.connection(profile_for(profile, selected, key))
            tunnel = rtunnel.connect(found.destination, **found.options)

`requests`, `answers`, `plain` and `json_text` are what is said, without any I/O: for
the client and for the server alike.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from x2go_session.broker.answers import SelectedSession as SelectedSession
    from x2go_session.broker.client import Broker as Broker
    from x2go_session.broker.client import open_broker as open_broker
    from x2go_session.broker.login import key_file as key_file
    from x2go_session.broker.login import profile_for as profile_for

# Loaded when first used: the server needs nothing of the client.
_HOME: Final = {
    "Broker": "client",
    "SelectedSession": "answers",
    "key_file": "login",
    "open_broker": "client",
    "profile_for": "login",
}

__all__ = ["Broker", "SelectedSession", "key_file", "open_broker", "profile_for"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
