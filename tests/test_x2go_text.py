"""What the session layer says to an X2Go server, and how it reads the answers."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.command import ROOT
from x2go_session import commands, replies
from x2go_session.applications import (
    Application,
    menu,
    read_applications,
    user_language,
)
from x2go_session.cli import cli
from x2go_session.errors import ControlError, NoSuchSession
from x2go_session.events import Events
from x2go_session.options import OptionError, Rdp, SessionOptions
from x2go_session.session import Ports, Session, SessionType

NAME = "x2gotest-50-1795190498_stRTERMINAL_dp24"
COOKIE = "2c8324a108301b5d350f63c40d36a0d9"
ROW = (
    f"14143|{NAME}|50|vm|R|2026-11-20T16:01:39|{COOKIE}|127.0.0.1|31824|31825|"
    "2026-11-20T16:01:40|x2gotest|1|31826|-1|-1"
)
FEATURES = frozenset({"X2GO_SERVERSIDE_DESKTOPCOMMANDS"})


def session(**options: Any) -> Session:
    values: dict[str, Any] = {
        "name": NAME,
        "type": SessionType.ROOTLESS,
        "command": "TERMINAL",
        "display": 50,
        "cookie": COOKIE,
        "agent_pid": 14143,
        "ports": Ports(31824, 31825, 31826),
        "control": None,
        "events": Events(),
        "local_folder": Path("/nowhere"),
        "remote_folder": "/home/x2gotest/.x2go/C-x",
    }
    return Session(**(values | options))


# Starting.


def test_a_rootless_session_is_started_with_ten_arguments() -> None:
    options = SessionOptions(
        command="/usr/bin/xclock -update 1",
        geometry="640x480",
        link="lan",
        pack="16m-jpeg-9",
        keyboard_type="pc105/us",
        keyboard_layout="us",
        clipboard="client",
        dpi=100,
    )
    assert commands.start_agent(options) == (
        "X2GO_XINERAMA=false X2GODPI=100 x2gostartagent 640x480 lan 16m-jpeg-9 "
        "unix-kde-depth_24 us pc105/us 1 R xclock client"
    )


def test_a_desktop_may_fill_several_screens() -> None:
    options = SessionOptions(
        type=SessionType.DESKTOP, command="XFCE", geometry="fullscreen", xinerama=True
    )
    assert commands.start_agent(options) == (
        "X2GO_XINERAMA=true x2gostartagent fullscreen adsl 16m-jpeg-9 "
        "unix-kde-depth_24 null auto 0 D XFCE both"
    )


def test_a_published_session_has_no_command_of_its_own() -> None:
    options = SessionOptions(type=SessionType.PUBLISHED, sound="pulse")
    assert commands.start_agent(options).endswith(" P PUBLISHED both")
    line = commands.run_command(session(), options, {}, FEATURES)
    assert line is not None
    assert " PUBLISHED nosnd P >" in line


@pytest.mark.parametrize(("view_only", "mode"), [(False, "1"), (True, "0")])
def test_a_shadow_session_names_whom_it_shows(view_only: bool, mode: str) -> None:
    options = SessionOptions(
        type=SessionType.SHADOW, desktop="anna@:58", view_only=view_only
    )
    assert commands.start_agent(options).endswith(f" 0 S {mode}XSHADannaXSHAD:58")
    assert commands.run_command(session(), options, {}, FEATURES) is None


def test_xdmcp_is_asked_for_in_the_environment_and_runs_nothing() -> None:
    options = SessionOptions(
        type=SessionType.DESKTOP, command="XDMCP", xdmcp_server="big.example.org"
    )
    line = commands.start_agent(options)
    assert line.startswith("X2GO_XINERAMA=false X2GOXDMCP=big.example.org x2gosta")
    assert line.endswith(" D XDMCP both")
    assert commands.run_command(session(), options, {}, FEATURES) is None
    assert commands.find_program("XDMCP") is None


RDP = Rdp(server="win.example.org", user="anna", password="s3cret'")


def test_an_rdp_desktop_is_full_screen() -> None:
    options = SessionOptions(type=SessionType.DESKTOP, command="RDP", rdp=RDP, depth=17)
    assert commands.what_runs(options, FEATURES) == (
        "rdesktop -f -N -u anna -p s3cret' win.example.org -a 16"
    )
    line = commands.run_command(session(), options, {}, FEATURES)
    assert line is not None
    # One word for the shell, blanks as the server wants them.
    assert "rdesktopX2GO_SPACE_CHAR-f" in line
    assert """s3cret'"'"'X2GO_SPACE_CHARwin""" in line
    assert "s3cret" not in repr(options)


def test_an_rdp_window_has_its_geometry() -> None:
    options = SessionOptions(command="RDP", rdp=RDP, geometry="800x600+1+2")
    assert commands.what_runs(options, FEATURES).startswith("rdesktop -g 800x600 -u")


def test_an_rdp_password_with_a_blank_is_refused() -> None:
    options = SessionOptions(command="RDP", rdp=Rdp(server="w", password="a b"))
    with pytest.raises(OptionError, match="cannot pass blanks"):
        commands.what_runs(options, FEATURES)


# Running.


def test_the_command_runs_detached_with_what_the_services_want() -> None:
    options = SessionOptions(command="xterm -e 'top -d 1'", sound="pulse")
    wanted = {"PULSE_CLIENTCONFIG": "/home/a b/.pulse-client.conf"}
    assert commands.run_command(session(), options, wanted, FEATURES) == (
        "PULSE_CLIENTCONFIG='/home/a b/.pulse-client.conf' "
        f"setsid x2goruncommand 50 14143 {NAME} 31825 "
        "'xtermX2GO_SPACE_CHAR-eX2GO_SPACE_CHAR'\"'\"'topX2GO_SPACE_CHAR-d"
        "X2GO_SPACE_CHAR1'\"'\"'' pulse R >/dev/null 2>&1 </dev/null &"
    )


def test_an_old_server_gets_the_command_of_a_desktop() -> None:
    options = SessionOptions(type=SessionType.DESKTOP, command="KDE")
    assert commands.what_runs(options, FEATURES) == "KDE"
    assert commands.what_runs(options, frozenset()) == "startkde"


def test_a_published_application_runs_on_the_session_s_display() -> None:
    assert commands.run_published(session(), "xclock -d", {"A": "1 2"}) == (
        f"DISPLAY=:50 X2GO_SESSION={NAME} A='1 2' setsid xclock -d "
        ">/dev/null 2>&1 </dev/null &"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"keyboard_type": "auto", "keyboard_layout": "de"}, None),
        ({"keyboard_type": "null/null", "keyboard_layout": "de"}, None),
        ({"keyboard_type": "pc105/us"}, None),
        (
            {"keyboard_type": "pc105/us", "keyboard_layout": "de"},
            "DISPLAY=:50 setxkbmap -layout de",
        ),
        (
            {
                "keyboard_type": "pc105/us",
                "keyboard_layout": "us,ru",
                "keyboard_variant": "intl,",
            },
            "DISPLAY=:50 setxkbmap -layout us,ru -variant intl,",
        ),
    ],
)
def test_the_keyboard_is_set_where_one_is_named(
    options: dict[str, str], line: str | None
) -> None:
    assert commands.set_keyboard(session(), SessionOptions(**options)) == line  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"link": "dsl"}, "link 'dsl': use one of modem"),
        ({"geometry": "big"}, "geometry 'big': use WIDTHxHEIGHT"),
        ({"geometry": "800x600; id"}, "geometry"),
        ({"pack": "best"}, "pack 'best'"),
        ({"pack": "64k-9"}, "pack '64k-9'"),
        ({"pack": "16m-jpeg-10"}, "pack"),
        ({"depth": 12}, "depth 12"),
        ({"dpi": 0}, "dpi 0"),
        ({"clipboard": "all"}, "clipboard 'all'"),
        ({"sound": "alsa"}, "sound 'alsa'"),
        ({"keyboard_layout": "us;id"}, "keyboard_layout"),
        ({"command": " "}, "command: say what"),
        ({"command": "a\nb"}, "command: it has to be one line"),
        ({"command": "RDP"}, "rdp: the command RDP needs it"),
        ({"command": "XDMCP", "xdmcp_server": "a b"}, "xdmcp_server"),
        ({"type": SessionType.SHADOW}, "desktop: a SHADOW session needs one"),
        ({"desktop": "a@:1"}, "desktop: a SHADOW session needs one, no other"),
        ({"type": SessionType.SHADOW, "desktop": "anna"}, "use user@:display"),
    ],
)
def test_an_option_that_no_server_understands_is_refused_at_once(
    wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(OptionError) as raised:
        SessionOptions(**wrong)
    assert says in str(raised.value)


def test_an_unclosed_quote_in_a_command_is_explained() -> None:
    with pytest.raises(OptionError, match="No closing quotation"):
        commands.find_program("xterm -e 'top")


# Answers.


def test_a_row_of_the_list_is_read() -> None:
    (info,) = replies.sessions([ROW])
    assert (info.name, info.display, info.agent_pid) == (NAME, 50, 14143)
    assert info.ports == Ports(31824, 31825, 31826)
    assert info.started == datetime(2026, 11, 20, 16, 1, 39)
    assert (info.is_running, info.type, info.command) == (
        True,
        SessionType.ROOTLESS,
        "TERMINAL",
    )
    assert COOKIE not in repr(info)


def test_a_shadow_row_has_fewer_fields() -> None:
    name = "x2gotest-59-1795191127_stS1XSHADx2gotestXSHADPP58_dp24"
    row = f"30863|{name}|59|vm|R|||127.0.0.1|1|2||x2gotest|4|34589"
    (info,) = replies.sessions([row])
    assert (info.type, info.ports.sharing) == (SessionType.SHADOW, 34589)


def test_a_row_of_a_session_that_is_being_made_has_no_numbers_yet() -> None:
    (info,) = replies.sessions([f"|{NAME}|50|vm|R||||||"])
    assert (info.agent_pid, info.ports) == (0, Ports(0, 0, 0))


@pytest.mark.parametrize("bad", ["../../etc", "a b", "$(id)", "", NAME + "\t"])
def test_a_name_that_is_none_is_left_out(bad: str) -> None:
    assert replies.sessions([ROW.replace(NAME, bad)]) == []


@given(st.text())
def test_no_text_is_too_strange_for_the_list(text: str) -> None:
    for info in replies.sessions(text.splitlines()):
        assert "/" not in info.name


@given(st.lists(st.text()))
def test_no_answer_is_too_strange_for_a_start(lines: list[str]) -> None:
    with pytest.raises(ControlError):
        replies.started_agent(lines)


def test_a_start_is_read_behind_lines_of_something_else() -> None:
    lines = ["hello", "50", COOKIE, "14143", NAME, "31824", "31825", "31826", "-1"]
    agent = replies.started_agent(lines)
    assert (agent.name, agent.ports) == (NAME, Ports(31824, 31825, 31826))


def test_a_port_that_is_none_is_refused() -> None:
    lines = ["50", COOKIE, "14143", NAME, "65536", "1", "2"]
    with pytest.raises(ControlError):
        replies.started_agent(lines)
    with pytest.raises(NoSuchSession):
        replies.resumed_ports(["gr_port=99999", "sound_port=1", "fs_port=2"], NAME)
    with pytest.raises(NoSuchSession):
        replies.resumed_ports([], NAME)


def test_a_number_of_thousands_of_digits_is_none() -> None:
    with pytest.raises(ControlError):
        replies.started_agent(["50", COOKIE, "9" * 5000, NAME, "1", "2", "3"])


def test_desktops_mounts_features_and_versions_are_read() -> None:
    (desktop,) = replies.desktops(["x2gotest@:58", "nonsense", "a@b:c"])
    assert str(desktop) == "x2gotest@:58"
    (mount,) = replies.mounts(["", "127.0.0.1|/tmp/.x2go-x/media/disk/_a b|c"])
    assert mount.mount_point == "/tmp/.x2go-x/media/disk/_a b|c"
    assert replies.features(["X2GO_PRINTING", "oops"]) == {"X2GO_PRINTING"}
    assert replies.versions(["x2goserver: 4.1.0.3"]) == {"x2goserver": "4.1.0.3"}


# Published applications.

ENTRY = """<desktop>
Name=Editor
Name[de]=Schreiber
Comment=Writes
Exec=vim %F
Terminal=true
Categories=Office;Utility;
<icon>
aWNvbg==
</icon>
</desktop>
"""


def test_an_application_has_names_icon_and_terminal() -> None:
    (editor,) = read_applications(ENTRY)
    assert editor.command == "x-terminal-emulator -e 'vim'"
    assert (editor.icon, editor.menu) == (b"icon", "Office")
    assert (editor.name_in("de"), editor.name_in("fr")) == ("Schreiber", "Editor")


def test_few_applications_have_no_menus_and_many_do() -> None:
    few = read_applications(ENTRY * 10)
    assert {name: len(each) for name, each in menu(few).items()} == {"TOP": 10}
    many = read_applications(ENTRY * 11 + ENTRY.replace("Office;Utility", "Weird"))
    assert {name: len(each) for name, each in menu(many).items()} == {
        "Office": 11,
        "Other Applications": 1,
    }
    assert list(menu(many, most_without=12)) == ["TOP"]
    assert list(menu(many, most_without=-1)) == ["TOP"]
    assert list(menu(few, most_without=0)) == ["Office"]


@pytest.mark.parametrize(
    ("categories", "folder"),
    [
        ("X2Go-Top;Office;", "TOP"),
        ("AudioVideo;Player;", "Multimedia"),
        ("Audio;", "Multimedia"),
        ("Video;", "Multimedia"),
        ("Development;", "Development"),
        ("Education;", "Education"),
        ("Game;", "Games"),
        ("Graphics;", "Graphics"),
        ("Network;WebBrowser;", "Internet"),
        ("Office;", "Office"),
        ("System;", "System"),
        ("Utility;TextEditor;", "Utilities"),
        # The order is that of the table, not that of the application.
        ("Utility;Office;", "Office"),
        ("Office;Settings;", "Office"),
        ("System;Settings;", None),
        ("X-Own;", "Other Applications"),
        ("", "Other Applications"),
    ],
)
def test_the_first_known_category_is_the_folder(
    categories: str, folder: str | None
) -> None:
    (entry,) = read_applications(ENTRY.replace("Office;Utility;", categories))
    assert entry.menu == folder
    assert list(menu([entry], most_without=0)) == ([folder] if folder else [])


def test_a_menu_is_in_the_users_language_and_order() -> None:
    def application(name: str, german: str, comment: str = "") -> Application:
        return Application(
            name=name,
            command=name.lower(),
            comment=comment,
            names={"de": german, "de_AT": f"{german} (AT)"},
            comments={"de": "auf Deutsch"} if comment else {},
        )

    known = [
        application("Overview", "\u00dcbersicht", "an overview"),
        application("Clock", "Uhr"),
        application("editor", "Umschreiber"),
    ]

    def names(language: str) -> list[str]:
        return [entry.name for entry in menu(known, language)["TOP"]]

    # Letters first, then their marks.
    assert names("de_DE.UTF-8") == ["\u00dcbersicht", "Uhr", "Umschreiber"]
    assert names("de_AT@euro")[1] == "Uhr (AT)"
    for other in ("", "C", "fr_FR.UTF-8"):
        assert names(other) == ["Clock", "editor", "Overview"]
    clock, editor, overview = menu(known, "fr")["TOP"]
    assert (overview.comment, clock.comment) == ("an overview", "Clock")
    assert (editor.name, editor.command) == ("editor", "editor")
    assert menu(known, "de")["TOP"][0].comment == "auf Deutsch"


def test_the_language_is_what_the_environment_says() -> None:
    assert user_language({"LANG": "de_DE.UTF-8"}) == "de_DE.UTF-8"
    assert user_language({"LANG": "de", "LC_MESSAGES": "fr", "LC_ALL": ""}) == "fr"
    assert user_language({}) == ""


@given(st.text())
def test_no_text_is_too_strange_for_applications(text: str) -> None:
    assert read_applications(text) == [] or "<desktop>" in text


# The page about it.


def test_the_page_has_every_verb_and_module_and_its_example_compiles() -> None:
    page = (ROOT / "docs" / "x2go.md").read_text()
    words = set(re.findall(r"[\w-]+", page))
    modules = {path.stem for path in (ROOT / "x2go_session").glob("[!_]*.py")}
    assert set(cli.commands) - words == set()
    assert modules - {"errors", "session"} - words == set()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    imports = example.partition("\n\n")[0]
    exec(compile(imports, "docs/x2go.md", "exec"), {})
    compile(example, "docs/x2go.md", "exec")
