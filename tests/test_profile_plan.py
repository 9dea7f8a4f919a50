"""What a profile makes of a connection, of a session and of its services."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rtunnel
from tests.support.sshd import Sshd
from x2go_session.errors import NotSupported, ProfileError, ServiceError
from x2go_session.options import Rdp, SessionOptions
from x2go_session.profiles import (
    Profile,
    SessionProfiles,
    connection,
    not_supported,
    services,
    session_options,
    window_title,
)
from x2go_session.services.mimebox import MimeBox
from x2go_session.services.print_actions import PdfSave
from x2go_session.services.printing import Printing
from x2go_session.services.sharing import Sharing
from x2go_session.services.sound import Sound, SoundSystem
from x2go_session.session import SessionType

# Connections.


def test_a_profile_says_whom_to_connect_to_and_with_what() -> None:
    profile = Profile(host=("h",), user="me", sshport=2222, key="~/keys/office")
    found = connection(profile, password="secret")
    assert (found.host, found.destination) == ("h", "h")
    assert found.options == {
        "user": "me",
        "port": 2222,
        "identity_files": [str(Path.home() / "keys" / "office")],
        "password": "secret",
        "passphrase": None,
        "ssh_options": [],
    }
    assert "secret" not in repr(found)
    assert connection(profile, user="you").options["user"] == "you"


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({}, {"identity_files": [], "ssh_options": []}),
        ({"key": "/k"}, {"identity_files": ["/k"], "ssh_options": []}),
        (
            {"key": "/k", "autologin": False},
            {"identity_files": ["/k"], "agent": False, "ssh_options": []},
        ),
        (
            {"autologin": False},
            {
                "identity_files": [],
                "agent": False,
                "ssh_options": ["PubkeyAuthentication=no"],
            },
        ),
        (
            {"key": "<will-be-exchanged-during-session-selection>"},
            {"identity_files": [], "ssh_options": []},
        ),
        (
            {"id": "2024", "uniquehostkeyaliases": True},
            {"identity_files": [], "ssh_options": ["HostKeyAlias=2024"]},
        ),
    ],
)
def test_keys_and_aliases_are_those_of_the_profile(
    values: dict[str, Any], options: dict[str, Any]
) -> None:
    found = connection(Profile(**values)).options
    names = ("identity_files", "agent", "ssh_options")
    assert {name: found[name] for name in names if name in found} == options


def test_one_of_several_hosts_is_drawn() -> None:
    profile = Profile(host=("a", "b", "c"))
    drawn = {connection(profile).host for _ in range(200)}
    assert drawn == {"a", "b", "c"}
    assert connection(profile, choose=lambda hosts: hosts[0]).destination == "a"
    assert connection(Profile(host=("::1",))).destination == "[::1]"


@pytest.mark.parametrize(
    ("values", "jump", "identity_files", "password"),
    [
        ({}, "proxy:22", [], "theirs"),
        (
            {"sshproxyuser": "you", "sshproxyport": 2200, "sshproxykeyfile": "/p"},
            "you@proxy:2200",
            ["/p"],
            "theirs",
        ),
        (
            {"sshproxysameuser": True, "sshproxyuser": "you"},
            "me@proxy:22",
            [],
            "theirs",
        ),
        (
            {"sshproxysamepass": True, "sshproxykeyfile": "/p"},
            "proxy:22",
            ["/k"],
            "ours",
        ),
        ({"sshproxyhost": "other:2022"}, "other:2022", [], "theirs"),
        ({"sshproxyhost": "fe80::1"}, "[fe80::1]:22", [], "theirs"),
    ],
)
def test_the_ssh_proxy_is_a_jump_host_with_its_own_login(
    values: dict[str, Any], jump: str, identity_files: list[str], password: str
) -> None:
    given = {"sshproxyhost": "proxy", **values}
    profile = Profile(usesshproxy=True, host=("h",), user="me", key="/k", **given)
    options = connection(profile, password="ours", proxy_password="theirs").options
    assert options["jump"] == jump
    assert options["jump_options"]["identity_files"] == identity_files
    assert options["jump_options"]["password"] == password
    assert "jump" not in connection(Profile(host=("h",))).options


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"krblogin": True}, "krblogin: Kerberos logins are not supported; set krblo"),
        ({"usesshproxy": True, "sshproxytype": "HTTP"}, "sshproxytype: .* HTTP is not"),
        ({"host": ()}, "direct RDP"),
    ],
)
def test_a_login_that_is_not_known_here_is_named(
    values: dict[str, Any], problem: str
) -> None:
    with pytest.raises(NotSupported, match=f"profile Mine: .*{problem}"):
        connection(Profile(name="Mine", **values))


@pytest.mark.parametrize(
    "values",
    [
        {"host": ("a b",)},
        {"host": ("me@a",)},
        {"usesshproxy": True, "sshproxyhost": "a,b"},
        {"usesshproxy": True, "sshproxyuser": "a,b"},
    ],
)
def test_what_would_be_taken_for_another_server_is_refused(
    values: dict[str, Any],
) -> None:
    with pytest.raises(ProfileError, match="is not a"):
        connection(Profile(**values))


def test_a_profile_leads_through_a_real_proxy_with_its_own_key(tmp_path: Path) -> None:
    with Sshd(tmp_path / "inner") as inner, Sshd(tmp_path / "proxy") as proxy:
        (tmp_path / "sessions").write_text(
            f"[id]\nname=Inside\nhost=127.0.0.1\nsshport={inner.port}\n"
            f"user={inner.user}\nkey={inner.user_key}\nautologin=false\n"
            f"usesshproxy=true\nsshproxyhost=127.0.0.1\nsshproxyport={proxy.port}\n"
            f"sshproxysameuser=true\nsshproxykeyfile={proxy.user_key}\n"
            "sshproxyautologin=false\n"
        )
        found = connection(SessionProfiles(tmp_path, None)["Inside"])
        known_hosts = [str(inner.known_hosts), str(proxy.known_hosts)]
        with rtunnel.connect(
            found.destination,
            **found.options,
            config_file="none",
            known_hosts=known_hosts,
        ) as tunnel:
            answer = rtunnel.run_command(
                tunnel.transport, "echo $SSH_CONNECTION", timeout_s=30
            )
        # The server is reached from the proxy; both have let us in by a key.
        assert int(answer.stdout.split()[3]) == inner.port
        for server in (inner, proxy):
            assert "Accepted publickey" in server.log.read_text()


# Sessions.


def test_the_defaults_of_a_profile_are_a_session() -> None:
    assert session_options(Profile()) == SessionOptions(
        type=SessionType.ROOTLESS,
        command="TERMINAL",
        geometry="800x600",
        link="adsl",
        pack="16m-jpeg-9",
        keyboard_type="pc105/us",
        keyboard_layout="us",
    )


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({"rootless": False, "command": "XFCE4"}, {"command": "XFCE"}),
        ({"rootless": False}, {"type": SessionType.DESKTOP}),
        ({"published": True}, {"type": SessionType.PUBLISHED}),
        (
            {"published": True, "rootless": False, "command": "MATE"},
            {"type": SessionType.DESKTOP, "command": "MATE"},
        ),
        ({"fullscreen": True, "maxdim": True}, {"geometry": "fullscreen"}),
        ({"maxdim": True}, {"geometry": "maximize"}),
        ({"width": 1024, "height": 768}, {"geometry": "1024x768"}),
        ({"speed": 0}, {"link": "modem"}),
        ({"speed": 4}, {"link": "lan"}),
        ({"pack": "16m-png", "quality": 0}, {"pack": "16m-png"}),
        ({"pack": "256-png"}, {"pack": "256-png"}),
        ({"dpi": 120}, {"dpi": None}),
        ({"setdpi": True, "dpi": 120}, {"dpi": 120}),
        ({"clipboard": "client", "xinerama": True}, {"clipboard": "client"}),
        ({"sound": True}, {"sound": "pulse"}),
        ({"sound": True, "soundsystem": "esd"}, {"sound": "esd"}),
        ({"sound": True, "soundsystem": "arts"}, {"sound": "none"}),
        ({"sound": False, "soundsystem": "esd"}, {"sound": "none"}),
        (
            {"usekbd": False},
            {"keyboard_type": "null/null", "keyboard_layout": ""},
        ),
        (
            {"type": "auto", "layout": " ", "variant": "nodeadkeys"},
            {"keyboard_layout": "", "keyboard_variant": "nodeadkeys"},
        ),
        (
            {"command": "XDMCP", "xdmcpserver": "x.example.org"},
            {"xdmcp_server": "x.example.org"},
        ),
        (
            {"command": "RDP", "rdpserver": "r", "user": "me"},
            {"rdp": Rdp(server="r", user="me")},
        ),
    ],
)
def test_keys_of_a_profile_are_options_of_the_session(
    values: dict[str, Any], options: dict[str, Any]
) -> None:
    found = session_options(Profile(**values))
    assert {name: getattr(found, name) for name in options} == options


def test_a_shared_desktop_is_chosen_when_the_session_starts() -> None:
    profile = Profile(command="SHADOW", rootless=False)
    found = session_options(profile, desktop="me@:50", view_only=True)
    assert (found.type, found.shadowed) == (SessionType.SHADOW, ("me", "50"))
    with pytest.raises(ProfileError, match="profile NEW_PROFILE: desktop: a SHADOW"):
        session_options(profile)


def test_a_desktop_has_the_title_that_the_profile_says() -> None:
    desktop = {"rootless": False, "command": "XFCE", "user": "me", "host": ("a", "b")}

    def title(host: str = "", **values: Any) -> str | None:
        return window_title(Profile(**{**desktop, **values}), host)

    assert title() is None
    assert title(setsessiontitle=True) == "XFCE for me@a"
    assert title("b", setsessiontitle=True) == "XFCE for me@b"
    assert title(setsessiontitle=True, sessiontitle=" Office ") == "Office"
    assert title(setsessiontitle=True, rootless=True) is None


def test_a_session_that_cannot_be_names_the_profile() -> None:
    with pytest.raises(ProfileError, match="profile Mine: geometry '0x600': use"):
        session_options(Profile(name="Mine", width=0))


# Services.


def test_the_services_are_those_that_the_profile_wants(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    profile = Profile(
        sound=True,
        soundsystem="esd",
        print=True,
        usemimebox=True,
        mimeboxaction="saveas",
        mimeboxextensions="PDF,DOC",
        export={str(tmp_path / "a"): True, str(tmp_path / "b"): False},
    )
    sharing, sound, printing, mimebox = services(profile, PdfSave("here"))
    assert isinstance(sharing, Sharing)
    assert [each.folder for each in sharing.folders] == [tmp_path / "a"]
    assert isinstance(sound, Sound)
    assert sound.system is SoundSystem.ESD
    assert isinstance(printing, Printing)
    assert printing.action == PdfSave("here")
    assert isinstance(mimebox, MimeBox)
    assert mimebox.action.name == "SAVEAS"


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, ["sharing"]),
        ({"useexports": False}, []),
        ({"useexports": False, "print": True}, ["sharing", "printing"]),
        ({"useexports": False, "usemimebox": True}, ["sharing", "mimebox"]),
        ({"useexports": False, "sound": True}, ["sound"]),
        ({"useexports": False, "sound": True, "soundsystem": "none"}, []),
    ],
)
def test_sharing_is_there_for_whoever_needs_it(
    values: dict[str, Any], names: list[str]
) -> None:
    assert [service.name for service in services(Profile(**values))] == names


@pytest.mark.parametrize("name", ["~no-such-user/papers", "/" + "x" * 300])
def test_a_folder_that_no_system_knows_is_not_shared_and_told(name: str) -> None:
    missing: list[ServiceError] = []
    (sharing,) = services(Profile(export={name: True}), on_missing=missing.append)
    assert isinstance(sharing, Sharing)
    assert sharing.folders == []
    assert [name in str(error) for error in missing] == [True]


def test_a_folder_that_is_not_there_is_told_and_the_others_are_shared(
    tmp_path: Path,
) -> None:
    (tmp_path / "here").mkdir()
    folders = {str(tmp_path / "gone"): True, str(tmp_path / "here"): True}
    missing: list[ServiceError] = []
    (sharing,) = services(Profile(export=folders), on_missing=missing.append)
    assert isinstance(sharing, Sharing)
    assert [each.folder.name for each in sharing.folders] == ["here"]
    assert f"cannot share {tmp_path}/gone" in str(missing[0])
    (sharing,) = services(
        Profile(export=folders, useexports=False, print=True, usemimebox=False)
    )[:1]
    assert isinstance(sharing, Sharing)
    assert sharing.folders == []


def test_what_a_profile_will_not_get_is_told() -> None:
    assert not_supported(Profile(sound=True)) == []
    profile = Profile(
        krblogin=True, forwardsshagent=True, sound=True, soundsystem="arts"
    )
    keys = [problem.partition(":")[0] for problem in not_supported(profile)]
    assert keys == ["forwardsshagent", "krblogin", "soundsystem"]
