"""Break everything around `rtunnel run`, again and again, for as long as one says.

    make soak MINUTES=60
    python -m benchmarks.soak --minutes 60 --seed 7

A real sshd, links that can be frozen and cut, targets that come and go, a log that is
full, signals and reloads; all of it at random, by a seed that is printed. Meanwhile
visitors send streams that either side knows by heart. What has to hold:

* after each blow everything listens again, by itself, within `RECOVERY_S`;
* no byte that arrives, at either end, is another one than was sent;
* the process neither ends nor grows: descriptors, threads and memory at the end are
  what they were after the first minute.

The status is 0 if all of it held.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from rtunnel.backend import BACKENDS
from rtunnel.bench.ports import free_port
from rtunnel.bench.sshd import Sshd
from tests.support.link import Link
from tests.support.shortage import short_of_descriptors
from tests.support.supervising import TomlFile, server_table, toml

SERVERS: Final = len(BACKENDS)
TUNNELS: Final = 3  # of each, a kind of visitor each
# The longest way back: keepalives (1.5 s), the server's (3 s), a port that is waited
# for (2 s), a login; on a machine that has other things to do.
RECOVERY_S: Final = 60.0
KEEPALIVE: Final = {"keepalive_interval_s": 0.5, "keepalive_count_max": 3}
RETRY: Final = {
    "first_s": 0.2,
    "max_s": 2,
    "stable_after_s": 1,
    "port_taken_first_s": 1,
    "port_taken_max_s": 2,
}
HEALTH: Final = {"interval_s": 0.3, "timeout_s": 2, "failures": 2}
CHUNK_BYTES: Final = 16384
# Each server has one of each kind: a bulk stream, one that types, short connections.
KINDS: Final[dict[str, tuple[float, int | None]]] = {
    "bulk": (0.0, None),
    "echo": (0.02, None),
    "short": (0.01, 1),
}
SEED_BYTES: Final = 8
# Where the log ends, as a disk that is full.
LOG_BYTES: Final = 1 << 20
# What may be more at the end than after the warm-up.
MOST_FILES: Final = 20
MOST_THREADS: Final = 10
MOST_MEMORY_BYTES: Final = 32 << 20
SETTLE_S: Final = 60.0


class Wrong(Exception):
    """Something that had to hold did not."""


def stream(seed: bytes) -> Iterator[bytes]:
    """Yield the chunks of the stream of this seed, for ever."""
    source = random.Random(seed)
    while True:
        yield source.randbytes(CHUNK_BYTES)


def read_exactly(conn: socket.socket, count: int) -> Iterator[bytes]:
    """Yield what comes, `count` bytes in all; less at the end of the stream."""
    while count and (data := conn.recv(count)):
        count -= len(data)
        yield data


@dataclass
class Tally:
    """What the streams came to; for any thread."""

    verified_bytes: int = 0
    connections: int = 0
    broken: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, where: str, sent: bytes, got: bytes) -> None:
        """Note bytes that arrived; they are the beginning of what was sent."""
        with self.lock:
            self.verified_bytes += len(got)
            if not sent.startswith(got):
                self.wrong.append(f"{where} got other bytes than were sent")


class EchoTarget:
    """A target that knows what visitors send, checks it and sends it back."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.port = free_port()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Take connections."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(
            target=self._accept, args=(self._listener,), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Take none any more; those that stand go on until they are reset."""
        if self._listener is not None and self._thread is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._thread.join()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = listener.accept()
                threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            conn.settimeout(RECOVERY_S)
            seed = b"".join(read_exactly(conn, SEED_BYTES))
            if len(seed) < SEED_BYTES:
                return  # a health check
            for chunk in stream(seed):
                at = 0
                for data in read_exactly(conn, CHUNK_BYTES):
                    self._tally.check("a target", chunk[at:], data)
                    at += len(data)
                    conn.sendall(data)
                if at < CHUNK_BYTES:
                    return


class Visitor:
    """Sends a stream to a port and checks what comes back; if it breaks, anew."""

    def __init__(
        self, port: int, tally: Tally, over: threading.Event, kind: str
    ) -> None:
        self._port = port
        self._tally = tally
        self._over = over
        # How long it waits between two chunks, and how many make a connection.
        self._pause_s, self._most_chunks = KINDS[kind]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(RECOVERY_S)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._visit()
            except OSError:
                with self._tally.lock:
                    self._tally.broken += 1
                self._over.wait(0.1)

    def _visit(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), 10) as conn:
            # A frozen link is noticed from the other side.
            conn.settimeout(RECOVERY_S)
            seed = os.urandom(SEED_BYTES)
            conn.sendall(seed)
            with self._tally.lock:
                self._tally.connections += 1
            for chunk in itertools.islice(stream(seed), self._most_chunks):
                conn.sendall(chunk)
                at = 0
                for data in read_exactly(conn, CHUNK_BYTES):
                    self._tally.check("a visitor", chunk[at:], data)
                    at += len(data)
                if at < CHUNK_BYTES:
                    raise ConnectionResetError
                if self._over.wait(self._pause_s):
                    return


@dataclass(frozen=True, slots=True)
class Size:
    """What a process has of what may leak."""

    files: int
    threads: int
    memory_bytes: int

    @classmethod
    def of(cls, pid: int) -> Size:
        """Look at a process."""
        proc = Path(f"/proc/{pid}")
        fields = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines()
        )
        return cls(
            files=len(os.listdir(proc / "fd")),
            threads=int(fields["Threads"]),
            memory_bytes=int(fields["VmRSS"].split()[0]) * 1024,
        )

    def __str__(self) -> str:
        return (
            f"{self.files} files, {self.threads} threads, "
            f"{self.memory_bytes / 2**20:.1f} MiB"
        )


class Soak:
    """One run: what is broken, and what has to hold."""

    def __init__(self, folder: Path, chance: random.Random, backend: str) -> None:
        self.chance = chance
        self._backends = BACKENDS if backend == "each" else [backend] * SERVERS
        self.tally = Tally()
        self.recoveries: dict[str, list[float]] = {}
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._sshd = Sshd(folder / "sshd", "ClientAliveInterval 1", "LogLevel ERROR")
        self._sshd.start()
        self._stack.callback(self._sshd.stop)
        self._links = [
            self._stack.enter_context(Link(self._sshd.port)) for _ in range(SERVERS)
        ]
        self._targets = [EchoTarget(self.tally) for _ in range(TUNNELS)]
        for target in self._targets:
            target.open()
            self._stack.callback(target.close)
        self._ports = [[free_port() for _ in range(TUNNELS)] for _ in range(SERVERS)]
        self._changes = 0
        self._changing_port = free_port()
        self._status = f"127.0.0.1:{free_port()}"
        self._file = TomlFile(folder / "tunnels.toml")
        self._write()
        self.process = self._start()
        self._over = threading.Event()
        self._visitors = [
            Visitor(port, self.tally, self._over, kind)
            for ports in self._ports
            for port, kind in zip(ports, KINDS, strict=True)
        ]

    def _start(self) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._folder / "log").open("wb"))

        process = subprocess.Popen(
            [sys.executable, "-m", "rtunnel", "run", "-v", str(self._file.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        limits = LOG_BYTES, LOG_BYTES
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
        return process

    def _write(self) -> None:
        """Write the file; one tunnel in it is another one each time."""
        changing = {
            "listen": self._changing_port,
            "to": f"127.0.0.1:{self._targets[self._changes % TUNNELS].port}",
            "priority": ("auto", "bulk")[self._changes // TUNNELS % 2],
        }
        servers: dict[str, Any] = {}
        for number, (link, ports) in enumerate(
            zip(self._links, self._ports, strict=True)
        ):
            tunnels: dict[str, Any] = {
                f"t{index}": {
                    "listen": f"127.0.0.1:{port}",
                    "to": f"127.0.0.1:{target.port}",
                    "health": HEALTH,
                }
                for index, (port, target) in enumerate(
                    zip(ports, self._targets, strict=True)
                )
            }
            if number == 0:
                tunnels[f"changing{self._changes % 2}"] = changing
            servers[f"s{number}"] = server_table(
                self._sshd,
                link.port,
                tunnels=tunnels,
                retry=RETRY,
                backend=self._backends[number],
                **KEEPALIVE,
            )
        self._file.write_text(toml({"status": self._status, "servers": servers}))

    # Blows.

    def restart_sshd(self) -> None:
        """Stop the server with all its sessions; start it a while later."""
        self._sshd.stop()
        time.sleep(self.chance.uniform(0, 3))
        self._sshd.start()

    def kill_sessions(self) -> None:
        """Kill the server's side of every connection."""
        self._sshd.kill_sessions()

    def cut_link(self) -> None:
        """Reset one connection on both sides."""
        self.chance.choice(self._links).cut()

    def freeze_link(self) -> None:
        """Make a black hole of one connection."""
        self.chance.choice(self._links).freeze_those_that_stand()

    def freeze_all_links(self) -> None:
        """Make black holes of all connections."""
        for link in self._links:
            link.freeze_those_that_stand()

    def storm_of_signals(self) -> None:
        """Send SIGHUP hundreds of times, and change the file meanwhile."""
        for number in range(300):
            self.process.send_signal(signal.SIGHUP)
            if number % 40 == 0:
                self.change_file()

    def change_file(self) -> None:
        """Have another tunnel in the file."""
        self._changes += 1
        self._write()

    def write_nonsense(self) -> None:
        """Have a mistake in the file for a while; nothing may change."""
        self._file.write_text("[servers\n")
        self.process.send_signal(signal.SIGHUP)
        time.sleep(self.chance.uniform(0, 1))
        self._write()

    def take_target_away(self) -> None:
        """Close a target until its ports are paused, then open it."""
        target = self.chance.choice(self._targets)
        target.close()
        self._wait(lambda: "paused" in self._states(), "no port was paused")
        target.open()

    def stop_process(self) -> None:
        """Stop the process for a while, as a laptop that sleeps."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0, 5))
        self.process.send_signal(signal.SIGCONT)

    def starve_process(self) -> None:
        """Let the process have no more descriptors than it has, for a while."""
        with short_of_descriptors(self.process.pid):
            time.sleep(self.chance.uniform(0, 3))

    def do_nothing(self) -> None:
        """Let streams run."""
        time.sleep(self.chance.uniform(0, 2))

    # Those that a connection does not survive, and the others.
    BREAKING: Final = (
        *(restart_sshd, kill_sessions, cut_link, freeze_link, freeze_all_links),
    )
    BLOWS: Final = (
        *BREAKING,
        *(storm_of_signals, change_file, write_nonsense, take_target_away, do_nothing),
        *(stop_process, starve_process),
    )

    # What has to hold.

    def blow(self) -> None:
        """Break something; wait until all is back."""
        blow = self.chance.choice(self.BLOWS)
        name = blow.__name__
        before = self._reconnects()
        began_s = time.monotonic()
        blow(self)
        if blow in self.BREAKING:
            self._wait(lambda: self._reconnects() > before, f"{name} was not noticed")
        else:
            # What was changed is noticed a moment later.
            time.sleep(1)
        self.wait_ready(name)
        self.recoveries.setdefault(name, []).append(time.monotonic() - began_s)

    def wait_ready(self, after: str) -> None:
        """Wait until everything listens. Raises Wrong."""
        self._wait(self._is_ready, f"after {after} not everything is back")

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline_s = time.monotonic() + RECOVERY_S
        while not condition():
            if self.process.poll() is not None:
                status = self.process.returncode
                raise Wrong(f"{otherwise}: the process ended with status {status}")
            if self.tally.wrong:
                raise Wrong(self.tally.wrong[0])
            if time.monotonic() > deadline_s:
                raise Wrong(f"{otherwise} within {RECOVERY_S:g} s: {self._fetch()}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        return bool(self._fetch().get("ready"))

    def _reconnects(self) -> int:
        connections = self._fetch().get("connections", [])
        return sum(connection["reconnects"] for connection in connections)

    def _states(self) -> set[str]:
        return {
            row["state"]
            for connection in self._fetch().get("connections", [])
            for row in connection["listeners"]
        }

    def _fetch(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://{self._status}/status") as answer:
                status: dict[str, Any] = json.load(answer)
                return status
        except OSError:
            return {}

    def size(self) -> Size:
        """Return what the process has now."""
        return Size.of(self.process.pid)

    def rest(self, than: Size) -> Size:
        """End the visitors; return the size when what ends by itself has ended."""
        self._over.set()
        for visitor in self._visitors:
            visitor.join()
        deadline_s = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline_s:
            size = self.size()
            if size.files <= than.files and size.threads <= than.threads:
                break
            time.sleep(0.5)
        return self.size()

    def close(self) -> int:
        """End it; return the exit status of the process."""
        self.process.terminate()
        status = self.process.wait(RECOVERY_S)
        self._over.set()
        self._stack.close()
        return status


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0), default=1.0, show_default=True)
@click.option(
    "--backend",
    type=click.Choice(["each", *BACKENDS]),
    default="each",
    show_default=True,
    help="What the connections run on; each: a connection on each.",
)
@click.option("--seed", type=int, help="What is broken when; random if not given.")
def main(minutes: float, backend: str, seed: int | None) -> None:
    """Break everything around `rtunnel run` for some minutes."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    click.echo(f"{minutes:g} min, backend {backend}, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="rtunnel-soak-") as name:
        folder = Path(name)
        soak = Soak(folder, random.Random(seed), backend)
        try:
            wrong = _soak(soak, minutes * 60)
        finally:
            status = soak.close()
        if status != 0:
            wrong.append(f"in the end the status of the process was {status}")
        wrong += soak.tally.wrong
        for line in wrong:
            click.echo(f"WRONG: {line}")
        if wrong:
            descriptor, kept = tempfile.mkstemp(prefix="rtunnel-soak-", suffix=".log")
            os.close(descriptor)
            shutil.copyfile(folder / "log", kept)
            click.echo(f"what it logged: {kept}")
    click.echo("all of it held" if not wrong else "it did not hold")
    sys.exit(bool(wrong))


def _soak(soak: Soak, limit_s: float) -> list[str]:
    began_s = time.monotonic()
    first: Size | None = None
    told_s = began_s
    blows = 0
    try:
        soak.wait_ready("the start")
        while time.monotonic() - began_s < limit_s:
            soak.blow()
            blows += 1
            now_s = time.monotonic()
            if first is None and now_s - began_s >= min(60, limit_s / 2):
                first = soak.size()
            if now_s - told_s >= 60:
                told_s = now_s
                click.echo(_line(soak, now_s - began_s, blows))
    except Wrong as error:
        return [str(error)]
    first = first or soak.size()
    last = soak.rest(first)
    click.echo(_line(soak, time.monotonic() - began_s, blows))
    for name, times in sorted(soak.recoveries.items()):
        click.echo(
            f"  {name:18} {len(times):4} times, all back within {max(times):5.1f} s"
        )
    click.echo(f"  then {first}; now {last}")
    grown = (
        (last.files - first.files, MOST_FILES, "files"),
        (last.threads - first.threads, MOST_THREADS, "threads"),
        (last.memory_bytes - first.memory_bytes, MOST_MEMORY_BYTES, "bytes of memory"),
    )
    return [
        f"it has {more} more {what} than after the warm-up"
        for more, most, what in grown
        if more > most
    ]


def _line(soak: Soak, passed_s: float, blows: int) -> str:
    tally = soak.tally
    return (
        f"{passed_s / 60:6.1f} min: {blows} blows; {tally.verified_bytes / 1e9:.2f} GB "
        f"verified on {tally.connections} connections, {tally.broken} broken off; "
        f"{soak.size()}"
    )


if __name__ == "__main__":
    main()
