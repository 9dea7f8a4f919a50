"""A session on a real X2Go server, from nothing but the files of an X2Go client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import rtunnel
from tests.support.sshd import Sshd
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from tests.support.x2go_client import PDF, print_in
from x2go_session import profiles
from x2go_session.control import Control
from x2go_session.session import SessionType
from x2go_session.states import State
from x2go_session.terminal import Terminal
from x2go_session.windows import find_window

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _nothing_is_left(x2go_server: X2goServer) -> Iterator[None]:
    x2go_server.end_sessions()
    yield
    x2go_server.end_sessions()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of a user of this side, who has no agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / ".x2goclient").mkdir()
    return tmp_path


def test_a_session_starts_from_the_files_of_an_x2go_client_alone(
    x2go_server: X2goServer, client_display: Display, home: Path, tmp_path: Path
) -> None:
    (home / "papers").mkdir()
    (home / "papers" / "letter").write_text("Dear\n")
    with Sshd(tmp_path / "proxy") as proxy:
        (home / ".ssh" / "known_hosts").write_text(
            x2go_server.known_hosts.read_text() + proxy.known_hosts.read_text()
        )
        (home / ".x2goclient" / "printing").write_text(
            "[General]\npdfview=true\n[view]\nopen=false\n[save]\nfolder=printed\n"
        )
        (home / ".x2goclient" / "sessions").write_text(
            f"""[20240101]
name=Office
host={x2go_server.host}
sshport={x2go_server.port}
user={x2go_server.user}
key={x2go_server.user_key}
autologin=false
usesshproxy=true
sshproxyhost=127.0.0.1
sshproxyport={proxy.port}
sshproxyuser={proxy.user}
sshproxykeyfile={proxy.user_key}
sshproxyautologin=false
command=xclock
rootless=false
fullscreen=true
speed=3
pack=16m-png
quality=7
clipboard=client
setdpi=true
dpi=120
usekbd=true
type=pc105/de
layout=de
setsessiontitle=true
sessiontitle=B\\xfcro
print=true
useexports=true
export="{home}/papers:1;{home}/other:0;"
"""
        )
        profile = profiles.SessionProfiles()["Office"]
        assert profile.metatype == "CUSTOM Desktop"
        assert profiles.not_supported(profile) == []
        found = profiles.connection(profile)
        with rtunnel.connect(found.destination, **found.options) as tunnel:
            control = Control(tunnel)
            terminal = Terminal(
                control,
                profiles.session_options(profile),
                services=profiles.services(profile, profiles.PrintingFile().action),
                environment={**os.environ, "DISPLAY": client_display.name},
            )
            session = terminal.start()
            (listed,) = control.sessions()
            assert (listed.name, listed.type) == (session.name, SessionType.DESKTOP)

            options = control.check(f"cat {session.remote_folder}/options").stdout
            wanted = ("link=wan", "pack=16m-png-7", "clipboard=client", "fullscreen=1")
            assert [each for each in wanted if f",{each}" not in options] == []
            inside = f"DISPLAY=:{session.display}"
            assert "120x120 dots" in control.check(f"{inside} xdpyinfo").stdout

            (mount,) = [
                each.mount_point
                for each in control.mounts(session.name)
                if each.mount_point.endswith("papers")
            ]
            assert x2go_server.as_user("cat", f"{mount}/letter") == "Dear\n"
            print_in(x2go_server, session.name, "Letter")
            saved = home / "printed" / "Letter.pdf"
            wait_until(lambda: saved.exists() and saved.read_bytes() == PDF, PATIENCE_S)

            name = client_display.name
            wait_until(lambda: find_window(session.name, name), PATIENCE_S)
            window = find_window(session.name, name)
            assert window is not None
            assert window.title == f"X2GO-{session.name}"
            title = profiles.window_title(profile)
            assert title == "Büro"
            window.set_title(title)
            window.activate()
            again = find_window(session.name, name)
            assert again is not None
            assert again.title == f"X2GO-{session.name} Büro"

            terminal.terminate()
            assert terminal.state is State.TERMINATED
        assert "Accepted publickey" in proxy.log.read_text()
    assert (home / ".x2go").is_dir()
