"""The `printing` file of X2Go clients: which print action the user has chosen there.

An INI file, first looked for in `~/.x2goclient`, then in `/etc/x2goclient`.
"""

from __future__ import annotations

import configparser
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from x2go_session.services.print_actions import (
    Dialog,
    PdfSave,
    PdfView,
    Print,
    PrintAction,
    PrintActionError,
    PrintCommand,
)

FOLDERS: Final = ("~/.x2goclient", "/etc/x2goclient")
DEFAULTS: Final = {
    "General": {"showdialog": "0", "pdfview": "1"},
    "print": {"startcmd": "0", "command": "lpr"},
    "save": {"folder": "PDF"},
    "view": {"open": "1", "command": "xdg-open"},
    "CUPS": {"defaultprinter": "PDF"},
}


def configured_action(folders: Iterable[str | Path] = FOLDERS) -> PrintAction:
    """Return the print action that the first file found says; PDFVIEW if there is none.

    Raises `PrintActionError` for a file that cannot be understood.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read_dict(DEFAULTS)
    path = "the defaults"
    try:
        for folder in folders:
            file = Path(folder).expanduser() / "printing"
            if file.is_file():
                path = str(file)
                config.read_string(file.read_text(), path)
                break
        return _action(config)
    except (configparser.Error, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise PrintActionError(f"cannot understand {path}: {reason}") from error


def _action(config: configparser.ConfigParser) -> PrintAction:
    if config.getboolean("General", "showdialog"):
        return Dialog()
    if config.getboolean("General", "pdfview"):
        if config.getboolean("view", "open"):
            return PdfView(config.get("view", "command"))
        return PdfSave(config.get("save", "folder"))
    if config.getboolean("print", "startcmd"):
        return PrintCommand(config.get("print", "command"))
    return Print(config.get("CUPS", "defaultprinter") or None)
