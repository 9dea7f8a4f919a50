"""One-shot keys: a public key that lets a user in for a minute, then is removed.

The key is in the state before it is on the server, and is forgotten after it was
removed: so whatever dies in between, some broker removes it later. And the line itself
has an end (`expiry-time`, sshd(8)) by the clock of the server: a key that nobody could
remove lets nobody in.

What is written is written as the user, not as root: a home folder may have links that
lead anywhere. Readers of the file see it whole: it is exchanged, not changed.
"""

from __future__ import annotations

import logging
import re
import shlex
import time
import uuid
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from x2go_session.broker.server.errors import ServerError
from x2go_session.broker.server.load import Servers, as_user
from x2go_session.broker.server.profiles_file import Host, read_host
from x2go_session.broker.server.state import PlacedKey, State

log = logging.getLogger("x2go_session.broker")

# What a session needs, and nothing else; authorized_keys, sshd(8).
RIGHTS: Final = "restrict,port-forwarding,agent-forwarding"
# The key of a line that a client offers, whatever it says of options and comment.
_OFFERED: Final = re.compile(
    r"(?:^|\s)(?P<type>ssh-rsa|ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521))"
    r" (?P<blob>[A-Za-z0-9+/]{60,2000}={0,2})(?:\s|$)"
)
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,63}")
# Clients of X2Go read RSA keys in PEM, and not all of them anything else.
RSA_BITS: Final = 3072
# As useradd(8) numbers people; no key is put for others.
LOWEST_UID: Final = 1000
# How long one broker has to remove a key before others try.
CLAIM_S: Final = 60.0
# A server that does not come back for so long has no key that is any good.
GIVE_UP_S: Final = 86_400.0

PUT: Final = """
umask 077
folder=$(dirname -- "$file") && mkdir -p -- "$folder" && (
    flock 9 &&
    until=$(date -d "now + $seconds seconds" +%Y%m%d%H%M%S) &&
    { if [ -e "$file" ]; then sed -e '$a\\' -- "$file"; fi &&
      printf '%s,expiry-time="%s" %s\\n' "$rights" "$until" "$line"; } >"$file.new" &&
    mv -f -- "$file.new" "$file"
) 9>"$file.lock"
"""
REMOVE: Final = """
umask 077
[ -e "$file" ] || exit 0
(
    flock 9 &&
    { grep -vF -- "$identity" "$file" || [ $? = 1 ]; } >"$file.new" &&
    mv -f -- "$file.new" "$file"
) 9>"$file.lock"
"""


class OneShotKeys:
    """Puts keys on servers, and removes them. Any thread; blocks."""

    def __init__(
        self,
        state: State,
        servers: Servers,
        lifetime_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._servers = servers
        self._lifetime_s = lifetime_s
        self._clock = clock

    def put(self, host: Host, user: str, file: str, public_key: str) -> None:
        """Let a key in for a while. `public_key` is its type and its base64.

        Raises `ServerError`.
        """
        identity = f"x2go-broker-{uuid.uuid4().hex}"
        now = self._clock()
        key = PlacedKey(identity, str(host), user, file, now, now + self._lifetime_s)
        # Before anything is done: so that nobody has to hand the script to whom.
        command = _script(
            key,
            PUT,
            seconds=str(round(self._lifetime_s)),
            rights=RIGHTS,
            line=f"{public_key} {identity}",
        )
        self._state.add_key(key)
        self._servers.run(host, command)
        log.info("key put: server=%s user=%s key=%s", host, user, identity)

    def remove_due(self) -> int:
        """Remove the keys whose time is over; return how many were removed."""
        removed = 0
        for key in self._state.claim_keys(self._clock(), CLAIM_S):
            removed += self._remove(key)
        return removed

    def _remove(self, key: PlacedKey) -> bool:
        try:
            host = read_host(key.server, 22)
            self._servers.run(host, _script(key, REMOVE, identity=key.identity))
        except (ServerError, ValueError) as error:
            log.warning("key not removed yet: key=%s error=%s", key.identity, error)
            if self._clock() - key.placed < GIVE_UP_S:
                return False
        self._state.forget_key(key.identity)
        log.info("key removed: server=%s key=%s", key.server, key.identity)
        return True


def offered_key(text: str) -> str | None:
    """Return type and base64 of a public key that a client offers; None if it is none.

    Its options are not taken over.
    """
    found = _OFFERED.search(text) if "\n" not in text.strip() else None
    return f"{found['type']} {found['blob']}" if found else None


def generate() -> tuple[str, str]:
    """Return a new key: its type and base64, and its private part in PEM."""
    key = rsa.generate_private_key(65537, RSA_BITS)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return public.decode(), private.decode()


def _script(key: PlacedKey, body: str, **values: str) -> str:
    """Return what root runs: the body as the user, with these variables set.

    Raises `ServerError` for a user who is none.
    """
    if not _USER.fullmatch(key.username):
        raise ServerError(f"not the name of a user: {key.username!r}")
    inner = "".join(f"{name}={shlex.quote(text)}\n" for name, text in values.items())
    user = shlex.quote(key.username)
    return (
        f"uid=$(id -u -- {user}) && [ $uid -ge {LOWEST_UID} ] || "
        f'{{ echo "no user for whom a key is put" >&2; exit 1; }}\n'
        f"gid=$(id -g -- {user}); home=$(getent passwd $uid | cut -d: -f6)\n"
        f"file={_path(key.file, key.username)}\n"
        # Behind the quotes: the path is root's to say, and not to be read again.
        f"export file; {as_user(key.username, inner + body)}"
    )


def _path(template: str, user: str) -> str:
    """Return the path of authorized_keys, in the words of sh(1).

    %h, %u, %U and %G are home, name, uid and gid; %% is a percent sign.
    """
    known = {"h": '"$home"', "u": shlex.quote(user), "U": '"$uid"', "G": '"$gid"'}
    parts = re.split(r"%(.)", template)
    text = ""
    for at, part in enumerate(parts):
        if at % 2 == 0:
            text += shlex.quote(part) if part else ""
        elif part == "%":
            text += "%"
        elif part in known:
            text += known[part]
        else:
            raise ServerError(
                f"{template!r}: %{part} is unknown; %h %u %U %G %% are known"
            )
    return text or "''"
