"""Choose what moves the bytes of a connection: engine, pump or python.

The policy. `auto` takes the best that runs *on this connection*: the engine where
the transport has an active one, else the compiled pump, else the reference in
Python. A name, given as argument or in RTUNNEL_BACKEND, is an order: if that backend
cannot run here, `BackendUnavailable` says why, and nothing else is tried. An argument
wins over what the transport was made with, and that over the environment.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from rtunnel.backend import AUTO, BACKEND_VARIABLE, requested_backend
from rtunnel.errors import BackendUnavailable
from rtunnel.ssh import seams
from rtunnel.ssh.channel import PortableBackend
from rtunnel.ssh.relay import Backend


def choose_backend(
    transport: seams.AnyTransport, requested: str | None = None
) -> tuple[Backend, str]:
    """Return the backend for this transport, and why it is this one.

    Raises `BackendUnavailable` when the one that was named cannot run here.
    """
    if requested is None:
        wish = getattr(transport, "backend_wish", None)
        # A transport takes its wish from the environment where it was given none.
        requested = wish if wish != os.environ.get(BACKEND_VARIABLE) else None
    asked_by = "asked for" if requested else f"asked for by {BACKEND_VARIABLE}"
    wanted = requested_backend(requested)
    if wanted == "engine":
        why_not = _why_no_engine(transport)
        if why_not is not None:
            raise BackendUnavailable(
                f"the backend 'engine' was {asked_by}, but cannot run: {why_not}"
            )
        return _engine(transport), asked_by
    if wanted == "pump":
        try:
            return PortableBackend(transport, _pump()), asked_by
        except ImportError as error:
            raise BackendUnavailable(
                f"the backend 'pump' was {asked_by}, but rtunnel._pump does not load "
                f"({error}): build it with `pip install .`"
            ) from error
    if wanted == "python":
        return PortableBackend(transport, _pump_py()), asked_by
    assert wanted == AUTO
    why_not = _why_no_engine(transport)
    if why_not is None:
        return _engine(transport), "it runs on this connection"
    try:
        return PortableBackend(transport, _pump()), f"no engine: {why_not}"
    except ImportError as error:
        reason = f"no engine: {why_not}; no pump: {error}"
        return PortableBackend(transport, _pump_py()), reason


def _why_no_engine(transport: seams.AnyTransport) -> str | None:
    status = getattr(transport, "engine_status", None)
    if status is None:
        return "the transport is not an rtunnel.Transport"
    return None if status.active else str(status.reason)


def _engine(transport: seams.AnyTransport) -> Backend:
    # Imported here: the compiled module may be missing where it is not used.
    module = importlib.import_module("rtunnel.ssh.engine_backend")
    backend: Backend = module.EngineBackend(transport)
    return backend


def _pump() -> ModuleType:
    return importlib.import_module("rtunnel._pump")


def _pump_py() -> ModuleType:
    return importlib.import_module("rtunnel._pump_py")
