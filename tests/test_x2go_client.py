"""The life of sessions in a program with python-x2go's client, on the real server."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import x2go_session as x2go
from tests.support.sshd import Sshd
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from tests.support.x2go_programs import PROFILE, Lab, ToldClient, in_lab
from x2go_session.control import Control
from x2go_session.errors import NotSupported
from x2go_session.replies import SessionInfo

pytestmark = pytest.mark.timeout(300)

EXAMPLE = Path(__file__).parent.parent / "examples" / "x2go_client" / "client.py"


@pytest.fixture(scope="module")
def lab(
    x2go_server: X2goServer,
    client_display: Display,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    yield from in_lab(x2go_server, client_display, tmp_path_factory.mktemp("life"))


@pytest.fixture
def client(lab: Lab) -> Iterator[ToldClient]:
    with lab.client() as made:
        yield made
    lab.server.end_sessions()


def connected(client: ToldClient, profile: str = PROFILE) -> str:
    """Register and connect a session of a profile; return its uuid."""
    uuid = client.register_session(profile_name=profile)
    assert client.connect_session(uuid) is True
    return str(uuid)


def name_of(client: ToldClient, uuid: str) -> str:
    name = client.get_session_name(uuid)
    assert name is not None
    return name


# The whole life.


def test_a_session_without_a_profile_lives(client: ToldClient, lab: Lab) -> None:
    session = client.register_session(
        **lab.parameters,
        profile_name="no file has me",
        cmd="xclock",
        geometry="400x300",
        link="lan",
        return_object=True,
    )
    uuid = session.uuid
    assert client.connect_session(uuid)
    assert client.get_session_name(uuid) is None
    assert client.start_session(uuid)
    name = name_of(client, uuid)
    assert client.wait_hook("HOOK_on_session_has_started_by_me") == {
        "session_uuid": uuid,
        "profile_name": "no file has me",
        "session_name": name,
    }
    assert not client.is_folder_sharing_available(uuid)
    assert client.suspend_session(uuid)
    client.wait_hook("HOOK_on_session_has_been_suspended")
    assert client.is_session_suspended(uuid)
    assert client.client_suspended_sessions() == [uuid]
    assert client.server_has_suspended_session_of_name(uuid, name)
    assert client.resume_session(uuid)
    client.wait_hook("HOOK_on_session_has_resumed_by_me")
    assert client.session_ok(uuid)
    assert client.terminate_session(uuid)
    client.wait_hook("HOOK_on_session_has_terminated")
    assert client.has_session_terminated(uuid)
    assert client.server_running_sessions(uuid) == []
    assert not client.client_has_associated_sessions


def test_sessions_of_other_clients_are_taken_over_by_name(
    client: ToldClient, lab: Lab
) -> None:
    with lab.client() as other:
        theirs = connected(other)
        assert other.start_session(theirs)
        name = name_of(other, theirs)
        uuid = connected(client)
        client.register_available_server_sessions_by_session_uuid(uuid)
        found = client.get_session_of_session_name(name)
        assert found not in (None, uuid)
        # One that is registered is not registered again.
        client.register_available_server_sessions_by_profile_name(
            PROFILE, re_register=True
        )
        client.register_available_server_sessions_all_profiles()
        assert len(client.client_registered_sessions()) == 2
        assert client.is_session_running(found)
        assert client.suspend_session(uuid, session_name=name)
        other.wait_hook("HOOK_on_session_has_been_suspended")
        assert client.is_session_suspended(uuid, name)
        assert client.resume_session(session_name=name, match_profile_name=PROFILE)
        assert client.session_ok(found)
        other.update_sessionregistry_status_by_session_uuid(theirs)
        told = other.wait_hook("HOOK_on_session_has_resumed_by_other")
        assert told["session_name"] == name
        assert client.terminate_session(found, match_profile_name="another") is False
        assert client.terminate_session(uuid, session_name=name)
        other.update_sessionregistry_status_by_session_uuid(theirs)
        other.wait_hook("HOOK_on_session_has_terminated")


def test_a_desktop_is_shared_and_all_sessions_are_cleaned(
    client: ToldClient, lab: Lab
) -> None:
    uuid = connected(client)
    assert client.start_session(uuid, session_type="desktop", cmd="xclock")
    client.set_session_window_title(uuid, "my own title")
    client.raise_session_window(uuid)
    info = client.get_session_info(uuid)
    assert info is not None
    shadow = client.register_session(profile_name=PROFILE)
    assert client.is_session_connected(shadow)
    with pytest.raises(x2go.X2GoDesktopSharingException, match="not there"):
        client.share_desktop_session(
            shadow, desktop="nobody@:99", check_desktop_list=True
        )
    assert client.wait_hook("HOOK_no_such_desktop")["desktop"] == "nobody@:99"
    assert client.share_desktop_session(
        shadow, display=f":{info.display}", share_mode=1
    )
    assert "XSHAD" in name_of(client, shadow)
    assert len(client.list_sessions(uuid)) == 2
    assert client.clean_sessions(uuid) is True
    assert client.list_sessions(uuid) == {}
    assert client.client_running_sessions() == []


def test_a_session_that_ends_while_all_are_cleaned_is_no_error(
    client: ToldClient, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shadow of a desktop does, which ends with it."""
    uuid = connected(client)
    assert client.start_session(uuid, cmd="xclock")
    listed = Control.sessions

    def list_and_end(control: Control) -> list[SessionInfo]:
        if threading.current_thread() is not threading.main_thread():
            return listed(control)
        monkeypatch.undo()
        found = listed(control)
        for info in found:
            os.kill(info.agent_pid, signal.SIGKILL)
        client.wait_hook("HOOK_on_session_has_terminated")
        return found

    monkeypatch.setattr(Control, "sessions", list_and_end)
    assert client.clean_sessions(uuid) is True
    assert client.list_sessions(uuid) == {}


def test_of_several_sessions_the_desktop_has_the_folders(
    client: ToldClient, lab: Lab
) -> None:
    application = connected(client)
    assert client.start_session(application)
    assert client.share_local_folder(application, str(lab.share))
    desktop = connected(client)
    assert client.start_session(desktop, session_type="desktop")
    assert client.get_master_session(PROFILE, return_object=False) == desktop
    assert client.get_shared_folders(application) == []
    assert client.get_shared_folders(desktop) == [str(lab.share)]
    assert client.terminate_session(desktop)
    assert client.get_master_session(PROFILE, return_object=False) == application


# Connecting.


def test_a_profile_that_says_so_connects_and_starts_by_itself(lab: Lab) -> None:
    lab.add("Eager", autoconnect=True, autostart=True)
    with lab.client() as first:
        uuid = first.register_session(profile_name="Eager")
        assert first.session_can_auto_connect(uuid)
        assert first.session_can_sshproxy_auto_connect(uuid)
        assert first.session_auto_connect(uuid)
        name = name_of(first, uuid)
        assert first.suspend_session(uuid)
    with lab.client() as second:
        again = second.register_session(profile_name="Eager")
        assert second.get_session_name(again) == name
        assert second.terminate_session(again)
        assert second.session_auto_start_or_resume(again, start=False) is False


def test_who_cannot_log_in_alone_is_told_to_a_hook(lab: Lab) -> None:
    lab.add("Keyless", key="", autoconnect=True)
    with lab.client() as keyless:
        uuid = keyless.register_session(profile_name="Keyless")
        told = keyless.wait_hook("HOOK_profile_auto_connect")
        assert told == {"profile_name": "Keyless"}
        assert not keyless.session_can_auto_connect(uuid)
        assert not keyless.is_session_connected(uuid)
        with pytest.raises(x2go.AuthenticationException):
            keyless.connect_session(uuid, password="wrong", force_password_auth=True)


def test_a_host_key_is_checked_before_anybody_logs_in(
    client: ToldClient, lab: Lab
) -> None:
    uuid = client.register_session(profile_name=PROFILE)
    assert client.check_session_host(uuid)
    assert client.hooks("HOOK_check_host_dialog") == []


def test_an_unknown_host_key_is_asked_about_by_a_hook(lab: Lab, tmp_path: Path) -> None:
    server = lab.server
    with lab.client(ssh_rootdir=str(tmp_path)) as stranger:
        stranger.answers["HOOK_check_host_dialog"] = False
        uuid = stranger.register_session(profile_name=PROFILE)
        assert not stranger.check_session_host(uuid)
        with pytest.raises(x2go.X2GoHostKeyException):
            stranger.connect_session(uuid)
        (asked, _) = stranger.hooks("HOOK_check_host_dialog")
        assert (asked["host"], asked["port"]) == (server.host, server.port)
        assert asked["fingerprint"].startswith("SHA256:")
        stranger.answers["HOOK_check_host_dialog"] = True
        assert stranger.connect_session(uuid)
        assert server.host in (tmp_path / "known_hosts").read_text()
        assert stranger.disconnect_session(uuid)
        assert not stranger.is_session_connected(uuid)


def test_a_session_takes_another_user_before_it_connects(
    client: ToldClient, lab: Lab
) -> None:
    uuid = client.register_session(profile_name=PROFILE)
    assert client.set_session_username(uuid, "nobody-there")
    assert client.get_session_username(uuid) == "nobody-there"
    with pytest.raises(x2go.AuthenticationException):
        client.connect_session(uuid)
    assert client.connect_session(uuid, username=lab.server.user)
    assert client.disconnect_profile(PROFILE) is True
    assert client.disconnect_profile(PROFILE) is False


def test_a_profile_goes_through_its_ssh_proxy(lab: Lab, sshd: Sshd) -> None:
    lab.add(
        "Behind",
        usesshproxy=True,
        sshproxyhost=f"127.0.0.1:{sshd.port}",
        sshproxyuser=getpass.getuser(),
        sshproxykeyfile=str(sshd.user_key),
        sshproxyautologin=False,
    )
    with lab.client() as client:
        uuid = client.register_session(profile_name="Behind")
        assert client.session_uses_sshproxy(uuid)
        assert not client.session_reuses_sshproxy_authinfo(uuid)
        assert client.session_can_sshproxy_auto_connect(uuid)
        assert client.connect_session(uuid)
        assert client.server_is_alive(uuid)
        asked = client.wait_hook("HOOK_check_host_dialog")
        assert asked["port"] == sshd.port


# What does not work.


def test_nothing_is_started_without_a_connection(client: ToldClient) -> None:
    uuid = client.register_session(profile_name=PROFILE)
    with pytest.raises(x2go.X2GoClientException, match="connect"):
        client.start_session(uuid)


def test_who_resumes_has_to_say_what(client: ToldClient) -> None:
    uuid = connected(client)
    for arguments in ({}, {"session_uuid": uuid}, {"session_name": "unknown"}):
        with pytest.raises(x2go.X2GoClientException):
            client.resume_session(**arguments)
    assert client.resume_session(uuid, session_name="unknown") is False


def test_there_is_no_session_without_profile_and_server(client: ToldClient) -> None:
    with pytest.raises(x2go.X2GoProfileException, match="no profile"):
        client.register_session(profile_name="none of them")
    with pytest.raises(NotSupported, match="key_filename"):
        client.register_session("server", pkey=object())


def test_a_program_that_is_not_there_is_told_to_hooks(client: ToldClient) -> None:
    uuid = connected(client)
    assert client.start_session(uuid, cmd="no-such-program") is False
    assert client.wait_hook("HOOK_no_such_command")["cmd"] == "no-such-program"
    assert client.wait_hook("HOOK_session_startup_failed") == {"profile_name": PROFILE}


def test_a_lost_connection_is_told_to_a_hook(client: ToldClient, lab: Lab) -> None:
    uuid = connected(client)
    lab.server.kill_sessions()
    wait_until(lambda: not client.is_session_connected(uuid), PATIENCE_S)
    with pytest.raises(x2go.X2GoControlSessionException):
        client.server_is_alive(uuid)
    told = client.wait_hook("HOOK_on_control_session_death")
    assert told == {"profile_name": PROFILE}
    assert client.connect_session(uuid)
    assert client.server_is_alive(uuid)


def test_the_example_runs_from_start_to_terminate(lab: Lab) -> None:
    server = lab.server
    options = {
        "port": server.port,
        "user": server.user,
        "key": server.user_key,
        "command": "xclock",
        "sessions": lab.folders["sessions_rootdir"],
        "ssh": lab.folders["ssh_rootdir"],
    }
    done = subprocess.run(
        [
            *(sys.executable, str(EXAMPLE), server.host),
            *(f"--{name}={value}" for name, value in options.items()),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    words = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert words == [
        *("features", "started", "suspended", "resumed", "runs"),
        *("terminated", "sessions left"),
    ]
    assert done.stdout.endswith("sessions left: 0\n")
