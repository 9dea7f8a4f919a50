"""The answers of a session broker in JSON, over HTTP. Pure.

    {
        "auth-status": "Access granted",
        "next-authid": "<the cookie of the next request>",
        "task": "listprofiles",
        "profiles": {"<id>": {"name": "Office", "host": ["a.example.org"], ...}}
    }

`selectsession` has an object instead of profiles:

    "selected_session": {"server": "a.example.org", "port": "22", "key": <PEM>,
                         "authentication_pubkey": "ACCEPTED", "session_info": <line>}

(x2gobroker's own answers)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from x2go_session.broker.answers import (
    ACCEPTED,
    CONNECTED,
    DENIED,
    GRANTED,
    Answer,
    Profiles,
    SelectedSession,
    check_authid,
    check_key,
    check_port,
    check_profile_id,
    check_server,
    check_session_info,
)
from x2go_session.broker.requests import LIST_PROFILES, Task
from x2go_session.errors import BrokerAnswerError, BrokerDenied
from x2go_session.profiles.values import Value

# x2gobroker's; python-x2go takes no other.
MEDIA_TYPE: Final = "text/json; charset=utf-8"


def format_answer(answer: Answer, task: Task) -> str:
    """Return an answer to a task as x2gobroker writes it."""
    told: dict[str, Any] = {
        "task": LIST_PROFILES if task is Task.LIST_SESSIONS else task.value,
        "auth-status": GRANTED,
    }
    if answer.authid is not None:
        told["next-authid"] = answer.authid
    if answer.profiles is not None:
        told["profiles"] = {id: dict(each) for id, each in answer.profiles.items()}
    if answer.selected is not None:
        told["selected_session"] = _format_selected(answer.selected)
    return json.dumps(told, indent=4, sort_keys=True)


def parse_answer(text: str, task: Task) -> Answer:
    """Read the answer to a task, as `answers.decoded` returns it.

    Raises `BrokerDenied`, and `BrokerAnswerError` for what is not such an answer.
    """
    if task is Task.TEST_CONNECTION and text.strip() in ("", CONNECTED):
        # x2gobroker has no words for it, in JSON.
        return Answer()
    told = _object(_loaded(text), "answer")
    status = told.get("auth-status")
    if status == DENIED:
        raise BrokerDenied("the broker denies access to this user and password")
    if status != GRANTED:
        raise BrokerAnswerError(
            f"the broker's answer has no {GRANTED!r}: is the URL that of a session "
            "broker that speaks JSON?"
        )
    authid = told.get("next-authid")
    return Answer(
        check_authid(_string(authid, "next-authid")) if authid is not None else None,
        _profiles(told) if task is Task.LIST_SESSIONS else None,
        _selected(told) if task is Task.SELECT_SESSION else None,
    )


def _format_selected(selected: SelectedSession) -> dict[str, str]:
    told = {"server": selected.server}
    if selected.port is not None:
        told["port"] = str(selected.port)
    if selected.private_key is not None:
        told["key"] = selected.private_key
    if selected.key_accepted:
        told["authentication_pubkey"] = ACCEPTED
    if selected.session_info is not None:
        told["session_info"] = selected.session_info
    return told


def _loaded(text: str) -> Any:
    if text.lstrip().startswith("<"):
        # HTML around it.
        text = text[text.find("{") : text.rfind("}") + 1]
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        raise BrokerAnswerError(
            "the broker's answer is no JSON, or was cut off: is the URL that of a "
            "session broker that speaks JSON? One for plain text ends in /plain/"
        ) from None


def _refused(name: str) -> None:
    raise ValueError(name)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BrokerAnswerError(f"the broker's {what} is no object of JSON")
    return value


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BrokerAnswerError(f"the broker's {what} is no string of JSON")
    return value


def _profiles(told: Mapping[str, Any]) -> Profiles:
    profiles = _object(told.get("profiles"), "list of profiles")
    return {
        check_profile_id(id): {
            key: _value(value, f"profile {id[:80]}, {key[:80]}")
            for key, value in _object(profile, f"profile {id[:80]}").items()
        }
        for id, profile in profiles.items()
    }


def _value(value: Any, what: str) -> Value:
    match value:
        case bool() | int() | str():
            return value
        case None:
            return ""
        case list() if all(isinstance(each, str) for each in value):
            return value
        case dict() if all(isinstance(each, bool) for each in value.values()):
            return value
    raise BrokerAnswerError(
        f"the broker's {what}: this must be a text, a whole number, true or false, or "
        "a list of texts"
    )


def _selected(told: Mapping[str, Any]) -> SelectedSession:
    found = _object(told.get("selected_session"), "selected session")
    if "server" not in found:
        raise BrokerAnswerError(
            "the broker named no server: it does not know the profile"
        )
    port, key, info = (found.get(name) for name in ("port", "key", "session_info"))
    return SelectedSession(
        check_server(_string(found["server"], "server")),
        None if port is None else check_port(str(port)),
        private_key=None if key is None else check_key(_string(key, "key")),
        key_accepted=found.get("authentication_pubkey") == ACCEPTED,
        session_info=None
        if info is None
        else check_session_info(_string(info, "session_info").strip()),
    )
