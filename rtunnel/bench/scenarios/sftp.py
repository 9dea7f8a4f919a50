"""Files over SFTP: the same code on our transport and on paramiko's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rtunnel.bench.process import BenchError, Child, python
from rtunnel.bench.results import Figure, Parameters, Sample
from rtunnel.bench.scenario import Scenario, Settings, Stage

CHUNK_BYTES = 1_000_000
# Files in memory, where that is: the disk is not what is measured.
MEMORY_FOLDER = Path("/dev/shm")
# The file, and its copy.
COPIES = 2


class Sftp(Scenario):
    """`paramiko.SFTPClient.put` and `.get` of one file, to and from the same sshd."""

    name = "sftp"
    title = "SFTP by rtunnel.Transport and by paramiko.Transport"
    figures = (
        Figure("put", "MB/s", more_is_better=True),
        Figure("get", "MB/s", more_is_better=True),
        Figure("put CPU", "s/GB"),
        Figure("get CPU", "s/GB"),
    )
    against = ()
    references = ("paramiko",)

    def __init__(self, stage: Stage, settings: Settings) -> None:
        super().__init__(stage, settings)
        self._count = int(settings.pick(1_000_000_000, 32_000_000))

    def parameters(self) -> Parameters:
        """Return every number that the figures depend on, by name."""
        return {"MB": self._count // 1_000_000}

    def measure(self, peer: str, number: int) -> Sample:
        """Measure one peer in round `number`, from 0."""
        login = self.stage.sshd.login
        figures: dict[str, float] = {}
        with (
            self._folder() as folder,
            python(f"SFTP by {peer}", "files", peer, *login.words()) as child,
        ):
            file, copy = folder / "file", folder / "copy"
            with file.open("wb") as writing:
                for _ in range(self._count // CHUNK_BYTES):
                    writing.write(os.urandom(CHUNK_BYTES))
            for action in ("put", "get"):
                figures |= self._move(child, action, file, copy)
                copy.unlink()
        return Sample(figures)

    def _move(
        self, child: Child, action: str, file: Path, copy: Path
    ) -> dict[str, float]:
        moved = child.ask(f"{action} {file} {copy}")
        if moved["bytes"] != self._count:
            raise BenchError(
                f"{child.name}: {moved['bytes']} of {self._count} bytes arrived"
            )
        return {
            action: self._count / 1e6 / moved["seconds"],
            f"{action} CPU": moved["cpu_s"] / self._count * 1e9,
        }

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        where = self.stage.folder
        if MEMORY_FOLDER.is_dir() and os.access(MEMORY_FOLDER, os.W_OK):
            room = os.statvfs(MEMORY_FOLDER)
            if room.f_bavail * room.f_frsize > COPIES * self._count:
                where = MEMORY_FOLDER
        with TemporaryDirectory(prefix="rtunnel-bench-", dir=where) as name:
            yield Path(name)
