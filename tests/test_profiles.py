"""Session profiles and settings: what their files say, and what is made of it."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import ROOT
from x2go_session import profiles as package
from x2go_session.errors import ConfigFileError, NoSuchProfile, ProfileError
from x2go_session.profiles import (
    ClientSettings,
    PrintingFile,
    Profile,
    SessionProfiles,
    profiles_of,
    session_parameters,
)
from x2go_session.profiles.ini import Document
from x2go_session.profiles.profile import KEYS, default_values

# As x2goclient leaves it: keys in the order of the alphabet, and all of them.
BY_X2GOCLIENT = r"""[20230405101112131]
applications=WWWBROWSER, MAILCLIENT, OFFICE, TERMINAL
autologin=false
clipboard=both
command="startkde; x=1"
directrdpsettings=
display=1
dpi=96
export="/home/me/b\xfc\x63her:1;/home/me/b, c:0;"
fstunnel=true
fullscreen=false
height=768
host=office.example.org
icon=:/img/icons/128x128/x2gosession.png
iconvfrom=ISO8859-1
iconvto=UTF-8
key=/home/me/.ssh/office
krbdelegation=false
krblogin=false
layout=de
maxdim=false
name=B\xfcro
pack=16m-jpeg
print=true
published=false
quality=9
rootless=false
sound=true
soundsystem=pulse
speed=4
sshport=2222
sshproxyhost=proxy.example.org
type=pc105/de
usekbd=true
user=me
usesshproxy=false
width=1024
xinerama=false

[embedded]
startembed=false
"""
BY_PYTHON_X2GO = """[lab]
name = Lab
host = a.example.org,b.example.org
export = "/srv/data:1;"
fullscreen = 1
sound = 0
speed = adsl
mimeboxextensions = PDF,DOC

"""


def profiles(folder: Path, text: str = "", system: str = "") -> SessionProfiles:
    (folder / "system").mkdir()
    (folder / "system" / "sessions").write_text(system)
    if text:
        (folder / "sessions").write_text(text)
    return SessionProfiles(folder, folder / "system")


def test_a_profile_of_x2goclient_is_read_with_its_types(tmp_path: Path) -> None:
    profile = profiles(tmp_path, BY_X2GOCLIENT)["Büro"]
    assert profile.id == "20230405101112131"
    assert profile.host == ("office.example.org",)
    assert profile.command == "startkde; x=1"
    assert profile.export == {"/home/me/bücher": True, "/home/me/b, c": False}
    assert profile.applications == ("WWWBROWSER", "MAILCLIENT", "OFFICE", "TERMINAL")
    assert (profile.sshport, profile.speed, profile.print) == (2222, 4, True)
    assert (profile.autologin, profile.key) == (False, "/home/me/.ssh/office")
    # What the file does not say is the default; what is not known is kept apart.
    assert (profile.clipboard, profile.sndport, profile.kdrive) == ("both", 4713, False)
    assert profile.extra == {"krbdelegation": "false"}


def test_a_profile_of_python_x2go_is_read_with_its_types(tmp_path: Path) -> None:
    profile = profiles(tmp_path, BY_PYTHON_X2GO)["lab"]
    assert profile.name == "Lab"
    assert profile.host == ("a.example.org", "b.example.org")
    assert profile.export == {"/srv/data": True}
    assert (profile.fullscreen, profile.sound, profile.speed) == (True, False, 2)
    assert profile.mimeboxextensions == "PDF,DOC"
    assert profile.user == getpass.getuser()


def test_profiles_of_the_user_and_of_the_machine_are_listed_together(
    tmp_path: Path,
) -> None:
    known = profiles(
        tmp_path, BY_PYTHON_X2GO + BY_X2GOCLIENT, "[lab]\nuser=guest\n[all]\nname=All\n"
    )
    assert known.ids == ["lab", "20230405101112131", "all"]
    assert list(known.names.values()) == ["Lab", "Büro", "All"]
    assert known["lab"].user == "guest"
    assert "Büro" in known
    assert "lab" in known
    assert "embedded" not in known
    assert known.to_id("All") == "all"
    assert known.to_name("lab") == "Lab"
    assert known.is_mutable("Lab")
    assert not known.is_mutable("All")
    with pytest.raises(NoSuchProfile, match=r"no profile 'x' .* Lab, Büro, All"):
        known["x"]


def test_profiles_of_one_name_are_numbered(tmp_path: Path) -> None:
    names = {"a": "X", "b": "X", "c": "X (1)", "d": "Y"}
    text = "".join(f"[{id}]\nname={name}\n" for id, name in names.items())
    known = profiles(tmp_path, text)
    assert known.names == {"a": "X (2)", "b": "X (3)", "c": "X (1)", "d": "Y"}
    assert known.to_id("X (2)") == "a"
    assert known["b"].name == "X (3)"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("sshport=ssh", r"sshport: 'ssh': use a whole number"),
        ("sshport=70000", r"sshport: '70000': use a number from 1 to 65535"),
        ("fullscreen=perhaps", r"fullscreen: 'perhaps': use 1 or 0"),
        ("speed=9", r"speed: '9': use a number from 0 to 4"),
        ("quality=10", r"quality: '10': use a number from 0 to 9"),
        ("clipboard=all", r"clipboard: 'all': use one of both, client, server, none"),
        ("soundsystem=alsa", r"soundsystem: 'alsa': use one of pulse, esd, arts"),
        ("pack=best", r"pack: 'best': use nopack, or colours and a method"),
    ],
)
def test_a_bad_value_names_file_line_section_and_key_and_hides_no_other_profile(
    line: str, problem: str, tmp_path: Path
) -> None:
    known = profiles(tmp_path, f"[bad]\nname=Bad\n{line}\n[good]\nname=Good\n")
    with pytest.raises(
        ConfigFileError, match=rf"^{tmp_path}/sessions:3, \[bad\], {problem}"
    ) as found:
        known["Bad"]
    key = line.partition("=")[0]
    assert (found.value.line, found.value.section, found.value.key) == (3, "bad", key)
    with pytest.raises(ConfigFileError, match=problem):
        known.get("Bad", key)
    assert known["Good"].sshport == 22
    # The rest of it can be read and put right.
    assert known.get("Bad", "name") == "Bad"
    known.set("Bad", key, default_values()[key])
    known.write()
    assert SessionProfiles(tmp_path)["Bad"].name == "Bad"


# What python-x2go's client asks for.


def test_values_are_those_of_python_x2go(tmp_path: Path) -> None:
    known = profiles(tmp_path, BY_PYTHON_X2GO)
    values = known.values("Lab")
    assert set(values) == set(KEYS)
    assert values["host"] == ["a.example.org", "b.example.org"]
    assert values["export"] == {"/srv/data": True}
    assert values["applications"] == ["WWWBROWSER", "MAILCLIENT", "OFFICE", "TERMINAL"]
    assert values == {key: known.get("Lab", key) for key in values}
    with pytest.raises(ProfileError, match="profile Lab has no colour"):
        known.get("Lab", "colour")


@pytest.mark.parametrize("key", sorted(set(KEYS) - {"name"}))
def test_every_key_can_be_set_and_is_read_again(key: str, tmp_path: Path) -> None:
    other: dict[str, Any] = {
        "speed": 4,
        "pack": "256-png",
        "quality": 3,
        "clipboard": "server",
        "soundsystem": "esd",
        "sshproxytype": "HTTP",
        "host": ["a", "b"],
        "applications": ["OFFICE", "a; b"],
        "export": {"/a, b": True, "/c": False},
        "mimeboxextensions": "PDF,DOC",
    }
    default = default_values()[key]
    value = other.get(key)
    if value is None:
        kinds = {bool: not default, int: 4711, str: 'ä; "b", c=d'}
        value = kinds[type(default)]
    known = profiles(tmp_path, "[a]\nname=A\n")
    known.set("A", key, value)
    assert known.get("A", key) == value
    known.write()
    assert SessionProfiles(tmp_path).get("A", key) == value
    assert SessionProfiles(tmp_path).values("A")[key] == value


def test_a_changed_profile_keeps_what_is_not_known_here(tmp_path: Path) -> None:
    known = profiles(tmp_path, BY_X2GOCLIENT)
    known.set("Büro", "sshport", 22)
    known.set("Büro", "fullscreen", True)
    known.write()
    changed = BY_X2GOCLIENT.replace("sshport=2222", "sshport=22")
    changed = changed.replace("fullscreen=false", "fullscreen=1")
    assert known.path.read_text() == changed


def test_a_profile_of_the_machine_is_changed_in_the_users_file(tmp_path: Path) -> None:
    known = profiles(tmp_path, system="[all]\nname=All\nhost=a\n")
    known.set("All", "host", "b, c")
    known.write()
    assert (tmp_path / "sessions").read_text() == "[all]\nhost=b, c\n"
    assert known["All"].host == ("b", "c")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("sshport", "22", "sshport: '22': use a number"),
        ("sshport", 0, "sshport: 0: use a number from 1 to 65535"),
        ("sound", "yes", "sound: 'yes': use a flag"),
        ("clipboard", "all", "clipboard: 'all': use one of both"),
        ("name", "", "a profile needs a name"),
        ("name", "Lab", "there is a profile 'Lab' already"),
        ("no=key", "x", "'no=key' cannot be a key"),
    ],
)
def test_a_value_that_a_key_cannot_have_is_refused_and_nothing_is_changed(
    key: str, value: Any, problem: str, tmp_path: Path
) -> None:
    known = profiles(tmp_path, "[a]\nname=A\n" + BY_PYTHON_X2GO)
    with pytest.raises(ProfileError, match=problem):
        known.set("A", key, value)
    known.write()
    assert known.path.read_text() == "[a]\nname=A\n" + BY_PYTHON_X2GO


def test_profiles_are_added_and_removed(tmp_path: Path) -> None:
    known = profiles(tmp_path, BY_PYTHON_X2GO, "[all]\nname=All\n")
    new = known.add("New", host=["n.example.org"], command="XFCE", rootless=False)
    assert known["New"].command == "XFCE"
    with pytest.raises(ProfileError, match="there is a profile 'New' already"):
        known.add("New")
    with pytest.raises(ProfileError, match="speed"):
        known.add("Other", speed=99)
    with pytest.raises(
        ProfileError, match=r"profile All is not in .* cannot be removed"
    ):
        known.remove("All")
    known.remove("Lab")
    known.write()
    again = SessionProfiles(tmp_path, tmp_path / "system")
    assert again.ids == [new, "all"]
    assert len(again) == 2
    # All of it is written: the defaults of other clients may be others.
    assert again["New"] == Profile(
        id=new,
        name="New",
        host=("n.example.org",),
        command="XFCE",
        rootless=False,
    )
    written = Document(again.path.read_text(), again.path).sections[new]
    assert set(written) == set(KEYS)


@pytest.mark.parametrize(
    ("metatype", "values"),
    [
        ("RDP/proxy", {"rdpserver": "r", "command": "RDP"}),
        ("RDP/direct", {"rdpserver": "r", "command": "RDP", "host": ()}),
        ("not supported", {"host": ()}),
        ("KDE + Published Applications", {"published": True, "command": "KDE"}),
        ("Published Applications", {"published": True}),
        ("Single Applications", {"rootless": True}),
        ("XFCE Desktop", {"rootless": False, "command": "XFCE4"}),
        ("LXQt Desktop", {"rootless": False, "command": "startlxqt"}),
        ("MATE Desktop", {"rootless": False, "command": "MATE"}),
        ("CUSTOM Desktop", {"rootless": False, "command": "openbox"}),
    ],
)
def test_a_metatype_is_told_in_the_words_of_python_x2go(
    metatype: str, values: dict[str, Any]
) -> None:
    assert Profile(**values).metatype == metatype


# Brokers.


def test_a_text_of_a_broker_is_read_as_the_file_is() -> None:
    found = profiles_of(
        "\n[one]\nname=Profile One\nhost=127.0.0.1\nsshport=2222\nrootless=0\n"
        "usebrokerpass=1\nstatus=S\n\n[pool]\nhost=srv-a,srv-b\n",
        "broker.example.org",
    )
    assert list(found) == ["one", "pool"]
    assert found["one"].name == "Profile One"
    assert (found["one"].sshport, found["one"].rootless) == (2222, False)
    assert found["one"].extra == {"usebrokerpass": "1", "status": "S"}
    assert found["pool"].host == ("srv-a", "srv-b")
    with pytest.raises(ConfigFileError, match=r"^broker:3, \[b\], sshport: 'x': use"):
        profiles_of("[a]\n[b]\nsshport=x\n", "broker")


def test_json_values_are_taken_in_any_type() -> None:
    values: dict[str, Any] = {
        "name": "One",
        "host": ["a", "b"],
        "sshport": "2222",
        "sound": 1,
        "fullscreen": "true",
        "speed": "lan",
        "export": "/a:1;",
        "status": "R",
    }
    profile = Profile.from_values("one", values)
    assert profile == Profile(
        id="one",
        name="One",
        host=("a", "b"),
        sshport=2222,
        sound=True,
        fullscreen=True,
        speed=4,
        export={"/a": True},
        extra={"status": "R"},
    )
    with pytest.raises(ProfileError, match="profile one, sshport='x': use a whole"):
        Profile.from_values("one", {"sshport": "x"})


# Parameters of python-x2go.


def test_a_profile_becomes_the_parameters_of_python_x2go() -> None:
    parameters = session_parameters(
        Profile(
            name="One",
            host=("a", "b"),
            user="me",
            command="XFCE4",
            rootless=False,
            maxdim=True,
            sound=True,
            export={"/a": True, "/b": False},
            usekbd=False,
            setdpi=True,
            dpi=120,
            mimeboxextensions="PDF,DOC",
            mimeboxaction="SHRED",
            sshproxysameuser=True,
            sshproxysamepass=True,
            key="/key",
        )
    )
    expected = {
        "profile_name": "One",
        "server": ["a", "b"],
        "port": 22,
        "username": "me",
        "key_filename": "/key",
        "look_for_keys": True,
        "allow_agent": True,
        "cmd": "XFCE",
        "session_type": "desktop",
        "geometry": "maximize",
        "link": "adsl",
        "pack": "16m-jpeg-9",
        "snd_system": "pulse",
        "snd_port": 4713,
        "kbtype": "null/null",
        "kblayout": "null",
        "kbvariant": "null",
        "dpi": 120,
        "share_local_folders": ["/a"],
        "allow_share_local_folders": True,
        "mimebox_extensions": ["PDF", "DOC"],
        "mimebox_action": "OPEN",
        "sshproxy_user": "me",
        "sshproxy_reuse_authinfo": True,
        "sshproxy_key_filename": "/key",
        "printing": False,
        "published_applications": False,
        "auto_start_or_resume": False,
    }
    assert {key: parameters[key] for key in expected} == expected
    assert "dpi" not in session_parameters(Profile())
    assert session_parameters(Profile())["geometry"] == "800x600"
    assert session_parameters(Profile(fullscreen=True))["geometry"] == "fullscreen"
    assert session_parameters(Profile(sound=False))["snd_system"] == "none"


# Settings.


def test_settings_are_read_and_written_with_their_types(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text(
        "[General]\nclientport=2222\n\n[trayicon]\nenabled=false\n\n"
        "[toolbar]\nshow=true\n"
    )
    settings = ClientSettings(tmp_path, system_folder=None)
    assert settings.get("General", "clientport") == 2222
    assert settings.get("trayicon", "enabled") is False
    assert settings.get("Authorization", "suspend") is True
    assert settings.get("LDAP", "server") == "localhost"
    assert settings.get("toolbar", "show") == "true"
    settings.set("LDAP", "port", 390)
    settings.write()
    again = ClientSettings(tmp_path, system_folder=None)
    assert again.values()["LDAP"]["port"] == 390
    assert again.values()["toolbar"] == {"show": "true"}
    assert set(again.values()) == {*ClientSettings.DEFAULTS, "toolbar"}
    with pytest.raises(ProfileError, match="LDAP/port: 'x': use a number"):
        settings.set("LDAP", "port", "x")
    with pytest.raises(ProfileError, match=r"settings has no x in \[General\]"):
        settings.get("General", "x")


# The page about it.


def test_the_page_names_what_there_is_and_its_examples_run(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "x2go-profiles.md").read_text()
    connecting, using = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    compile(connecting, "docs/x2go-profiles.md", "exec")
    exec(compile(connecting.partition("\n\n")[0], "docs/x2go-profiles.md", "exec"), {})
    known = profiles(tmp_path, "[a]\nname=Office\n[b]\nname=Old\n")
    exec(compile(using, "docs/x2go-profiles.md", "exec"), {"known": known})
    assert known["Office"].host == ("a.example.org", "b.example.org")
    assert known["Lab"].metatype == "XFCE Desktop"

    called = set(re.findall(r"`(?:known\.)?(\w+)\(", page))
    called -= {"find_window"} | set(re.findall(r"^\| `(\w+)\(", page, re.M))
    places: list[object] = [package, SessionProfiles, Profile, PrintingFile]
    assert {
        name for name in called if not any(hasattr(place, name) for place in places)
    } <= {"get_client_settings", "get_client_printing"}
    section = page.partition("## Connecting")[2].partition("## The files")[0]
    first = re.findall(r"^\| (`[^|]+`) \|", section, re.M)
    keys = {key for cell in first for key in re.findall(r"`(\w+)`", cell)}
    assert len(keys) == 12
    assert keys <= set(KEYS)
