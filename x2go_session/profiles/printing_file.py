"""The `printing` file: what the user has chosen to be done with printed documents.

printing = PrintingFile()                   # ~/.x2goclient, then /etc/x2goclient
printing.action                             # PdfView("xdg-open")
printing.get_property("printer")            # "PDF"
printing.choose("PRINT", printer="office")
printing.write()
"""

from __future__ import annotations

from typing import ClassVar, Final

from x2go_session.errors import ProfileError
from x2go_session.profiles.typed_file import Defaults, TypedFile
from x2go_session.services.print_actions import PrintAction, print_action

# The arguments of the actions, and where the file has them.
PROPERTIES: Final = {
    "pdfview_cmd": ("view", "command"),
    "save_to_folder": ("save", "folder"),
    "printer": ("CUPS", "defaultprinter"),
    "print_cmd": ("print", "command"),
}
# Which flags say which action. The first that fits is the one.
_FLAGS: Final = {
    "DIALOG": {("General", "showdialog"): True},
    "PDFVIEW": {("General", "pdfview"): True, ("view", "open"): True},
    "PDFSAVE": {("General", "pdfview"): True, ("view", "open"): False},
    "PRINT": {("General", "pdfview"): False, ("print", "startcmd"): False},
    "PRINTCMD": {("General", "pdfview"): False, ("print", "startcmd"): True},
}


class PrintingFile(TypedFile):
    """The print action of a user, and its argument."""

    FILE_NAME: ClassVar = "printing"
    DEFAULTS: ClassVar[Defaults] = {
        "General": {"showdialog": False, "pdfview": True},
        "print": {"startcmd": False, "command": "lpr", "stdin": False, "ps": False},
        "save": {"folder": "PDF"},
        "view": {"open": True, "command": "xdg-open"},
        "CUPS": {"defaultprinter": "PDF"},
    }

    @property
    def action_name(self) -> str:
        """The action that is chosen: DIALOG, PDFVIEW, PDFSAVE, PRINT or PRINTCMD."""
        for name, flags in _FLAGS.items():
            if all(self.get(*place) is value for place, value in flags.items()):
                return name
        raise AssertionError("not reached: the flags of some action always fit")

    @property
    def action(self) -> PrintAction:
        """The action itself. Raises `ConfigFileError`."""
        given = {name: str(self.get(*place)) for name, place in PROPERTIES.items()}
        return print_action(
            self.action_name,
            pdfview_cmd=given["pdfview_cmd"],
            save_to_folder=given["save_to_folder"],
            printer=given["printer"] or None,
            print_cmd=given["print_cmd"],
        )

    def choose(self, name: str, **properties: str) -> None:
        """Choose an action and its argument, for the next `write`.

        Raises `ProfileError` for an action or a property that there is not.
        """
        flags = _FLAGS.get(name.upper())
        if flags is None:
            raise ProfileError(
                f"unknown print action {name!r}: use one of {', '.join(_FLAGS)}"
            )
        for name_of_property in properties:
            self._place(name_of_property)
        for place, value in {("General", "showdialog"): False, **flags}.items():
            self.set(*place, value)
        for name_of_property, text in properties.items():
            self.set_property(name_of_property, text)

    def get_property(self, name: str) -> str:
        """Return an argument of the actions. Raises `ProfileError` for another."""
        return str(self.get(*self._place(name)))

    def set_property(self, name: str, text: str) -> None:
        """Change an argument of the actions, for the next `write`.

        Raises `ProfileError` for another name, or what is no text.
        """
        self.set(*self._place(name), text)

    @staticmethod
    def _place(name: str) -> tuple[str, str]:
        try:
            return PROPERTIES[name]
        except KeyError:
            raise ProfileError(
                f"no print property {name!r}: use one of {', '.join(PROPERTIES)}"
            ) from None
