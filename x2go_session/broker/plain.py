"""The answers of a session broker in plain text: over HTTP, and over SSH. Pure.

    AUTHID:<the cookie of the next request>
    Access granted
    START_USER_SESSIONS

    [id of a profile]
    name=Office
    host=a.example.org,b.example.org

    END_USER_SESSIONS

What `selectsession` has instead of profiles:

    SERVER:a.example.org:22
    -----BEGIN RSA PRIVATE KEY----- ... -----END RSA PRIVATE KEY-----
    SESSION_INFO:<a line of x2golistsessions>

Brokers that are CGI scripts put HTML around all this, and `<br>` for the ends of lines.
A value may be between `<` and `>` itself, so tags are taken away only where there can
be nothing else. (X2Go Session Broker Protocol: Plain Text; x2gobroker's own answers)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Final

from x2go_session.broker.answers import (
    CONNECTED,
    DENIED,
    GRANTED,
    PEM_KEY,
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
from x2go_session.broker.requests import Task
from x2go_session.errors import BrokerAnswerError, BrokerDenied
from x2go_session.profiles.values import Value

START: Final = "START_USER_SESSIONS"
END: Final = "END_USER_SESSIONS"
MEDIA_TYPE: Final = "text/plain; charset=utf-8"

_LINE_BREAK: Final = re.compile(r"<br[ \t]*+/?>\n?", re.IGNORECASE)
_TAG: Final = re.compile(r"<[^<>\n]*+>")
# Possessive, so that no text takes long.
_TAGS_ONLY: Final = re.compile(r"(?:<[^<>\n]*+>\s*+)++")
_SECTION: Final = re.compile(r"\[(?P<id>.+)\]")
_PEM_BEGIN: Final = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")


def format_answer(answer: Answer) -> str:
    """Return an answer as x2gobroker writes it."""
    text = f"AUTHID:{answer.authid}\n" if answer.authid is not None else ""
    text += f"{GRANTED}\n"
    if answer.profiles:
        text += _format_profiles(answer.profiles)
    if answer.selected is not None:
        text += _format_selected(answer.selected)
    return text


def parse_answer(text: str, task: Task) -> Answer:
    """Read the answer to a task, as `answers.decoded` returns it.

    Raises `BrokerDenied`, and `BrokerAnswerError` for what is not such an answer.
    """
    text = _LINE_BREAK.sub("\n", text)
    if task is Task.TEST_CONNECTION and text.strip() == CONNECTED:
        return Answer()
    before, begun, behind = text.partition(START)
    lines = [line.strip() for line in _TAG.sub("\n", before).split("\n")]
    # Users may write what they like into what comes then.
    head = list(takewhile(lambda line: not line.startswith("SERVER:"), lines))
    if any(DENIED in line for line in head):
        raise BrokerDenied("the broker denies access to this user and password")
    if not any(GRANTED in line for line in head):
        raise BrokerAnswerError(
            f"the broker's answer has no {GRANTED!r}: is the URL that of a session "
            "broker that speaks plain text?"
        )
    authid = _field(head, "AUTHID:")
    profiles: Profiles | None = None
    if task is Task.LIST_SESSIONS:
        # x2gobroker writes no block for a user who has no profiles.
        profiles = _profiles(behind) if begun else {}
    return Answer(
        check_authid(authid) if authid is not None else None,
        profiles,
        _selected(lines) if task is Task.SELECT_SESSION else None,
    )


def _format_profiles(profiles: Profiles) -> str:
    blocks = [
        f"[{id}]\n" + "".join(f"{k}={_text(v)}\n" for k, v in profile.items()) + "\n"
        for id, profile in sorted(profiles.items())
    ]
    return f"{START}\n\n" + "".join(blocks) + f"{END}\n"


def _format_selected(selected: SelectedSession) -> str:
    server = selected.server
    if selected.port is not None:
        server += f":{selected.port}"
    elif ":" in server:  # the last part of an address would be read as a port
        server = f"[{server}]"
    text = f"SERVER:{server}\n"
    text += selected.private_key or ""
    if selected.session_info is not None:
        text += f"SESSION_INFO:{selected.session_info}\n"
    return text


def _text(value: Value) -> str:
    match value:
        case bool():
            return str(int(value))
        case list() | tuple():
            return ",".join(value)
        case Mapping():
            # As the `sessions` file has it: folders, and whether each is shared.
            return "".join(f"{each}:{int(auto)};" for each, auto in value.items())
        case _:
            return str(value)


def _field(lines: list[str], name: str) -> str | None:
    """Return what stands behind a name."""
    found = (line.removeprefix(name) for line in lines if line.startswith(name))
    return next((text.strip() for text in found), None)


def _profiles(text: str) -> Profiles:
    profiles: dict[str, dict[str, Value]] = {}
    values: dict[str, Value] | None = None
    for line in map(str.strip, text.split("\n")):
        if END in line and "=" not in line.partition(END)[0]:
            return profiles
        if not line or _TAGS_ONLY.fullmatch(line):
            continue
        if section := _SECTION.fullmatch(line):
            values = profiles.setdefault(check_profile_id(section["id"]), {})
            continue
        key, equals, value = line.partition("=")
        if not equals or values is None:
            raise BrokerAnswerError(
                f"the broker's profiles have a line that is none: {line[:80]!r}"
            )
        values[key.strip()] = value.strip()
    raise BrokerAnswerError(f"the broker's answer was cut off: it has no {END}")


def _selected(lines: list[str]) -> SelectedSession:
    address = _field(lines, "SERVER:")
    if address is None:
        raise BrokerAnswerError(
            "the broker named no server: its answer was cut off, or it does not know "
            "the profile"
        )
    server, port = _address(address)
    info = _field(lines, "SESSION_INFO:")
    return SelectedSession(
        server,
        port,
        private_key=_key("\n".join(lines)),
        session_info=check_session_info(info) if info is not None else None,
    )


def _key(text: str) -> str | None:
    begin = _PEM_BEGIN.search(text)
    if begin is None:
        return None
    found = PEM_KEY.match(text, begin.start())
    # What is not all there is refused, with the words for it.
    return check_key(found[0] if found else "")


def _address(text: str) -> tuple[str, int | None]:
    """Split `host:port`; as x2gobroker, an IPv6 address may do without brackets."""
    if text.startswith("["):
        host, _, rest = text.partition("]")
        port = rest.removeprefix(":")
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            host, port = text, ""
    return check_server(host), check_port(port) if port else None
