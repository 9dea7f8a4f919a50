"""What is done with a file that arrived in the MIME box, and which are refused."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from x2go_session.errors import ServiceError
from x2go_session.services.print_actions import save_as
from x2go_session.services.programs import LAUNCH_WAIT_S, launch, split

DEFAULT_OPENER: Final = "xdg-open"
# What X2Go clients never open.
REFUSED_EXTENSIONS: Final = frozenset(
    {
        *("LOCK", "SYS", "SWP", "EXE", "COM", "CMD", "PS1", "PS2", "BAT", "JS"),
        *("PY", "PL", "SH"),
    }
)
# And what a Linux desktop would run when told to open it.
RUN_WHEN_OPENED: Final = frozenset(
    {"DESKTOP", "APPIMAGE", "JAR", "JNLP", "RUN", "BIN", "VBS", "LNK"}
)


class MimeActionError(ServiceError):
    """A file could not be opened or saved: says why."""


class MimeAction(Protocol):
    """What is done with a file: called on a thread of its own."""

    @property
    def name(self) -> str:
        """What X2Go clients call it."""

    def run(self, file: Path, stop: threading.Event) -> str:
        """Do it; return what was done, for a person. Blocks as long as it takes.

        The file is removed afterwards. Raises `MimeActionError`,
        `programs.ProgramError`, OSError.
        """


@dataclass(frozen=True, slots=True)
class Open:
    """Opens it with the program that the desktop has for such files."""

    wait_s: float = LAUNCH_WAIT_S
    name = "OPEN"

    def run(self, file: Path, stop: threading.Event) -> str:
        launch([DEFAULT_OPENER, str(file)], stop, self.wait_s)
        return f"opened with {DEFAULT_OPENER}"


@dataclass(frozen=True, slots=True)
class OpenWith:
    """Opens it with a program of the user's choice."""

    command: str = DEFAULT_OPENER
    wait_s: float = LAUNCH_WAIT_S
    name = "OPENWITH"

    def run(self, file: Path, stop: threading.Event) -> str:
        argv = [*split(self.command), str(file)]
        launch(argv, stop, self.wait_s)
        return f"opened with {argv[0]}"


@dataclass(frozen=True, slots=True)
class SaveAs:
    """Asks the user where to save it.

    `ask` is called on the thread of the job and may take its time. It returns a folder,
    a path that may be written to (it replaces what is there), or None to drop the file.
    It should return once the event is set. Without `ask`, the MIME box service asks by
    a `SaveAsQuestion`.
    """

    ask: Callable[[Path, threading.Event], Path | None] | None = None
    name = "SAVEAS"

    def run(self, file: Path, stop: threading.Event) -> str:
        if self.ask is None:
            raise MimeActionError("there is nobody to ask where to save")
        target = self.ask(file, stop)
        if target is None:
            return "not saved"
        try:
            if target.is_dir():
                target = save_as(file, target, file.name)
            else:
                shutil.copyfile(file, target)
        except OSError as error:
            raise MimeActionError(
                f"cannot save as {target}: {error.strerror}"
            ) from error
        return f"saved as {target}"


ACTIONS: Final = ("OPEN", "OPENWITH", "SAVEAS")


def mime_action(name: str, command: str = DEFAULT_OPENER) -> MimeAction:
    """Return the action that X2Go clients call so; `command` is for OPENWITH.

    Raises `MimeActionError` for another name.
    """
    actions: dict[str, MimeAction] = {
        action.name: action for action in (Open(), OpenWith(command), SaveAs())
    }
    try:
        return actions[name.upper()]
    except KeyError:
        known = ", ".join(ACTIONS)
        raise MimeActionError(
            f"unknown MIME box action {name!r}: use one of {known}"
        ) from None


def refusal(name: str, extensions: Sequence[str] = ()) -> str | None:
    """Return why a file of this name is refused; None if it is not.

    Hidden files and what would run always are. With `extensions`, so is whatever ends
    with none of them.
    """
    if name.startswith("."):
        return "hidden files are not taken"
    # Some programs ignore blanks and dots at the end of a name.
    upper = name.upper().rstrip(". \t")
    extension = upper.rpartition(".")[2].strip()
    if "." in upper and extension in REFUSED_EXTENSIONS | RUN_WHEN_OPENED:
        return f"files of type {extension} are never taken, since they may run"
    wanted = tuple(f".{wanted.strip().lstrip('.').upper()}" for wanted in extensions)
    if extensions and not upper.endswith(wanted):
        return f"only files of type {', '.join(extensions)} are taken"
    return None
