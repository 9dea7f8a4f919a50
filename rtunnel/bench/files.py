"""Files moved over SFTP: the same code on two transports, each a process of its own.

    python -m rtunnel.bench.files rtunnel|paramiko SSH_PORT USER KEY KNOWN_HOSTS

takes lines `put FILE TO` and `get FILE TO` from stdin, and answers each with the bytes,
the seconds and its own CPU seconds, as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import paramiko

import rtunnel
from rtunnel.bench.ports import LOOPBACK
from rtunnel.bench.sshd import Login


def main(kind: type[paramiko.Transport], login: Login) -> None:
    """Serve the lines of stdin, to their end."""
    transport = kind(socket.create_connection((LOOPBACK, login.port)))
    transport.start_client()
    key = paramiko.Ed25519Key.from_private_key_file(str(login.user_key))
    transport.auth_publickey(login.user, key)
    client = transport.open_sftp_client()
    assert client is not None
    for line in sys.stdin:
        action, source, to = line.split()
        begin_s, cpu_s = time.perf_counter(), time.process_time()
        (client.put if action == "put" else client.get)(source, to)
        answer = {
            "bytes": Path(to).stat().st_size,
            "seconds": time.perf_counter() - begin_s,
            "cpu_s": time.process_time() - cpu_s,
        }
        print(json.dumps(answer), flush=True)
    transport.close()


if __name__ == "__main__":
    kinds = {"rtunnel": rtunnel.Transport, "paramiko": paramiko.Transport}
    main(kinds[sys.argv[1]], Login.read(sys.argv[2:6]))
