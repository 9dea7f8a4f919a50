"""The windows of a session: nxproxy here, over the tunnel to the agent there.

nxproxy connects to a port of this side's loopback; each connection is taken to the
agent's port on the server's loopback by a direct-tcpip channel on the pump. That
nxproxy ends is how a client learns that its session was suspended or is over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import rtunnel
from rtunnel.errors import ChannelOpenError, RTunnelError
from x2go_session.errors import GraphicsError
from x2go_session.session import Session

log = logging.getLogger("x2go_session.graphics")

LOOPBACK: Final = "127.0.0.1"
# The agent listens when its session is announced, or later on a busy server. nxproxy
# does not come again when its connection is closed, so it waits with us.
OPEN_TIMEOUT_S: Final = 60.0
OPEN_PAUSE_S: Final = 0.4
# nxproxy may have windows to close, and takes SIGTERM as the wish to end.
END_TIMEOUT_S: Final = 5.0
# Of its log, for the message about why it ended.
TAIL_BYTES: Final = 1500
# Names the server may not choose freely: they are a folder here.
_DISPLAY: Final = re.compile(r"(?P<host>[^:]*):(?P<number>\d+)(\.\d+)?")


def check_client(environment: Mapping[str, str] = os.environ) -> None:
    """Say what this side lacks to show windows. Raises `GraphicsError`."""
    if shutil.which("nxproxy", path=environment.get("PATH")) is None:
        raise GraphicsError(
            "there is no nxproxy here, which shows the session's windows: install the "
            "package nxproxy"
        )
    check_display(environment.get("DISPLAY", ""))


def check_display(display: str) -> None:
    """Say so if no X server is at a display of this side. Raises `GraphicsError`."""
    found = _DISPLAY.fullmatch(display)
    if not found:
        raise GraphicsError(
            f"there is no X display here (DISPLAY is {display!r}): start this in a "
            "graphical session, or set DISPLAY"
        )
    if found["host"] in ("", "unix"):
        with socket.socket(socket.AF_UNIX) as sock:
            path = f"/tmp/.X11-unix/X{found['number']}"
            if sock.connect_ex(path) and sock.connect_ex(f"\0{path}"):
                raise GraphicsError(
                    f"no X server answers at the display {display}: is DISPLAY right?"
                )


class GraphicsForward:
    """A port of this side's loopback that leads to the agent's port on the server."""

    def __init__(
        self,
        tunnel: rtunnel.Tunnel,
        port: int,
        on_failure: Callable[[str], object],
    ) -> None:
        self._tunnel = tunnel
        self._target_port = port
        self._on_failure = on_failure
        self._socket = socket.create_server((LOOPBACK, 0))
        self.port = int(self._socket.getsockname()[1])
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._accept, name=f"x2go-graphics-{port}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Take no more connections. Those that are pumped end by themselves."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                conn, _ = self._socket.accept()
            except OSError:
                return
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._open(conn)
            except RTunnelError as error:
                conn.close()
                if not self._closed.is_set():
                    self._on_failure(str(error))

    def _open(self, conn: socket.socket) -> None:
        deadline = time.monotonic() + OPEN_TIMEOUT_S
        while True:
            # What is opened belongs to the pump, and so does the socket; one that was
            # refused is closed with it.
            ours = conn.dup()
            try:
                self._tunnel.connection.open_tcp(LOOPBACK, self._target_port, ours)
            except ChannelOpenError as error:
                ours.close()
                late = time.monotonic() > deadline
                if late or self._closed.wait(OPEN_PAUSE_S):
                    raise
                log.debug("not yet: port=%d error=%s", self._target_port, error)
            else:
                conn.close()
                return


class NxProxy:
    """One nxproxy process: the session's windows on the client's display."""

    def __init__(
        self,
        session: Session,
        port: int,
        root: Path,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        folder = session.local_folder
        self._log = folder / "session.log"
        options = ",".join(
            [
                "nx/nx",
                "retry=5",
                f"id={session.name}",
                "composite=1",
                f"connect={LOOPBACK}",
                "clipboard=1",
                f"cookie={session.cookie}",
                f"port={port}",
                f"errors={folder / 'session.err'}",
            ]
        )
        # In a file, not in its arguments: those are seen by all users, the cookie too.
        options_file = folder / "options"
        options_file.touch(mode=0o600)
        options_file.write_text(f"{options}:{session.display}\n")
        with open(self._log, "ab") as output:
            try:
                self._process = subprocess.Popen(
                    [
                        "nxproxy",
                        "-S",
                        f"nx/nx,options={options_file}:{session.display}",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={
                        **environment,
                        "NX_CLIENT": "/bin/true",
                        "NX_ROOT": str(root),
                    },
                    cwd=folder,
                    # Ctrl-C on a terminal is for the client, which then ends this.
                    start_new_session=True,
                )
            except OSError as error:
                raise GraphicsError(f"nxproxy cannot be started: {error}") from error
        self.pid = self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended. Never blocks."""
        return self._process.poll() is None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until it ends; return its status, None after the time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End it, kindly first. Blocks until it has ended."""
        if self.is_running:
            self._process.terminate()
        if self.wait(END_TIMEOUT_S) is None:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """What its log says at the end, in one line."""
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            file.seek(max(self._log.stat().st_size - TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
            said = [line for line in text.splitlines() if line.startswith("Error")]
            return " ".join((said or text.splitlines()[-3:])[-1:])
        return ""


class Graphics:
    """The forward and nxproxy of one session, from `start` to `stop`."""

    def __init__(
        self,
        session: Session,
        root: Path,
        on_failure: Callable[[str], object],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._forward = GraphicsForward(
            session.tunnel, session.ports.graphics, on_failure
        )
        try:
            self.proxy = NxProxy(session, self._forward.port, root, environment)
        except BaseException:
            self._forward.close()
            raise

    def stop(self) -> None:
        """End nxproxy and the forward. Blocks."""
        self.proxy.stop()
        self._forward.close()

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait for nxproxy to end by itself, as it does with its session."""
        deadline = time.monotonic() + timeout_s
        return self.proxy.wait(max(deadline - time.monotonic(), 0)) is not None


def screen_size(environment: Mapping[str, str] = os.environ) -> str:
    """Return the size of the client's display, for the geometry "maximize".

    Without the panels around it, where a window manager tells. Raises
    `GraphicsError` where neither xprop nor xwininfo can say it.
    """
    for command, pattern in (
        (["xprop", "-root", "_NET_WORKAREA"], r"= *\d+, *\d+, *(\d+), *(\d+)"),
        (["xwininfo", "-root"], r"Width: *(\d+)\n *Height: *(\d+)"),
    ):
        try:
            output = subprocess.run(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=END_TIMEOUT_S,
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        if found := re.search(pattern, output):
            return f"{found[1]}x{found[2]}"
    raise GraphicsError(
        "the size of the display cannot be told (install xwininfo): name a geometry, "
        "as in 1280x800"
    )
