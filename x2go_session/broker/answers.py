"""What a session broker answers, as types, whatever form it came in. Pure.

`plain` and `json_text` read and write these on the wire; client and server share them.
Nothing that came from outside is trusted: hosts end up in connections and log records,
keys in files, and a session's line in commands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from x2go_session.errors import BrokerAnswerError
from x2go_session.profiles.values import Value
from x2go_session.replies import SessionInfo, sessions

GRANTED: Final = "Access granted"
DENIED: Final = "Access denied"
# What x2gobroker answers to testcon, instead of an answer.
CONNECTED: Final = "OK"
# What x2gobroker says in the place of a host.
NO_SERVER: Final = "no-server-available"
ALL_DOWN: Final = "no-X2Go-Server-available"
# Of a key that was offered, and may be used now.
ACCEPTED: Final = "ACCEPTED"

# A profile has up to 4 KiB: this is a thousand of them.
MOST_ANSWER_BYTES: Final = 4 << 20
# RSA of 16384 bits, in PEM, has 13 KB.
MOST_KEY_CHARS: Final = 32 * 1024
# x2gobroker's are UUIDs; other brokers have longer ones.
MOST_AUTHID_CHARS: Final = 1024
# What one IPv6 address, or one name of the DNS (RFC 1035, 2.3.4), is at most.
MOST_HOST_CHARS: Final = 255
MOST_ID_CHARS: Final = 1024
HIGHEST_PORT: Final = 65535

_AUTHID: Final = re.compile(rf"[!-~]{{1,{MOST_AUTHID_CHARS}}}")
_HOST: Final = re.compile(rf"[A-Za-z0-9_.:%-]{{1,{MOST_HOST_CHARS}}}")
# One key in PEM (RFC 7468; RFC 1421 for the header lines of encrypted ones).
PEM_KEY: Final = re.compile(
    r"-----BEGIN (?P<kind>(?:[A-Z0-9]+ )?PRIVATE KEY)-----[ \t]*\n"
    r"(?:[A-Za-z-]+: [A-Za-z0-9,-]+[ \t]*\n)*+"
    r"[A-Za-z0-9+/= \t\n]*+"
    r"-----END (?P=kind)-----"
)
# Nothing of this is in a text: it would change what a terminal or a file shows.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]")

Profiles = Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True, slots=True)
class SelectedSession:
    """The server that a broker chose for a session, and how to come in there.

    `port` is None where the broker leaves it to the profile. `private_key` (PEM) is to
    be used once, and soon; None if there is none. `key_accepted`: the key that the
    client offered may be used. `session_info` is the line of x2golistsessions of a
    session to resume.
    """

    server: str
    port: int | None = None
    private_key: str | None = field(default=None, repr=False)
    key_accepted: bool = False
    session_info: str | None = field(default=None, repr=False)

    @property
    def session(self) -> SessionInfo | None:
        """The session to resume; None if a new one is to be started."""
        found = sessions([self.session_info]) if self.session_info else []
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a broker that let the user in.

    `authid` is the cookie of the next request, if the broker gives any. `profiles` are
    of `listsessions`, by id; `selected` is of `selectsession`.
    """

    authid: str | None = field(default=None, repr=False)
    profiles: Profiles | None = None
    selected: SelectedSession | None = None


def decoded(body: bytes, charset: str = "utf-8") -> str:
    """Return an answer as text, each end of a line as `\\n`.

    Raises `BrokerAnswerError` for what is too long, not in that charset, or no text.
    """
    if len(body) > MOST_ANSWER_BYTES:
        raise too_long()
    try:
        text = body.decode(charset)
    except UnicodeDecodeError as error:
        raise BrokerAnswerError(
            f"the broker's answer is not {charset}: byte {error.start} of it is none; "
            "the broker's profiles must be saved in UTF-8"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if found := _CONTROLS.search(text):
        raise BrokerAnswerError(
            f"the broker's answer has the control character {ord(found[0]):#04x}: "
            "this is no text; is the URL that of a session broker?"
        )
    return text


def too_long() -> BrokerAnswerError:
    """Return the error for an answer that is longer than any should be."""
    return BrokerAnswerError(
        f"the broker's answer is longer than {MOST_ANSWER_BYTES} bytes: is the URL "
        "that of a session broker?"
    )


def check_authid(text: str) -> str:
    """Return an authid, if it is one. Raises `BrokerAnswerError`, without its text."""
    if not _AUTHID.fullmatch(text):
        raise BrokerAnswerError(
            f"the broker's next authid ({len(text)} characters) is none: it must be "
            f"1 to {MOST_AUTHID_CHARS} characters of ASCII, without blanks"
        )
    return text


def check_server(text: str) -> str:
    """Return the name or address of a server, if it is one."""
    host = text.removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(host) or host.startswith("-"):
        raise BrokerAnswerError(
            f"the broker named a server that is no host: {text[:80]!r}"
        )
    return host


def check_port(text: str) -> int:
    """Return a port, if it is one."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5):
        raise BrokerAnswerError(f"the broker named a port that is none: {text[:80]!r}")
    if not 1 <= int(text) <= HIGHEST_PORT:
        raise BrokerAnswerError(f"the broker named a port that is none: {text}")
    return int(text)


def check_key(text: str) -> str:
    """Return a private key in PEM, with one newline behind it, if it is one."""
    found = PEM_KEY.fullmatch(text.strip())
    if found is None or len(text) > MOST_KEY_CHARS:
        raise BrokerAnswerError(
            "the broker sent a private key that is none, or not all of it"
        )
    return found[0] + "\n"


def check_session_info(text: str) -> str:
    """Return the line of a session to resume, if it is one."""
    if not sessions([text]):
        raise BrokerAnswerError(
            "the broker named a session to resume, but not as x2golistsessions does"
        )
    return text


def check_profile_id(text: str) -> str:
    """Return the id of a profile, if it can be one."""
    if not 1 <= len(text) <= MOST_ID_CHARS or "\n" in text:
        raise BrokerAnswerError(
            f"the broker has a profile with an id that is none: {text[:80]!r}"
        )
    return text
