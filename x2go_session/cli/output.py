"""What the commands print: events and rows, for people or as one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import threading
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import click

from x2go_session import events
from x2go_session.events import Event


class Output:
    """Prints; from any thread, one line at a time."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._lock = threading.Lock()

    def event(self, event: Event) -> None:
        """Print what happened; a step of progress goes to stderr."""
        if self.as_json:
            self.row(as_dict(event))
            return
        text = sentence(event)
        if text is None or (self._quiet and isinstance(event, events.Progress)):
            return
        with self._lock:
            click.echo(text, err=isinstance(event, events.Progress))

    def row(self, values: Mapping[str, Any]) -> None:
        """Print one object as JSON."""
        with self._lock:
            click.echo(json.dumps(values))
            sys.stdout.flush()

    def line(self, text: str) -> None:
        """Print a line for people."""
        with self._lock:
            click.echo(text)
            sys.stdout.flush()


def name_of(event: Event) -> str:
    """Return what JSON calls an event: `session-started`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(event).__name__).lower()


def as_dict(event: Event) -> dict[str, Any]:
    """Return an event as what JSON can say."""
    values = {
        field.name: _plain(getattr(event, field.name))
        for field in dataclasses.fields(event)
        if not field.name.startswith("_") and field.name != "timeout_s"
    }
    return {"event": name_of(event), **values}


def sentence(event: Event) -> str | None:
    """Return an event as a line for people; None if it says them nothing."""
    match event:
        case events.Progress(percent=percent, step=step):
            return f"failed: {step}" if percent < 0 else f"{percent:3d} % {step}"
        case events.SessionResumed(session=name, display=display):
            return f"resumed: {name} (display :{display} on the server)"
        case events.SessionStarted(session=name, display=display):
            return f"started: {name} (display :{display} on the server)"
        case events.SessionSuspended(session=name, by_us=by_us):
            return f"suspended{'' if by_us else ' by the server'}: {name}"
        case events.SessionTakenOver(session=name):
            return f"taken over by another client: {name}"
        case events.SessionTerminated(session=name, by_us=by_us):
            return f"{'terminated' if by_us else 'ended'}: {name}"
        case events.ConnectionDied(reason=reason):
            return f"connection lost: {reason}"
        case events.ConnectionRestored():
            return "connected again"
        case events.ServiceStarted(service=service, port=port):
            return f"{service} works" + (f" (port {port})" if port else "")
        case events.ServiceFailed(service=service, reason=reason):
            return f"{service} does not work: {reason}"
        case events.FolderShared(folder=folder, mount_point=mount_point):
            return f"shared: {folder} at {mount_point}"
        case events.FolderUnshared(folder=folder):
            return f"not shared any more: {folder}"
        case events.FolderNotShared(folder=folder, reason=reason):
            return f"not shared: {folder}: {reason}"
        case events.PrintJobDone(title=title, target=target):
            return f"print job {title!r}: {target}"
        case events.PrintJobFailed(title=title, reason=reason):
            return f"print job {title!r} failed: {reason}"
        case events.MimeFileDone(name=name, action=action):
            return f"file {name!r}: {action.lower()}"
        case events.MimeFileFailed(name=name, reason=reason):
            return f"file {name!r} refused: {reason}"
        case events.GraphicsFailed(reason=reason):
            return f"no graphics: {reason}"
        case _:
            return None


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    return value
