"""What a scenario stands on: settings, servers, targets, links and tunnels."""

from __future__ import annotations

import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

from rtunnel.bench.load import ENDLESS, Counter
from rtunnel.bench.peers import CIPHER
from rtunnel.bench.ports import LOOPBACK
from rtunnel.bench.process import BenchError, Child, python
from rtunnel.bench.results import OURS, Figure, Parameters, Sample
from rtunnel.bench.sshd import SSHD, Login, Sshd

CONNECT_TIMEOUT_S: Final = 30.0
FIRST_BYTE_TIMEOUT_S: Final = 30.0
# Who is measured besides the peers: without a tunnel; rtunnel with its own server.
DIRECT: Final = "direct"
GATEWAY: Final = "own gateway"
_ALLOCATED: Final = re.compile(r"Allocated port (\d+) for remote forward to \S+:(\d+)")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user chose."""

    against: tuple[str, ...] = ("ssh", "asyncssh", "paramiko")
    rounds: int = 5
    quick: bool = False

    def pick(self, normal: float, quick: float) -> float:
        """Return one of two sizes."""
        return quick if self.quick else normal


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel that stands: the client's process, and the server's ports in order."""

    client: Child
    ports: tuple[int, ...]


class Stage:
    """The servers of a run, started when they are first needed; all end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._counters = 0

    @cached_property
    def sshd(self) -> Sshd:
        """The sshd that all peers share."""
        for program in (SSHD, "ssh", "ssh-keygen"):
            if shutil.which(program) is None:
                raise BenchError(
                    f"{program} is needed: install OpenSSH, client and server (Debian: "
                    "apt-get install openssh-server openssh-client)"
                )
        return self._stack.enter_context(Sshd(self.folder / "sshd"))

    @cached_property
    def gateway(self) -> Login:
        """The login for our own gateway, as a process of its own."""
        child = python("gateway", "gateway", self.sshd.authorized_keys)
        answer = self._stack.enter_context(child).read()
        known_hosts = self.folder / "known_hosts_gateway"
        known_hosts.write_text(answer["known_hosts"])
        return Login(answer["port"], self.sshd.user, self.sshd.user_key, known_hosts)

    def login(self, peer: str) -> Login:
        """Return the login for the server that a peer is a client of."""
        return self.gateway if peer == GATEWAY else self.sshd.login

    def target(
        self, kind: str, count: int = ENDLESS, counter: Path | None = None
    ) -> int:
        """Start a target that runs as long as the stage; return its port."""
        name = f"target {kind}"
        child = python(name, "load", "target", kind, count, counter or "-")
        return int(self._stack.enter_context(child).read_line())

    def counter(self) -> Path:
        """Make a file for a `load.Counter`."""
        self._counters += 1
        path = self.folder / f"counter{self._counters}"
        Counter.make(path)
        return path

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


class Scenario(ABC):
    """One thing that is measured, for one peer after the other, round by round."""

    name: ClassVar[str]
    title: ClassVar[str]
    figures: ClassVar[tuple[Figure, ...]]
    # Whom of those that can be chosen it makes sense to measure here.
    against: ClassVar[tuple[str, ...]] = ("ssh", "asyncssh", "paramiko")
    # Measured besides: what is no tunnel, but a measure for one.
    references: ClassVar[tuple[str, ...]] = ()

    def __init__(self, stage: Stage, settings: Settings) -> None:
        self.stage = stage
        self.settings = settings
        self.notes: list[str] = []

    @property
    def peers(self) -> tuple[str, ...]:
        """Who is measured, ours first."""
        chosen = [peer for peer in self.settings.against if peer in self.against]
        return (OURS, *chosen, *self.references)

    @abstractmethod
    def parameters(self) -> Parameters:
        """Return every number that the figures depend on, by name."""

    @abstractmethod
    def measure(self, peer: str, number: int) -> Sample:
        """Measure one peer in round `number`, from 0."""


# -- tunnels, visitors, links ----------------------------------------------------------


@contextmanager
def tunnel(peer: str, login: Login, targets: Iterable[int]) -> Iterator[Tunnel]:
    """Open a tunnel of a peer to each of the targets, for the time of the block."""
    ports = tuple(targets)
    if peer != "ssh":
        program = OURS if peer == GATEWAY else peer
        child = python(peer, "peers", program, *login.words(), *ports)
        with child:
            yield Tunnel(child, tuple(child.read()["ports"]))
        return
    options = ["-N", "-o", f"Ciphers={CIPHER}"]
    for port in ports:
        options += ["-R", f"{LOOPBACK}:0:{LOOPBACK}:{port}"]
    with Child(peer, login.ssh_command(*options), joined=True) as child:
        found: dict[int, int] = {}
        while len(found) < len(set(ports)):
            line = child.read_line(CONNECT_TIMEOUT_S)
            if match := _ALLOCATED.search(line):
                found[int(match[2])] = int(match[1])
        yield Tunnel(child, tuple(found[port] for port in ports))


def visitor(port: int, action: str, *numbers: object) -> Child:
    """Start a visitor; see `load`."""
    return python(f"visitor ({action})", "load", "visit", port, action, *numbers)


@contextmanager
def moving(who: str, port: int, action: str, count: int) -> Iterator[float]:
    """Let a visitor `send` or `receive`; give the seconds, while all is still open.

    Raises `BenchError` unless exactly `count` bytes arrived.
    """
    with visitor(port, action, count) as child:
        moved = child.read()
        if moved["bytes"] != count:
            raise BenchError(f"{who}: {moved['bytes']} of {count} bytes arrived")
        yield moved["seconds"]


@contextmanager
def link(to_port: int, rate_bytes_s: float, rtt_s: float, queue: int) -> Iterator[int]:
    """Put a link in front of a port, for the time of the block; give its own port."""
    with python("link", "link", to_port, rate_bytes_s, rtt_s, queue) as child:
        yield int(child.read_line())


def rate_of(counter: Path, warm_s: float, seconds: float) -> float:
    """Return the bytes per second that arrive, `warm_s` after the first of them.

    Raises `BenchError` if none does.
    """
    begin, deadline = Counter.read(counter), time.monotonic() + FIRST_BYTE_TIMEOUT_S
    while Counter.read(counter) == begin:
        if time.monotonic() > deadline:
            raise BenchError(f"nothing arrives in {FIRST_BYTE_TIMEOUT_S} s")
        time.sleep(0.01)
    time.sleep(warm_s)
    begin, begin_s = Counter.read(counter), time.perf_counter()
    time.sleep(seconds)
    return (Counter.read(counter) - begin) / (time.perf_counter() - begin_s)
