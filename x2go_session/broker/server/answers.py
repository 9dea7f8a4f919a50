"""What a broker answers, in the two forms of the wire. Pure.

Plain text (HTTP and SSH):

    AUTHID:<next cookie>
    Access granted
    START_USER_SESSIONS ... END_USER_SESSIONS      of listsessions
    SERVER:<host>:<port>, a private key, SESSION_INFO:<line>   of selectsession

JSON has the same in an object. (X2Go Session Broker Protocol, and x2gobroker's answers)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from x2go_session.broker.server.profiles_file import Value

GRANTED: Final = "Access granted"
DENIED: Final = "Access denied"
CONNECTED: Final = "OK"
NO_SERVER: Final = "no-server-available"
ALL_DOWN: Final = "no-X2Go-Server-available"

Profiles = Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True, slots=True)
class Selection:
    """The server of a session; how to come in there, and what to resume."""

    server: str
    port: int
    private_key: str | None = field(default=None, repr=False)
    key_accepted: bool = False
    session_info: str | None = field(default=None, repr=False)


def plain_granted(next_cookie: str | None) -> str:
    """Return what every plain answer begins with."""
    authid = f"AUTHID:{next_cookie}\n" if next_cookie is not None else ""
    return f"{authid}{GRANTED}\n"


def plain_profiles(profiles: Profiles) -> str:
    """Return the profiles of a user; nothing if there are none."""
    if not profiles:
        return ""
    blocks = [
        f"[{name}]\n" + "".join(f"{k}={_plain(v)}\n" for k, v in profile.items()) + "\n"
        for name, profile in sorted(profiles.items())
    ]
    return "START_USER_SESSIONS\n\n" + "".join(blocks) + "END_USER_SESSIONS\n"


def plain_selection(selection: Selection) -> str:
    """Return the server of a session."""
    text = f"SERVER:{selection.server}:{selection.port}\n"
    text += selection.private_key or ""
    if selection.session_info is not None:
        text += f"SESSION_INFO:{selection.session_info}\n"
    return text


def json_answer(
    task: str,
    next_cookie: str | None,
    *,
    profiles: Profiles | None = None,
    selection: Selection | None = None,
) -> str:
    """Return the answer to a task, as JSON."""
    answer: dict[str, Any] = {"task": task, "auth-status": GRANTED}
    if next_cookie is not None:
        answer["next-authid"] = next_cookie
    if profiles is not None:
        answer["profiles"] = {name: dict(each) for name, each in profiles.items()}
    if selection is not None:
        answer["selected_session"] = _selected(selection)
    return json.dumps(answer, indent=4, sort_keys=True)


def _selected(selection: Selection) -> dict[str, str]:
    found = {"server": selection.server, "port": str(selection.port)}
    if selection.private_key is not None:
        found["key"] = selection.private_key
    if selection.key_accepted:
        found["authentication_pubkey"] = "ACCEPTED"
    if selection.session_info is not None:
        found["session_info"] = selection.session_info
    return found


def _plain(value: Value) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(value) if isinstance(value, tuple) else str(value)
