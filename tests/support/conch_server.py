"""A Twisted Conch server: `conch_server.py PORT HOST_KEY AUTHORIZED_PUBLIC_KEY`.

A process of its own, because Twisted's reactor cannot be started twice in one.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from typing import Any

from twisted.conch.checkers import InMemorySSHKeyDB, SSHPublicKeyChecker
from twisted.conch.interfaces import IConchUser
from twisted.conch.ssh.factory import SSHFactory
from twisted.conch.ssh.keys import Key
from twisted.conch.unix import UnixConchUser
from twisted.cred.portal import Portal
from twisted.internet import reactor


class User(UnixConchUser):
    """Conch's own user, but for the change of identity: it runs as that user."""

    def _runAsUser(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)


class Realm:
    def requestAvatar(self, name: bytes, mind: object, *interfaces: object) -> Any:
        user = User(name.decode())
        return IConchUser, user, user.logout


def main(port: str, host_key: str, authorized: str) -> None:
    key = Key.fromFile(host_key)
    user = getpass.getuser()
    known = InMemorySSHKeyDB({user.encode(): [Key.fromFile(authorized)]})
    factory = SSHFactory()
    factory.publicKeys = {b"ssh-ed25519": key}
    factory.privateKeys = {b"ssh-ed25519": key}
    factory.portal = Portal(Realm(), [SSHPublicKeyChecker(known)])
    reactor.listenTCP(int(port), factory, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
