"""Build the two compiled modules; all metadata is in pyproject.toml.

Switches (environment variables, `1` turns them on):
    RTUNNEL_DEBUG       counters of live objects, faults on demand (tests/c)
    RTUNNEL_SANITIZE    AddressSanitizer and UBSan (`make sanitize` makes both)
    RTUNNEL_WERROR      warnings of the C compiler are errors
"""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

PUMP = Path("src/pump")
DEBUG = os.environ.get("RTUNNEL_DEBUG") == "1"
SANITIZE = os.environ.get("RTUNNEL_SANITIZE") == "1"
WERROR = os.environ.get("RTUNNEL_WERROR") == "1"
FAULTS = Path("tests/c")

cflags = ["-std=c11", "-D_GNU_SOURCE", "-fvisibility=hidden", "-Wall", "-Wextra"]
# dlopen and threads are in libc itself since glibc 2.34; before, and elsewhere, not.
ldflags = ["-ldl", "-pthread"]
if SANITIZE:
    cflags += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    ldflags += ["-fsanitize=address,undefined"]
elif DEBUG:
    cflags += ["-O0", "-g"]
else:
    cflags += ["-O3"]
if WERROR:
    cflags += ["-Werror"]
debug_sources: list[str] = []
if DEBUG:
    debug_sources = [str(PUMP / "live.c"), str(FAULTS / "faults.c")]
    # Every call that can fail goes through faults.c, which can let it fail.
    ldflags += [f"-Wl,@{FAULTS / 'faults.wrap'}"]


def extension(name: str, *c_sources: str) -> Extension:
    """Describe `rtunnel.<name>`: `<name>.pyx` and the C files that it calls."""
    return Extension(
        f"rtunnel.{name}",
        [
            str(PUMP / f"{name}.pyx"),
            *(str(PUMP / source) for source in c_sources),
            *debug_sources,
        ],
        include_dirs=[str(PUMP)],
        depends=[str(header) for header in sorted(PUMP.glob("*.h"))],
        define_macros=[("RT_DEBUG", "1" if DEBUG else "0")],
        extra_compile_args=cflags,
        extra_link_args=ldflags,
    )


setup(
    ext_modules=cythonize(
        [
            extension(
                "_engine",
                "gcm.c",
                "buffer.c",
                "share.c",
                "channels.c",
                "packets.c",
                "messages.c",
                "path.c",
                "sizing.c",
                "schedule.c",
                "limiter.c",
                "loop.c",
                "engine.c",
            ),
            extension(
                "_pump",
                "ring.c",
                "relay.c",
                "share.c",
                "port.c",
                "poller.c",
                "reactor.c",
            ),
        ],
        build_dir="build/cython",
        include_path=[str(PUMP)],
        compiler_directives={
            "language_level": "3",
            "freethreading_compatible": True,
            "auto_pickle": False,
            "embedsignature": True,
        },
    ),
    # The two compile side by side.
    options={"build_ext": {"parallel": 2}},
)
