"""What a python-x2go client tells of its sessions, with one running."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest

import x2go_session as x2go
from tests.support.x2go import Display, X2goServer
from tests.support.x2go_programs import PROFILE, Lab, ToldClient, in_lab
from x2go_session.profiles import ClientSettings, PrintingFile, SessionProfiles

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def lab(
    x2go_server: X2goServer,
    client_display: Display,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    yield from in_lab(x2go_server, client_display, tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[ToldClient]:
    lab.add("Other", host=["other.example.org"], command="XFCE", rootless=False)
    with lab.client() as made:
        yield made


@pytest.fixture(scope="module")
def uuid(client: ToldClient, lab: Lab) -> str:
    """A session that runs, with a folder shared."""
    uuid = client.register_session(profile_name=PROFILE)
    assert isinstance(uuid, str)
    assert client.connect_session(uuid) is True
    assert client.start_session(uuid) is True
    assert client.share_local_folder(uuid, str(lab.share)) is True
    return uuid


@pytest.fixture(scope="module")
def name(client: ToldClient, uuid: str) -> str:
    found = client.get_session_name(uuid)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def profile_id(client: ToldClient) -> str:
    return client.to_profile_id(PROFILE)


# One session.


def test_a_session_is_found_by_uuid_and_by_name(
    client: ToldClient, uuid: str, name: str
) -> None:
    session = client.get_session(uuid)
    assert session.uuid == uuid
    assert client.with_session(uuid) is session
    assert client.get_session_of_session_name(name) == uuid
    assert client.get_session_of_session_name(name, return_object=True) is session
    assert client.get_session_of_session_name(name, match_profile_name="no") is None
    assert client.client_registered_session_of_name(name) == uuid
    assert client.client_has_registered_session_of_name(name)
    assert not client.client_has_registered_session_of_name("no such name")


def test_what_is_not_registered_is_said_to_be_so(client: ToldClient) -> None:
    with pytest.raises(x2go.X2GoSessionRegistryException, match="no session"):
        client.get_session("no such uuid")


def test_a_session_says_whose_it_is_and_where(
    client: ToldClient, uuid: str, lab: Lab, profile_id: str
) -> None:
    server = lab.server
    assert client.get_session_username(uuid) == server.user
    assert client.get_session_server_hostname(uuid) == server.host
    assert client.get_session_server_peername(uuid) == (server.host, server.port)
    assert client.get_session_profile_id(uuid) == profile_id
    assert client.get_session_profile_name(uuid) == PROFILE


def test_a_session_that_runs_says_so(client: ToldClient, uuid: str, name: str) -> None:
    assert client.session_ok(uuid)
    assert client.is_session_connected(uuid)
    assert client.is_session_running(uuid)
    assert client.is_session_running(uuid, name)
    assert not client.is_session_suspended(uuid)
    assert not client.has_session_terminated(uuid)
    assert client.has_session_terminated(uuid, f"{name}1")
    summary = client.get_session_summary(uuid)
    assert summary["session_name"] == name
    assert (summary["running"], summary["suspended"]) == (True, False)


def test_the_server_tells_about_a_session(
    client: ToldClient, uuid: str, name: str
) -> None:
    info = client.get_session_info(uuid)
    assert info is not None
    assert (info.name, info.status, info.get_session_type()) == (name, "R", "R")
    assert info.is_running()
    assert not info.is_suspended()
    assert not info.is_published_applications_provider()


# Lists of sessions.


@pytest.mark.parametrize("kind", ["registered", "connected", "associated", "running"])
def test_sessions_are_listed_as_the_caller_wants_them(
    client: ToldClient, uuid: str, name: str, profile_id: str, kind: str
) -> None:
    listing = {
        "registered": client.client_registered_sessions,
        "connected": client.client_connected_sessions,
        "associated": client.client_associated_sessions,
        "running": client.client_running_sessions,
    }[kind]
    assert uuid in listing(return_objects=False)
    assert client.get_session(uuid) in listing(return_objects=True)
    assert name in listing(return_objects=False, return_session_names=True)
    assert PROFILE in listing(return_objects=False, return_profile_names=True)
    assert profile_id in listing(return_objects=False, return_profile_ids=True)


def test_sessions_of_a_profile_are_listed(
    client: ToldClient, uuid: str, name: str
) -> None:
    assert uuid in client.client_registered_sessions_of_profile_name(PROFILE)
    assert uuid in client.client_connected_sessions_of_profile_name(PROFILE)
    assert uuid in client.client_associated_sessions_of_profile_name(PROFILE)
    assert client.client_running_sessions_of_profile_name(
        PROFILE, return_session_names=True
    ) == [name]
    assert client.client_suspended_sessions_of_profile_name(PROFILE) == []
    assert client.client_pubapp_sessions_of_profile_name(PROFILE) == []
    assert client.client_running_sessions_of_profile_name("Other") == []


def test_a_client_says_which_kinds_of_sessions_it_has(
    client: ToldClient, uuid: str
) -> None:
    assert client.client_has_connected_sessions
    assert client.client_has_associated_sessions
    assert client.client_has_running_sessions
    assert not client.client_has_suspended_sessions
    assert client.client_suspended_sessions() == []


def test_a_profile_has_one_control_session(
    client: ToldClient, uuid: str, profile_id: str
) -> None:
    control = client.client_control_session_of_profile_name(PROFILE)
    assert control in client.client_control_sessions
    assert client.is_profile_connected(PROFILE)
    assert not client.is_profile_connected("Other")
    assert client.client_connected_profiles() == [profile_id]
    assert client.client_connected_profiles(return_profile_names=True) == [PROFILE]


# What the server has.


def test_sessions_of_the_server_are_listed_by_name(
    client: ToldClient, uuid: str, name: str, profile_id: str
) -> None:
    assert list(client.list_sessions(uuid)) == [name]
    assert list(client.list_sessions(profile_name=PROFILE)) == [name]
    assert list(client.list_sessions(profile_id=profile_id)) == [name]
    assert f"|{name}|" in client.list_sessions(uuid, raw=True)
    assert client.server_running_sessions(uuid) == [name]
    assert client.server_has_running_sessions(uuid)
    assert client.server_has_running_session_of_name(uuid, name)
    assert client.server_suspended_sessions(uuid) == []
    assert not client.server_has_suspended_sessions(uuid)
    assert not client.server_has_suspended_session_of_name(uuid, name)


def test_who_lists_sessions_has_to_say_of_whom(client: ToldClient) -> None:
    with pytest.raises(x2go.X2GoClientException, match="UUID"):
        client.list_sessions()
    with pytest.raises(x2go.X2GoClientException, match="not connected"):
        client.list_sessions(profile_name="Other")


def test_desktops_are_listed_without_those_of_some_types(
    client: ToldClient, uuid: str, lab: Lab
) -> None:
    info = client.get_session_info(uuid)
    assert info is not None
    own = f"{lab.server.user}@:{info.display}"
    assert own in client.list_desktops(uuid)
    assert own not in client.list_desktops(uuid, exclude_session_types=["R"])
    assert own in client.list_desktops(uuid, raw=True)


def test_the_server_says_what_it_is(client: ToldClient, uuid: str, lab: Lab) -> None:
    assert "X2GO_LIST_DESKTOPS" in client.get_server_features(PROFILE, force=True)
    assert client.has_server_feature(PROFILE, "X2GO_PRINTING")
    assert not client.has_server_feature(PROFILE, "X2GO_TELEPORT")
    version = client.get_server_versions(PROFILE, "x2goserver")
    assert version.startswith("4.")
    assert client.get_server_components(PROFILE, force=True)["x2goserver"] == version
    with pytest.raises(x2go.X2GoClientException, match="x2gonothing"):
        client.get_server_versions(PROFILE, "x2gonothing")
    assert client.server_is_alive(uuid)
    assert client.all_servers_are_alive()
    assert client.server_valid_x2gouser(uuid) == lab.server.user
    assert client.server_valid_x2gouser(uuid, "nobody-there") == ""


def test_published_applications_are_a_menu(client: ToldClient, uuid: str) -> None:
    very_raw = client.get_published_applications(uuid, very_raw=True)
    assert very_raw.startswith("<desktop>")
    raw = client.get_published_applications(uuid, raw=True)
    assert raw
    assert all("Exec=" in each["desktop"] for each in raw)
    menu = client.get_published_applications(profile_name=PROFILE, lang="de")
    (folders,) = menu.values()
    assert list(menu) == ["de"]
    entries = [entry for folder in folders.values() for entry in folder]
    assert all(entry["name"] and entry["exec"] for entry in entries)
    flat = client.profile_get_published_applications(
        uuid, lang="en", max_no_submenus=1000, refresh=True
    )
    assert list(flat["en"]) == ["TOP"]


def test_caches_are_renewed(client: ToldClient, uuid: str, name: str) -> None:
    client.update_cache_by_session_uuid(uuid, ("sessions", "desktops", "mounts"))
    client.update_cache_by_profile_name(PROFILE, update_desktops=True)
    client.update_cache_all_profiles("mounts")
    with pytest.raises(x2go.X2GoSessionCacheException, match="sessions"):
        client.update_cache_by_session_uuid(uuid, "windows")
    client.update_sessionregistry_status_by_session_uuid(uuid)
    client.update_sessionregistry_status_by_profile_name(
        PROFILE, session_list=client.list_sessions(uuid, refresh_cache=True)
    )
    client.update_sessionregistry_status_all_profiles()
    assert client.is_session_running(uuid)


# Folders.


def test_shared_folders_are_listed_and_unshared(
    client: ToldClient, uuid: str, lab: Lab
) -> None:
    other = lab.folder / "other share"
    other.mkdir()
    folders = [str(lab.share)]
    assert client.is_folder_sharing_available(uuid)
    assert client.is_folder_sharing_available(profile_name=PROFILE)
    assert client.get_shared_folders(uuid) == folders
    assert client.session_get_shared_folders(uuid, check_list_mounts=True) == folders
    assert client.profile_get_shared_folders(profile_name=PROFILE) == folders
    (mount,) = client.list_mounts(uuid)
    assert mount.startswith("127.0.0.1|")
    assert client.list_mounts_by_profile_name(PROFILE, refresh_cache=True) == [mount]
    assert mount in client.list_mounts(uuid, raw=True)
    mount_point = Path(mount.partition("|")[2])
    found = lab.server.as_user("cat", str(mount_point / "from here"))
    assert found == "read over there"
    assert client.share_local_folder(folder_name=str(other), profile_name=PROFILE)
    assert client.unshare_local_folder(uuid, local_path=str(other))
    assert client.get_shared_folders(uuid) == folders
    assert client.unshare_all_local_folders(uuid)
    assert client.get_shared_folders(uuid) == []


def test_folders_are_unshared_by_their_other_names(
    client: ToldClient, uuid: str, lab: Lab
) -> None:
    unsharing = (
        client.unshare_local_folder_from_session,
        client.unshare_local_folder_from_profile,
    )
    for unshare in unsharing:
        assert client.share_local_folder(uuid, str(lab.share))
        assert unshare(profile_name=PROFILE, local_path=str(lab.share))
    for unshare_all in (
        client.unshare_all_local_folders_from_session,
        client.unshare_all_local_folders_from_profile,
    ):
        assert client.share_local_folder(uuid, str(lab.share))
        assert unshare_all(profile_name=PROFILE)
        assert client.get_shared_folders(uuid) == []


def test_a_folder_that_is_not_there_is_told_to_a_hook(
    client: ToldClient, uuid: str, name: str
) -> None:
    assert client.share_local_folder(uuid, "/no/such/folder") is False
    told = client.wait_hook("HOOK_foldersharing_not_available")
    assert told == {"profile_name": PROFILE, "session_name": name}
    assert client.unshare_local_folder(uuid, local_path="/no/such/folder") is False


def test_the_session_with_the_folders_is_the_master(
    client: ToldClient, uuid: str, name: str
) -> None:
    session = client.get_session(uuid)
    assert client.get_master_session(PROFILE) is session
    assert client.profile_master_session(PROFILE, return_object=False) == uuid
    named = client.get_master_session(
        PROFILE, return_object=False, return_session_name=True
    )
    assert named == name
    assert client.get_master_session("Other") is None


# Files of the client.


def test_the_client_says_where_its_files_are(client: ToldClient, lab: Lab) -> None:
    assert client.get_client_rootdir() == lab.folders["client_rootdir"]
    assert client.get_sessions_rootdir() == lab.folders["sessions_rootdir"]
    assert client.get_ssh_rootdir() == lab.folders["ssh_rootdir"]
    assert client.get_client_username() == getpass.getuser()
    assert client.has_custom_client_rootdir


def test_the_client_gives_out_its_files(client: ToldClient) -> None:
    profiles = client.get_profiles()
    assert isinstance(profiles, SessionProfiles)
    assert client.get_session_profiles() is profiles
    assert isinstance(client.get_client_settings(), ClientSettings)
    assert isinstance(client.get_client_printing(), PrintingFile)


def test_profiles_are_read_and_written(
    client: ToldClient, lab: Lab, profile_id: str
) -> None:
    assert client.profile_names == [PROFILE, "Other"]
    assert client.is_session_profile(PROFILE)
    assert client.is_session_profile(profile_id)
    assert not client.is_session_profile("none of them")
    assert client.to_profile_name(profile_id) == PROFILE
    assert client.get_profile_config("Other", "host") == ["other.example.org"]
    assert client.with_profile_config(profile_id)["command"] == "xclock"
    assert client.get_profile_metatype("Other") == "XFCE Desktop"
    assert client.set_profile_config("Other", "sshport", 2222) is True
    assert SessionProfiles(lab.folder / "config").get("Other", "sshport") == 2222
    with pytest.raises(x2go.X2GoProfileException, match="no profile"):
        client.get_profile_config("none of them")
    with pytest.raises(x2go.X2GoProfileException, match="sshport"):
        client.set_profile_config("Other", "sshport", 0)


def test_all_profiles_are_registered_by_name(client: ToldClient) -> None:
    found = client.register_all_session_profiles(return_objects=True)
    assert list(found) == [PROFILE, "Other"]
    assert found["Other"].profile_name == "Other"
    # The connection is that of the profile.
    assert client.is_session_connected(found[PROFILE].uuid)
    assert not client.is_session_connected(found["Other"].uuid)
