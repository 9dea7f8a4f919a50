"""The SSH transport as a gateway runs it: server mode, and AES-GCM where it can be.

Theory of operation. The cipher is the first of the *client's* list that the server
has, too (RFC 4253, section 7.1), and OpenSSH before 10.0 puts AES-CTR before AES-GCM.
The engine needs AES-GCM. A server that names its ciphers after it has seen the
client's may leave out what it does not want: so KEXINIT is held back until the
client's has come, and names only AES-GCM if the client has it. Both sides may send
theirs at any time, but a client that waits for ours would wait for ever. OpenSSH
does not wait; for a client with another banner nothing is held back.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any, Final

import paramiko
from paramiko.message import Message

from rtunnel.errors import ProtocolError
from rtunnel.ssh import seams
from rtunnel.ssh.transport import GCM_CIPHERS, Transport
from rtunnel.wire import Reader

MSG_KEXINIT: Final = 20
MSG_USERAUTH_REQUEST: Final = 50
_COOKIE_BYTES: Final = 16

# Clients that are known to send KEXINIT without waiting for ours.
_EAGER: Final = ("SSH-2.0-OpenSSH_",)

# Of the algorithms that some version of paramiko offers, those that sshd has switched
# off by default for years.
_WEAK_ALGORITHMS: Final = {
    "kex": [
        "diffie-hellman-group1-sha1",
        "diffie-hellman-group14-sha1",
        "diffie-hellman-group-exchange-sha1",
    ],
    "ciphers": [
        *("aes128-cbc", "aes192-cbc", "aes256-cbc"),
        *("blowfish-cbc", "3des-cbc"),
    ],
    "macs": ["hmac-sha1-96", "hmac-md5", "hmac-md5-96"],
    "keys": ["ssh-rsa", "ssh-dss"],
    "pubkeys": ["ssh-rsa", "ssh-dss"],
}


class ServerTransport(Transport):
    """A connection of a client, not started yet. Owns `sock`."""

    def __init__(self, sock: socket.socket, host_key: paramiko.PKey) -> None:
        super().__init__(sock, disabled_algorithms=_WEAK_ALGORITHMS)
        # As TCPKeepAlive of sshd, which is on by default.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.add_server_key(host_key)
        handlers = seams.handler_table(self)
        self._negotiate = handlers[MSG_KEXINIT]
        handlers[MSG_KEXINIT] = self._on_kexinit
        self._saw_kexinit = False

    def begin(self, door: paramiko.ServerInterface) -> None:
        """Start the transport's thread: keys, then whoever `door` lets in."""
        self.start_server(threading.Event(), door)

    def check_login(self, message: Message) -> bool:
        """Have paramiko look at a USERAUTH_REQUEST; return whether it was let in."""
        handler: Any = self.auth_handler
        handler._handler_table[MSG_USERAUTH_REQUEST](message)
        return bool(self.is_authenticated())

    def _log(self, level: int, msg: Any, *args: Any) -> None:
        # What strangers get wrong is no error of ours: no tracebacks for port scans.
        if not self.is_authenticated():
            level = logging.DEBUG
        super()._log(level, msg, *args)

    def _send_kex_init(self) -> None:
        eager = self.remote_version.startswith(_EAGER)
        if self._saw_kexinit or not eager:
            super()._send_kex_init()

    def _on_kexinit(self, message: Message) -> None:
        """Look at the client's ciphers; answer with ours, if they are still to be sent.

        Payload::
            byte[16]   cookie
            name-list  key exchange, host key
            name-list  ciphers to the server, ciphers to the client
            ....
        """
        if not self._saw_kexinit and self.local_kex_init is None:
            try:
                fields = Reader(seams.payload(message)[_COOKIE_BYTES:])
                lists = [fields.text().split(",") for _ in range(4)]
            except ProtocolError as error:
                raise paramiko.SSHException(str(error)) from error
            if all(set(GCM_CIPHERS).intersection(names) for names in lists[2:]):
                self._preferred_ciphers = GCM_CIPHERS
        self._saw_kexinit = True
        self._negotiate(seams.rewind(message))
