"""Which backends can run in this process, and why one cannot.

Three move the bytes of forwarded channels:

    engine   inside rtunnel.Transport: crypto, packets and sockets in C (`_engine`)
    pump     on any transport: sockets in C (`_pump`), packets by paramiko
    python   the same in Python (`_pump_py`): the reference, and the last resort

`auto` takes the first that can run *on that connection*; a backend that is named
(`RTUNNEL_BACKEND`, or an argument) runs or is an error, and never gives way to
another silently. What is found out here holds for the whole process: the ciphers and
the transport of a connection may still rule out the engine for it alone.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import Final

from rtunnel.errors import BackendUnavailable

AUTO: Final = "auto"
# The fastest first: the order in which `auto` tries them.
BACKENDS: Final = ("engine", "pump", "python")

BACKEND_VARIABLE: Final = "RTUNNEL_BACKEND"
LIBCRYPTO_VARIABLE: Final = "RTUNNEL_LIBCRYPTO"

_BUILD_ADVICE: Final = (
    "this rtunnel was not compiled for this Python; `pip install .` compiles it "
    "(a C compiler and Python.h are needed)"
)


@dataclass(frozen=True, slots=True)
class Libcrypto:
    """The OpenSSL library that the engine uses; its known-answer test has passed."""

    path: str
    version: str


@dataclass(frozen=True, slots=True)
class BackendState:
    """Whether one backend can run here, and what speaks for or against it."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True, slots=True)
class BackendReport:
    """What runs here: `chosen` where a connection does not rule it out."""

    requested: str
    chosen: str | None  # None: what was requested cannot run here
    reason: str
    states: tuple[BackendState, ...]
    libcrypto: Libcrypto | None


def requested_backend(name: str | None = None) -> str:
    """Return the backend that is asked for: `name`, else RTUNNEL_BACKEND, else auto.

    Raises `BackendUnavailable` for a name that is none.
    """
    source = "backend" if name is not None else BACKEND_VARIABLE
    value = name if name is not None else os.environ.get(BACKEND_VARIABLE) or AUTO
    if value not in (AUTO, *BACKENDS):
        raise BackendUnavailable(
            f"{source} is {value!r}; expected one of {', '.join((AUTO, *BACKENDS))}"
        )
    return value


def load_libcrypto() -> Libcrypto:
    """Load libcrypto and run its known-answer test, once per process.

    `RTUNNEL_LIBCRYPTO` names the file; without it, the newest one found is taken.
    Raises `BackendUnavailable` with the reason, also where the engine cannot be
    imported.
    """
    try:
        import rtunnel._engine as engine
    except ImportError as error:
        raise BackendUnavailable(_why_not_imported(error)) from error
    try:
        name, version = engine.load_libcrypto(os.environ.get(LIBCRYPTO_VARIABLE))
    except engine.LibcryptoUnavailable as error:
        raise BackendUnavailable(
            f"{error}; install OpenSSL 3.0 or newer, or name its libcrypto with "
            f"{LIBCRYPTO_VARIABLE}"
        ) from None
    return Libcrypto(_mapped_file(name) or name, version)


def report() -> BackendReport:
    """Find out what can run here. Loads the compiled modules and libcrypto."""
    libcrypto, engine = _engine_state()
    states = (engine, _pump_state(), BackendState("python", True, "needs nothing"))
    try:
        wanted = requested_backend()
    except BackendUnavailable as error:
        wanted = os.environ[BACKEND_VARIABLE]
        return BackendReport(wanted, None, str(error), states, libcrypto)
    for state in states:
        if wanted == state.name:
            chosen = state.name if state.available else None
            reason = f"asked for by {BACKEND_VARIABLE}; {state.reason}"
            return BackendReport(wanted, chosen, reason, states, libcrypto)
    best = next(state for state in states if state.available)
    faster = states[: states.index(best)]
    reasons = [best.reason, *(f"not {state.name}: {state.reason}" for state in faster)]
    return BackendReport(wanted, best.name, "; ".join(reasons), states, libcrypto)


def _engine_state() -> tuple[Libcrypto | None, BackendState]:
    if sys.platform != "linux":
        reason = f"it needs epoll, which {sys.platform} has not"
        return None, BackendState("engine", False, reason)
    try:
        libcrypto = load_libcrypto()
    except BackendUnavailable as error:
        return None, BackendState("engine", False, str(error))
    reason = f"AES-GCM by {libcrypto.version}, self-test passed"
    return libcrypto, BackendState("engine", True, reason)


def _pump_state() -> BackendState:
    try:
        importlib.import_module("rtunnel._pump")
    except ImportError as error:
        return BackendState("pump", False, _why_not_imported(error))
    return BackendState("pump", True, "sockets in C, packets by paramiko")


def _why_not_imported(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return _BUILD_ADVICE
    return f"{error}; {_BUILD_ADVICE}"


def _mapped_file(library: str) -> str | None:
    """Return the path of a loaded library: the loader is told a name, and searches."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.rstrip("\n").partition("/")[2] for line in maps}
    except OSError:
        return None
    return next(
        (f"/{path}" for path in paths if f"/{path}".endswith(f"/{library}")), None
    )
