"""What is done with a document that was printed in the session.

Five actions, under the names that X2Go clients have for them. A title is whatever an
application over there made up: it becomes a file name, or one argument of a program,
and is made harmless first.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from x2go_session.errors import ServiceError
from x2go_session.services.programs import (
    LAUNCH_WAIT_S,
    ProgramMissing,
    launch,
    run,
    split,
)
from x2go_session.services.spool import file_name

DEFAULT_TITLE: Final = "X2Go Print Job"
DEFAULT_VIEWER: Final = "xdg-open"
DEFAULT_PRINT_COMMAND: Final = "lpr"
DEFAULT_FOLDER: Final = "PDF"
FOLDER_MODE: Final = 0o755
SAVED_MODE: Final = 0o644
# An IPP job name, see RFC 8011, section 5.1.3.
TITLE_LIMIT_BYTES: Final = 255
# How many documents of one title are told apart by a number.
MOST_NUMBERED: Final = 9999


class PrintActionError(ServiceError):
    """An action could not do what it should: says what, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Document:
    """A printed document: a PDF that nobody else has, and its title."""

    path: Path
    title: str
    # Set when the session is over, and whoever waits should stop.
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        """A file name that looks like the title."""
        return pdf_name(self.title)


@runtime_checkable
class PrintAction(Protocol):
    """What is done with a document: called on a thread of its own."""

    @property
    def name(self) -> str:
        """What X2Go clients call it."""

    def run(self, document: Document) -> str:
        """Do it; return what was done, for a person. Blocks as long as it takes.

        The document is removed afterwards. Raises `PrintActionError`,
        `programs.ProgramError`.
        """


@dataclass(frozen=True, slots=True)
class PdfView:
    """Shows it with a viewer; a viewer that is missing is stood in for by xdg-open."""

    command: str = DEFAULT_VIEWER
    wait_s: float = LAUNCH_WAIT_S
    name = "PDFVIEW"

    def run(self, document: Document) -> str:
        for command in (self.command, DEFAULT_VIEWER):
            argv = [*split(command), str(document.path)]
            try:
                launch(argv, document.stop, self.wait_s)
            except ProgramMissing:
                if command == DEFAULT_VIEWER:
                    raise
            else:
                return f"shown with {argv[0]}"
        raise AssertionError("not reached: the default returns or raises")


@dataclass(frozen=True, slots=True)
class PdfSave:
    """Puts it into a folder, which is relative to the user's home directory."""

    folder: str = DEFAULT_FOLDER
    name = "PDFSAVE"

    def run(self, document: Document) -> str:
        folder = Path.home() / os.path.expanduser(self.folder)
        try:
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            return f"saved as {save_as(document.path, folder, document.name)}"
        except OSError as error:
            raise PrintActionError(
                f"cannot save in {folder}: {error.strerror}"
            ) from error


@dataclass(frozen=True, slots=True)
class Print:
    """Gives it to a printer of this machine, to the default one if none is named."""

    printer: str | None = None
    name = "PRINT"

    def run(self, document: Document) -> str:
        title = printable_title(document.title)
        printer = [f"-P{self.printer}"] if self.printer else []
        run(
            ["lpr", "-h", "-r", *printer, f"-J{title}", str(document.path)],
            document.stop,
        )
        return f"printed on {self.printer or 'the default printer'}"


@dataclass(frozen=True, slots=True)
class PrintCommand:
    """Gives it to a command, as its last argument."""

    command: str = DEFAULT_PRINT_COMMAND
    name = "PRINTCMD"

    def run(self, document: Document) -> str:
        argv = [*split(self.command), str(document.path)]
        run(argv, document.stop)
        return f"given to {argv[0]}"


@dataclass(frozen=True, slots=True)
class Dialog:
    """Asks the user what to do with each document.

    `ask` is called on the thread of the job and may take its time; it returns another
    action, or None to drop the document. It should return once `document.stop` is set.
    Without `ask`, the printing service asks by a `PrintQuestion`.
    """

    ask: Callable[[Document], PrintAction | None] | None = None
    name = "DIALOG"

    def run(self, document: Document) -> str:
        if self.ask is None:
            raise PrintActionError("there is nobody to ask how to print")
        chosen = self.ask(document)
        if chosen is None or document.stop.is_set():
            return "dropped"
        if isinstance(chosen, Dialog):
            raise PrintActionError("a print dialog cannot choose another dialog")
        return chosen.run(document)


ACTIONS: Final = ("PDFVIEW", "PDFSAVE", "PRINT", "PRINTCMD", "DIALOG")


def print_action(
    name: str,
    *,
    pdfview_cmd: str = DEFAULT_VIEWER,
    save_to_folder: str = DEFAULT_FOLDER,
    printer: str | None = None,
    print_cmd: str = DEFAULT_PRINT_COMMAND,
) -> PrintAction:
    """Return the action that X2Go clients call so; each has its own argument.

    Raises `PrintActionError` for another name.
    """
    actions: dict[str, PrintAction] = {
        action.name: action
        for action in (
            PdfView(pdfview_cmd),
            PdfSave(save_to_folder),
            Print(printer),
            PrintCommand(print_cmd),
            Dialog(),
        )
    }
    try:
        return actions[name.upper()]
    except KeyError:
        known = ", ".join(ACTIONS)
        raise PrintActionError(
            f"unknown print action {name!r}: use one of {known}"
        ) from None


def save_as(source: Path, folder: Path, name: str) -> Path:
    """Copy a file into a folder, without replacing one; return where it is.

    A name that is taken gets a number: `a.pdf`, `a(1).pdf`. Raises OSError.
    """
    stem, dot, extension = name.rpartition(".")
    if not dot:
        stem, extension = name, ""
    for number in range(MOST_NUMBERED):
        suffix = f"({number})" if number else ""
        target = folder / f"{stem}{suffix}{dot}{extension}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            file = os.open(target, flags, SAVED_MODE)
        except FileExistsError:
            continue
        try:
            with os.fdopen(file, "wb") as copy, source.open("rb") as original:
                shutil.copyfileobj(original, copy)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target
    raise FileExistsError(17, f"there are {MOST_NUMBERED} files called {name} already")


def pdf_name(title: str) -> str:
    """Return the file name for a document with this title."""
    return file_name(title.removesuffix(".pdf"), "document") + ".pdf"


def printable_title(title: str) -> str:
    """Return a title that can be given to a printer: one line, and not too long."""
    line = "".join(char if char.isprintable() else " " for char in title)
    cut = " ".join(line.split()).encode(errors="replace")[:TITLE_LIMIT_BYTES]
    return cut.decode(errors="ignore") or DEFAULT_TITLE
