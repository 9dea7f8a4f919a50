"""A CUPS scheduler of our own, whose printer prints into files."""

from __future__ import annotations

import grp
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.ports import free_port, wait_listening

CUPSD = shutil.which("cupsd", path="/usr/sbin:/sbin:/usr/bin") or "/usr/sbin/cupsd"
LPADMIN = (
    shutil.which("lpadmin", path="/usr/sbin:/sbin:/usr/bin") or "/usr/sbin/lpadmin"
)

CUPSD_CONF = """\
Listen 127.0.0.1:{port}
LogLevel info
WebInterface No
Browsing No
DefaultAuthType None
<Location />
  Order allow,deny
  Allow from 127.0.0.1
</Location>
<Policy default>
  <Limit All>
    Order deny,allow
  </Limit>
</Policy>
"""

CUPS_FILES_CONF = """\
ServerBin {folder}/bin
ServerRoot {folder}/etc
RequestRoot {folder}/spool
CacheDir {folder}/cache
StateDir {folder}/state
TempDir {folder}/spool/tmp
DocumentRoot {folder}
Printcap {folder}/printcap
AccessLog {folder}/access_log
ErrorLog {folder}/error_log
PageLog {folder}/page_log
SystemGroup {group}
User lp
Group lp
"""

# What CUPS runs for each job: JOB USER TITLE COPIES OPTIONS [FILE]. The folder appears
# at once, with all that belongs to the job.
BACKEND = """\
#!/bin/sh
[ $# -gt 0 ] || exit 0
mkdir "{folder}/printed/.$1"
printf '%s' "$3" >"{folder}/printed/.$1/title"
cat "${{6:--}}" >"{folder}/printed/.$1/document"
mv "{folder}/printed/.$1" "{folder}/printed/$1"
"""
PROGRAMS = Path("/usr/lib/cups")


@dataclass(frozen=True)
class Printed:
    """What came out of the printer."""

    title: str
    document: bytes


class Cups:
    """Run cupsd at 127.0.0.1:`port`, with one printer called `queue`.

    `environment` takes lpr and its like there.
    """

    queue = "paper"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.environment = {"CUPS_SERVER": f"127.0.0.1:{self.port}"}
        for name in ("bin/backend", "etc", "spool/tmp", "cache", "state", "printed"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("daemon", "notifier"):
            (folder / "bin" / name).symlink_to(PROGRAMS / name)
        backend = folder / "bin" / "backend" / "paper"
        backend.write_text(BACKEND.format(folder=folder))
        # CUPS runs what only root may run as root, so it gets into our folder.
        backend.chmod(0o700)
        values = {
            "folder": folder,
            "port": self.port,
            "group": grp.getgrgid(os.getgid()).gr_name,
        }
        self._conf = folder / "cupsd.conf"
        self._conf.write_text(CUPSD_CONF.format(**values))
        self._files_conf = folder / "cups-files.conf"
        self._files_conf.write_text(CUPS_FILES_CONF.format(**values))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, and wait until its queue is there."""
        with (self.folder / "cupsd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [CUPSD, "-f", "-c", str(self._conf), "-s", str(self._files_conf)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_listening(self.port, 30.0)
        self._run(LPADMIN, "-p", self.queue, "-E", "-v", "paper:/", "-m", "raw")
        return self

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def printed(self) -> list[Printed]:
        """Return what came out so far, in the order in which it was sent."""
        folders = [
            folder
            for folder in (self.folder / "printed").iterdir()
            if folder.name.isdigit()
        ]
        return [
            Printed((folder / "title").read_text(), (folder / "document").read_bytes())
            for folder in sorted(folders, key=lambda folder: int(folder.name))
        ]

    def make_default(self) -> None:
        """Have it print what names no printer."""
        self._run(LPADMIN, "-d", self.queue)

    def _run(self, *command: str) -> None:
        subprocess.run(
            command,
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            timeout=60,
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
