"""Printing, what is only text: announcements, titles, and how actions are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from x2go_session.errors import ConfigFileError, ServiceError, X2GoError
from x2go_session.profiles import PrintingFile
from x2go_session.services.print_actions import (
    Dialog,
    PdfSave,
    PdfView,
    Print,
    PrintAction,
    PrintCommand,
    pdf_name,
    print_action,
    printable_title,
)
from x2go_session.services.print_queue import BadReadyFile, parse_ready

# What x2goprint writes.


@pytest.mark.parametrize(
    ("content", "name", "title"),
    [
        (b"job1.pdf\nMy Title", "job1.pdf", "My Title"),
        (b"job1.pdf\nMy Title\n", "job1.pdf", "My Title"),
        (b"job1.pdf\r\nMy Title\r\n", "job1.pdf", "My Title"),
        (b"job1.pdf", "job1.pdf", "X2Go Print Job"),
        (b"job1.pdf\n", "job1.pdf", "X2Go Print Job"),
        ("job1.pdf\nGrüße 日本".encode(), "job1.pdf", "Grüße 日本"),
        (b"job1.pdf\ntitle \xff\nmore", "job1.pdf", "title \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_ready_file_names_the_document_and_its_title(
    content: bytes, name: str, title: str
) -> None:
    assert parse_ready(content) == (name, title)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\nMy Title",
        b"../../.ssh/id_ed25519\nMy Title",
        b"/etc/passwd\nMy Title",
        b"..\nMy Title",
        b".hidden.pdf\nMy Title",
        b"other.pdf.ready\nMy Title",
        b"a\0b.pdf\nMy Title",
    ],
)
def test_a_ready_file_that_names_no_document_of_the_spool_is_refused(
    content: bytes,
) -> None:
    with pytest.raises(BadReadyFile, match="a print job with"):
        parse_ready(content)


# Titles.


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Report", "Report.pdf"),
        ("Report.pdf", "Report.pdf"),
        ("Grüße 日本", "Grüße_日本.pdf"),
        ("../../.bashrc", "bashrc.pdf"),
        ("/etc/passwd", "etc_passwd.pdf"),
        ("-rf *", "rf.pdf"),
        ("$(reboot) `id` ; a|b", "(reboot)_id_a_b.pdf"),
        ("two\nlines\0and more", "two_lines_and_more.pdf"),
        ("invoice\N{RIGHT-TO-LEFT OVERRIDE}fdp.exe", "invoice_fdp.exe.pdf"),
        ("", "document.pdf"),
        ("...", "document.pdf"),
        ("x" * 300, "x" * 200 + ".pdf"),
        ("é" * 300, "é" * 100 + ".pdf"),
    ],
)
def test_a_title_becomes_a_harmless_file_name(title: str, name: str) -> None:
    assert pdf_name(title) == name


def test_a_title_for_a_printer_is_one_short_line() -> None:
    assert printable_title("a\nb\t\0c\x1b[31m") == "a b c [31m"
    assert printable_title("\n") == "X2Go Print Job"
    assert len(printable_title("日" * 300).encode()) <= 255


# The actions by their names.


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("PDFVIEW", PdfView("view")),
        ("pdfsave", PdfSave("folder")),
        ("PRINT", Print("printer")),
        ("PRINTCMD", PrintCommand("command")),
        ("DIALOG", Dialog()),
    ],
)
def test_actions_have_the_names_and_arguments_of_x2go(
    name: str, action: PrintAction
) -> None:
    made = print_action(
        name,
        pdfview_cmd="view",
        save_to_folder="folder",
        printer="printer",
        print_cmd="command",
    )
    assert made == action


@pytest.mark.parametrize(
    ("config", "action"),
    [
        (None, PdfView("xdg-open")),
        ("[General]\nshowdialog=1\n", Dialog()),
        ("[General]\npdfview=true\n[view]\ncommand=evince -f\n", PdfView("evince -f")),
        ("[view]\nopen=0\n[save]\nfolder=printed/100%\n", PdfSave("printed/100%")),
        ("[General]\npdfview=0\n", Print("PDF")),
        ("[General]\npdfview=0\n[CUPS]\ndefaultprinter=\n", Print()),
        (
            "[General]\npdfview=False\n[print]\nstartcmd=1\ncommand=lp -n 2\nps=0\n",
            PrintCommand("lp -n 2"),
        ),
    ],
)
def test_the_file_of_x2go_clients_says_which_action_it_is(
    config: str | None, action: PrintAction, tmp_path: Path
) -> None:
    if config is not None:
        (tmp_path / "printing").write_text(config)
    assert PrintingFile(tmp_path, system_folder=None).action == action


def test_the_file_of_the_machine_says_what_the_users_own_does_not(
    tmp_path: Path,
) -> None:
    own, system = tmp_path / "own", tmp_path / "system"
    own.mkdir()
    system.mkdir()
    (system / "printing").write_text(
        "[General]\nshowdialog=1\n[view]\ncommand=okular\n"
    )
    assert PrintingFile(own, system).action == Dialog()
    (own / "printing").write_text("[General]\nshowdialog=0\n")
    assert PrintingFile(own, system).action == PdfView("okular")


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("no section\n", "printing:1: expected a section"),
        (
            "[General]\npdfview=perhaps\n",
            r"printing:2, \[General\], pdfview: 'perhaps'",
        ),
        ("[view]\n[view]\n", r"printing:2, \[view\]: this section is there twice"),
    ],
)
def test_a_file_that_makes_no_sense_is_an_error_that_names_the_line(
    config: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "printing").write_text(config)
    with pytest.raises(ConfigFileError, match=f"^{tmp_path}/{place}"):
        PrintingFile(tmp_path, system_folder=None).action  # noqa: B018


@pytest.mark.parametrize(
    "action",
    [Dialog(), PdfView("evince"), PdfSave("out"), Print("office"), PrintCommand("lp")],
)
def test_a_chosen_action_is_what_the_file_says_afterwards(
    action: PrintAction, tmp_path: Path
) -> None:
    properties = {
        "pdfview_cmd": "evince",
        "save_to_folder": "out",
        "printer": "office",
        "print_cmd": "lp",
    }
    for before in ("DIALOG", "PRINTCMD"):
        printing = PrintingFile(tmp_path, system_folder=None)
        printing.choose(before)
        printing.choose(action.name, **properties)
        printing.write()
        written = PrintingFile(tmp_path, system_folder=None)
        assert (written.action, written.action_name) == (action, action.name)
        assert written.get_property("printer") == "office"


def test_an_action_or_property_that_there_is_not_changes_nothing(
    tmp_path: Path,
) -> None:
    printing = PrintingFile(tmp_path, system_folder=None)
    with pytest.raises(X2GoError, match="use one of DIALOG, PDFVIEW, PDFSAVE"):
        printing.choose("SHRED")
    with pytest.raises(X2GoError, match="no print property 'paper': use one of pdfv"):
        printing.choose("PRINT", paper="A4")
    printing.write()
    assert not printing.path.exists()


def test_an_unknown_action_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        ServiceError, match=r"use one of PDFVIEW, PDFSAVE, PRINT, PRINT"
    ):
        print_action("SHRED")
