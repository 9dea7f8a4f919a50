"""The tunnels that are compared, each as one client process of the same server.

    python -m rtunnel.bench.peers NAME SSH_PORT USER KEY KNOWN_HOSTS TARGET_PORT...

opens a reverse tunnel to each target port of 127.0.0.1, prints the server's ports and
the version as JSON, and stays. `ssh` is not here: it is a program of its own.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from rtunnel.bench.ports import LOOPBACK
from rtunnel.bench.sshd import Login

CIPHER: Final = "aes128-gcm@openssh.com"
PARAMIKO_BUFFER_BYTES: Final = 64 * 1024


def _ready(ports: Iterable[int], version: str) -> None:
    print(json.dumps({"ports": list(ports), "version": version}), flush=True)


def rtunnel(login: Login, targets: list[int]) -> None:
    """Run this project, with its defaults."""
    import rtunnel as project

    with project.connect(
        f"{login.user}@{LOOPBACK}:{login.port}",
        identity_files=[login.user_key],
        known_hosts=[login.known_hosts],
        config_file="none",
        agent=False,
    ) as tunnel:
        listeners = [
            tunnel.listen((LOOPBACK, 0), to=f"{LOOPBACK}:{target}")
            for target in targets
        ]
        version = f"{project.__version__}, backend {tunnel.backend}"
        _ready((listener.port for listener in listeners), version)
        tunnel.wait()


def asyncssh(login: Login, targets: list[int]) -> None:
    """Run asyncssh with the cipher that the others use."""
    import asyncssh as library

    async def run() -> None:
        connection = await library.connect(
            LOOPBACK,
            login.port,
            username=login.user,
            client_keys=[str(login.user_key)],
            known_hosts=str(login.known_hosts),
            encryption_algs=[CIPHER],
            config=None,
        )
        listeners = [
            await connection.forward_remote_port(LOOPBACK, 0, LOOPBACK, target)
            for target in targets
        ]
        _ready((listener.get_port() for listener in listeners), library.__version__)
        await connection.wait_closed()

    asyncio.run(run())


def paramiko(login: Login, targets: list[int]) -> None:
    """Run what people write by hand: two threads a channel, 64 KiB, its defaults."""
    import paramiko as library

    transport = library.Transport((LOOPBACK, login.port))
    transport.start_client()
    key = library.Ed25519Key.from_private_key_file(str(login.user_key))
    transport.auth_publickey(login.user, key)
    target_of: dict[int, int] = {}

    def handler(channel: Any, origin: Any, server: tuple[str, int]) -> None:
        threading.Thread(target=serve, args=(channel, server[1])).start()

    def serve(channel: Any, port: int) -> None:
        target = socket.create_connection((LOOPBACK, target_of[port]))
        back = threading.Thread(target=_to_channel, args=(channel, target))
        back.start()
        _to_target(channel, target)
        back.join()
        channel.close()
        target.close()

    for target in targets:
        # paramiko has one handler for all ports: the one that was given last.
        target_of[transport.request_port_forward(LOOPBACK, 0, handler)] = target
    _ready(target_of, library.__version__)
    transport.join()


def _to_target(channel: Any, target: socket.socket) -> None:
    while data := channel.recv(PARAMIKO_BUFFER_BYTES):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def _to_channel(channel: Any, target: socket.socket) -> None:
    while data := target.recv(PARAMIKO_BUFFER_BYTES):
        channel.sendall(data)
    channel.shutdown_write()


PEERS: Final[dict[str, Callable[[Login, list[int]], None]]] = {
    "rtunnel": rtunnel,
    "paramiko": paramiko,
    "asyncssh": asyncssh,
}

if __name__ == "__main__":
    PEERS[sys.argv[1]](Login.read(sys.argv[2:6]), [int(port) for port in sys.argv[6:]])
