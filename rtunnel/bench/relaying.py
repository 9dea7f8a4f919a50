"""Relays from socket to socket that are compared, and the floor of copying.

    python -m rtunnel.bench.relaying pump|copy TARGET_PORT

prints its port, and carries one connection to the target, both ways: `pump` by
`rtunnel.pump.relay`; `copy` with recv and send of 256 KiB. The latter is in Python,
which costs next to nothing at that size: the same loop in C takes as much CPU.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from rtunnel import pump
from rtunnel.bench.ports import LOOPBACK

COPY_BYTES: Final = 256 * 1024
PIPE_BYTES: Final = 256 * 1024
COMPILER: Final = os.environ.get("CC", "cc")

# Nothing but the system calls: blocking, one direction, and the sink's short answer.
SPLICE_LOOP: Final = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct sockaddr_in here = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (argc != 2 || bind(listener, (void *)&here, size) || listen(listener, 1) ||
        getsockname(listener, (void *)&here, &size))
        return 1;
    printf("%d\n", ntohs(here.sin_port));
    fflush(stdout);
    int near = accept(listener, NULL, NULL);
    int far = socket(AF_INET, SOCK_STREAM, 0);
    here.sin_port = htons(atoi(argv[1]));
    int ends[2];
    if (near < 0 || connect(far, (void *)&here, size) || pipe(ends) ||
        fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES) < 0)
        return 1;
    ssize_t got, put;
    while ((got = splice(near, NULL, ends[1], NULL, PIPE_BYTES, SPLICE_F_MOVE)) > 0)
        for (; got > 0; got -= put)
            if ((put = splice(ends[0], NULL, far, NULL, got, SPLICE_F_MOVE)) <= 0)
                return 1;
    shutdown(far, SHUT_WR);
    char answer[64];
    while ((got = recv(far, answer, sizeof answer, 0)) > 0)
        if (send(near, answer, got, 0) != got)
            return 1;
    /* Its CPU time is read before it ends. */
    return recv(near, answer, 1, 0) < 0;
}
"""


def build_splice_loop(folder: Path) -> Path:
    """Compile the loop in C; return the program."""
    source, program = folder / "splice_loop.c", folder / "splice_loop"
    source.write_text(SPLICE_LOOP)
    define = f"-DPIPE_BYTES={PIPE_BYTES}"
    command = [COMPILER, "-O2", define, str(source), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    return program


def copy(near: socket.socket, far: socket.socket) -> None:
    """Copy both ways until both directions have ended."""
    back = threading.Thread(target=_copy, args=(far, near))
    back.start()
    _copy(near, far)
    back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    data = bytearray(COPY_BYTES)
    view = memoryview(data)
    while got := source.recv_into(data):
        sink.sendall(view[:got])
    sink.shutdown(socket.SHUT_WR)


def main(kind: str, target: int) -> None:
    """Carry one connection, and stay until stdin ends."""
    listener = socket.create_server((LOOPBACK, 0))
    print(listener.getsockname()[1], flush=True)
    near, _ = listener.accept()
    far = socket.create_connection((LOOPBACK, target))
    if kind == "pump":
        pump.relay(near, far)
    else:
        copy(near, far)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
