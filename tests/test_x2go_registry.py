"""The parts of the session registry that need no server."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support.x2go import PATIENCE_S
from x2go_session import events
from x2go_session.errors import NotConnected, NotRegistered, NotSupported, ProfileError
from x2go_session.profiles import Profile, session_parameters
from x2go_session.registry import RegisteredSession, Registry, Wish, wish_of
from x2go_session.registry.desktops import without_own_of_types
from x2go_session.registry.lists import Kept
from x2go_session.registry.master import Mastership
from x2go_session.registry.session import Status
from x2go_session.replies import Desktop, SessionInfo, sessions
from x2go_session.session import SessionType

NAME = "me-50-1795190498_stRTERMINAL_dp24"
LINE = f"1|{NAME}|50|vm|{{}}|2026-11-20T16:01:39|{'0' * 32}|::1|1|2||me|5|3|-1|-1"


def listed(status: str) -> dict[str, SessionInfo]:
    """What a server lists that has the session in this state; "" for none."""
    found = sessions([LINE.format(status)]) if status else []
    return {info.name: info for info in found}


# Wishes.


def test_the_parameters_of_a_profile_make_the_same_profile_again() -> None:
    profile = Profile(
        id="1",
        name="Office",
        host=("a", "b"),
        user="me",
        command="XFCE",
        rootless=False,
        sound=True,
        soundsystem="esd",
        export={"/there": True},
        usemimebox=True,
        mimeboxextensions="PDF,TXT",
        usesshproxy=True,
        sshproxyhost="proxy",
        defsndport=False,
    )
    again = wish_of(Profile(id="1", name="Office"), session_parameters(profile))
    names = ("host", "user", "command", "rootless", "sound", "soundsystem", "export",
             "usemimebox", "mimeboxextensions", "usesshproxy", "sshproxyhost",
             "sndport")  # fmt: skip
    for name in names:
        assert getattr(again.profile, name) == getattr(profile, name), name
    assert again.session_options() == Wish(profile=profile).session_options()


def test_parameters_are_on_top_of_a_profile() -> None:
    profile = Profile(id="1", user="me", host=("server",))
    wish = wish_of(profile, {"geometry": "400x300+5+6", "depth": 16, "port": 2222,
                             "add_to_known_hosts": True, "kblayout": "null",
                             "allow_agent": None, "logger": object()})  # fmt: skip
    options = wish.session_options()
    assert (options.geometry, options.depth) == ("400x300+5+6", 16)
    assert options.keyboard_layout == ""
    assert wish.profile.sshport == 2222
    assert wish.connect == {"host_key_policy": "accept-new"}


@pytest.mark.parametrize(("parameters", "said"), [
    ({"session_type": "window"}, "application"),
    ({"snd_system": "drums"}, "pulse"),
    ({"port": 0}, "sshport"),
])  # fmt: skip
def test_a_parameter_that_makes_no_sense_is_refused(
    parameters: dict[str, object], said: str
) -> None:
    with pytest.raises(ProfileError, match=said):
        wish_of(Profile(), parameters)


def test_options_that_the_server_would_not_take_name_their_profile() -> None:
    with pytest.raises(ProfileError, match=r"Office.*geometry"):
        wish_of(Profile(name="Office"), {"geometry": "big"}).session_options()


def test_keys_that_are_no_files_are_not_supported() -> None:
    with pytest.raises(NotSupported, match="key_filename"):
        wish_of(Profile(), {"pkey": object()})


def test_a_parameter_that_nobody_knows_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wish_of(Profile(), {"colour_of_sky": "blue"})
    assert "colour_of_sky" in caplog.text


def test_no_secret_of_a_wish_is_shown() -> None:
    wish = wish_of(Profile(), {"password": "sweet", "sshproxy_password": "sour"})
    assert (wish.password, wish.proxy_password) == ("sweet", "sour")
    assert "sweet" not in repr(wish)
    assert "sour" not in repr(wish)


# What becomes of sessions.


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def session(registry: Registry) -> RegisteredSession:
    return registry.register(Wish(profile=Profile(id="1", name="Office")), NAME)


@pytest.mark.parametrize(("states", "told"), [
    ("R", [events.SessionStartedElsewhere]),
    ("RR", [events.SessionStartedElsewhere]),
    ("S", [events.SessionSuspended]),
    ("SR", [events.SessionSuspended, events.SessionTakenOver]),
    ("RSS", [events.SessionStartedElsewhere, events.SessionSuspended]),
    ("R-", [events.SessionStartedElsewhere, events.SessionTerminated]),
    ("S--", [events.SessionSuspended, events.SessionTerminated]),
    ("-", []),
])  # fmt: skip
def test_what_a_server_lists_tells_what_other_clients_did(
    registry: Registry, session: RegisteredSession, states: str, told: list[type]
) -> None:
    with session.events.recorded() as recorded:
        for state in states:
            registry.update(session, listed(state.strip("-")).values())
    found = []
    while not recorded.empty():
        found.append(type(recorded.get()))
    assert found == told


def test_a_session_that_runs_at_first_is_found_not_started(
    registry: Registry, session: RegisteredSession
) -> None:
    with session.events.recorded() as recorded:
        registry.update(session, listed("R").values(), at_first=True)
    assert type(recorded.get()) is events.SessionFound
    assert session.status is Status.RUNNING


def test_a_list_from_before_changes_nothing(session: RegisteredSession) -> None:
    session.events.emit(events.SessionSuspended(session=NAME, by_us=True))
    session.update(listed("R"), asked_at=0.0, at_first=False)
    assert session.is_suspended


def test_what_a_server_lists_is_adopted_once(
    registry: Registry, session: RegisteredSession
) -> None:
    published = LINE.replace("-50-", "-51-").replace("TERMINAL", "PUBLISHED")
    infos = sessions([LINE.format("R"), published.format("R")])
    assert registry.adopt(session, infos, with_published=False) == []
    (new,) = registry.adopt(session, infos)
    assert new.is_published
    assert new.is_running
    assert new.connection is session.connection
    assert registry.adopt(session, infos) == []


def test_sessions_are_found(registry: Registry, session: RegisteredSession) -> None:
    other = registry.register(Wish(profile=Profile(id="2", name="Lab")), NAME)
    assert registry.sessions() == [session, other]
    assert registry.of_profile("Lab") == [other]
    assert registry.of_name(NAME, "Office") is session
    assert registry.of_name(NAME) is other
    assert registry.connected() == []
    assert registry.master("Office") is None
    registry.forget(other)
    with pytest.raises(NotRegistered, match=other.uuid):
        registry[other.uuid]
    with pytest.raises(NotConnected, match="connect"):
        session.start()


# Lists, desktops, folders.


def test_what_is_known_is_not_asked_again_unless_it_shall_be_fresh() -> None:
    answers = iter(["first", "second"])
    kept: Kept[str] = Kept()
    assert not kept.is_known
    assert kept.get(lambda: next(answers)) == "first"
    assert kept.get(lambda: next(answers)) == "first"
    assert kept.get(lambda: next(answers), fresh=True) == "second"


def test_an_answer_that_does_not_come_leaves_what_was_known() -> None:
    def fails() -> str:
        raise ProfileError("on purpose")

    kept: Kept[str] = Kept()
    kept.get(lambda: "known")
    with pytest.raises(ProfileError):
        kept.get(fails, fresh=True)
    assert kept.get(fails) == "known"


def test_many_who_ask_at_once_get_one_answer() -> None:
    kept: Kept[int] = Kept()
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        return len(asked)

    threads = [threading.Thread(target=kept.get, args=(ask,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert asked == [1]


def test_own_desktops_of_a_type_are_left_out_and_those_of_others_are_not() -> None:
    desktops = [Desktop("me", "50.0"), Desktop("me", "77"), Desktop("you", "50")]
    own = sessions([LINE.format("R")])
    assert without_own_of_types(desktops, own, ["R"]) == desktops[1:]
    assert without_own_of_types(desktops, own, ["D"]) == desktops


class Sharer:
    """A session, as far as folders go."""

    is_shown = True
    can_share = True

    def __init__(self, kind: SessionType, *folders: Path) -> None:
        self.kind = kind
        self.shared_folders = list(folders)

    def share(self, folder: Path) -> None:
        self.shared_folders.append(folder)

    def unshare(self, folder: Path) -> None:
        self.shared_folders = [each for each in self.shared_folders if each != folder]


def test_folders_go_with_the_mastership() -> None:
    application = Sharer(SessionType.ROOTLESS, Path("a"), Path("b"))
    desktop = Sharer(SessionType.DESKTOP)
    masters = Mastership()
    masters.take(application)
    assert masters.yields(application.kind, desktop.kind)
    assert not masters.yields(desktop.kind, application.kind)
    masters.take(desktop)
    assert masters.master is desktop
    assert application.shared_folders == []
    assert desktop.shared_folders == [Path("a"), Path("b")]


def test_who_is_not_shown_is_no_master() -> None:
    masters = Mastership()
    session = Sharer(SessionType.DESKTOP)
    masters.take(session)
    session.is_shown = False
    assert masters.master is None
