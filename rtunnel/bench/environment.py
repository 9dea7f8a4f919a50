"""Where a benchmark ran: what every figure depends on, for the head of each table."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rtunnel import __version__, _engine


def describe(arguments: str) -> dict[str, str]:
    """Return what is known of this machine, this rtunnel and its peers, by name."""
    path, version = _engine.load_libcrypto()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"rtunnel bench {arguments}".strip(),
        "rtunnel": " ".join(filter(None, [__version__, _commit()])),
        "libcrypto": f"{version} ({Path(path).name})",
        "ssh": _output("ssh", "-V"),
        "python": f"{platform.python_version()} {sys.implementation.name}",
        "libraries": ", ".join(
            f"{name} {found}"
            for name in ("paramiko", "cryptography", "asyncssh")
            if (found := _installed(name))
        ),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{_memory_bytes() / (1 << 30):.0f} GiB",
    }


def _commit() -> str:
    """Return the commit that this package is a checkout of, if it is one."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return ""
    git = ("git", "-c", f"safe.directory={root}", "-C", str(root))
    commit = _output(*git, "rev-parse", "--short", "HEAD")
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return f"commit {commit}{' with changes' if changed else ''}"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.split(":")[1] for line in lines if line.startswith("model name"))
    return next(models, platform.machine()).strip()


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    if not shutil.which(command[0]):
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()
