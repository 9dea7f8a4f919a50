"""Who may log in, and with which rights: keys of everybody, and users by name."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rtunnel.errors import ConfigError
from rtunnel.gateway.authorized_keys import AuthorizedKey, AuthorizedKeys
from rtunnel.gateway.settings import Rights, User

log = logging.getLogger("rtunnel.gateway.users")

# Stands for the user's name in the path of a file, as in AuthorizedKeysFile.
USER_TOKEN: Final = "%u"
# What may stand there: names of users, and nothing that leaves the folder.
_USER_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
# So that made-up names of strangers do not fill the memory.
CACHED_USERS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Login:
    """A user who has shown a key that lets them in."""

    user: str
    key: AuthorizedKey
    rights: Rights

    @property
    def identity(self) -> tuple[object, ...]:
        """Who it is: the same on each connection of one client."""
        return (self.user, *self.key.identity)


class Users:
    """All of them. `login` may be called from any thread; it may read files."""

    def __init__(
        self,
        authorized_keys: Sequence[str | Path],
        rights: Rights,
        users: Sequence[User] = (),
    ) -> None:
        """Take keys that are good for any name, and users. Raises `ConfigError`."""
        templates = [p for p in authorized_keys if _is_template(p)]
        plain = [p for p in authorized_keys if not _is_template(p)]
        if not authorized_keys and not users:
            raise ConfigError("a gateway without authorized keys would serve nobody")
        self._rights = rights
        self._everybody = AuthorizedKeys(plain) if plain else None
        self._templates = templates
        self._users = {
            user.name: (AuthorizedKeys(user.authorized_keys), user.rights)
            if user.authorized_keys
            else (None, user.rights)
            for user in users
        }
        self._lock = threading.Lock()
        self._by_file: dict[tuple[str, str], AuthorizedKeys] = {}

    def login(self, user: str, blob: bytes, address: str) -> Login | None:
        """Return what a key or certificate gives to a user; None: nothing."""
        own, rights = self._users.get(user, (None, self._rights))
        for keys in (own, *self._files(user), self._everybody):
            if keys is not None:
                key = keys.find(blob, user, address)
                if key is not None:
                    return Login(user, key, rights)
        return None

    def _files(self, user: str) -> list[AuthorizedKeys]:
        """Return those that are files of this user, as far as they exist."""
        if not self._templates or not _USER_NAME.fullmatch(user):
            return []
        found = []
        for template in self._templates:
            place = (str(template), user)
            with self._lock:
                keys = self._by_file.get(place)
            if keys is None:
                path = Path(str(template).replace(USER_TOKEN, user))
                if not path.exists():
                    continue
                try:
                    keys = AuthorizedKeys([path])
                except ConfigError as error:
                    log.error("%s", error)
                    continue
                with self._lock:
                    if len(self._by_file) >= CACHED_USERS_MAX:
                        self._by_file.clear()
                    self._by_file[place] = keys
            found.append(keys)
        return found


def _is_template(source: str | Path) -> bool:
    return isinstance(source, Path) and USER_TOKEN in str(source)
