"""Our session broker in a process of its own, and a balancer in front of several."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx

from tests.support.command import ROOT
from tests.support.x2go import run

PATIENCE_S = 60.0
USERS = {"alice": "s3cret", "bob": "b0b", "carol": "c4rol"}


def write_users(folder: Path, **more: str) -> Path:
    """Write a file of htpasswd with the users of the tests, and `more`."""
    path = folder / "users"
    lines = [
        f"{user}:{run('openssl', 'passwd', '-apr1', password).strip()}\n"
        for user, password in {**USERS, **more}.items()
    ]
    path.write_text("".join(lines))
    return path


def write_settings(
    folder: Path, profiles: str, more: str = "", state: str = "sqlite:state"
) -> Path:
    """Write settings and profiles of a broker; return the file of the settings."""
    (folder / "profiles.conf").write_text(profiles)
    path = folder / "broker.toml"
    path.write_text(f'profiles = "profiles.conf"\nstate = "{state}"\n{more}')
    return path


class BrokerServer:
    """`x2go-session broker serve`, on a free port, until the end of the block."""

    def __init__(self, settings: Path, *arguments: str) -> None:
        self.log_path = settings.with_name(f"log-{os.urandom(4).hex()}")
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "x2go_session", "broker", "serve"),
                    *("--config", str(settings), "--port", "0", "-v", *arguments),
                ],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        found = re.search(r"(https?)://\S*?:(\d+)/", self.process.stdout.readline())
        assert found is not None, self.log()
        self.scheme, self.port = found[1], int(found[2])

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Return what it has logged."""
        return self.log_path.read_text()

    def ask(self, path: str = "/plain/", **fields: str) -> httpx.Response:
        """Send a form; return the answer."""
        return ask(self.url + path, **fields)

    def ask_json(self, **fields: str) -> dict[str, Any]:
        """Send a form to the JSON side; return what it answers."""
        answer: dict[str, Any] = json.loads(self.ask("/json/", **fields).text)
        return answer

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> BrokerServer:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                assert self.process.wait(PATIENCE_S) == 0, self.log()
            finally:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def ask(url: str, **fields: str) -> httpx.Response:
    """Send a form to a broker; return the answer."""
    return httpx.post(url, data=fields, timeout=PATIENCE_S, trust_env=False)


class Balancer(socketserver.ThreadingTCPServer):
    """Gives each connection to the next of several ports, as a TCP load balancer."""

    daemon_threads = True

    def __init__(self, *ports: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.next_port = itertools.cycle(ports)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=[0.05])
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Passing(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Balancer)
        port = next(self.server.next_port)
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as behind:
            back = threading.Thread(target=_copy, args=[behind, self.request])
            back.start()
            _copy(self.request, behind)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
