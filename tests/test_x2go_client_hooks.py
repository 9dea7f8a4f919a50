"""HOOKs of python-x2go's client: which is called when, where, and what it may do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import x2go_session as x2go
from tests.support.x2go import PATIENCE_S, Display, X2goServer, wait_until
from tests.support.x2go_client import print_document
from tests.support.x2go_programs import HOOKS, PROFILE, Lab, ToldClient, in_lab
from x2go_session import events
from x2go_session.events import Event, Question
from x2go_session.services.print_actions import PdfSave

pytestmark = pytest.mark.timeout(300)
NAME = "somebody-50-1795190498_stRTERMINAL_dp24"
PATH = Path("file")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[ToldClient]:
    folders = {name: str(tmp_path) for name in ("client_rootdir", "sessions_rootdir")}
    with ToldClient(**folders) as made:
        yield made


@pytest.fixture
def session(client: ToldClient) -> x2go.X2GoSession:
    found = client.register_session("server", profile_name=PROFILE, return_object=True)
    assert isinstance(found, x2go.X2GoSession)
    return found


STARTED = {"session": NAME, "display": 50, "ports": {}}
BOTH = {"profile_name": PROFILE, "session_name": NAME}
ONE = {"profile_name": PROFILE}
# What happened, the HOOKs that are told, and what else than the session they are told.
TOLD: list[tuple[Event, str, dict[str, object]]] = [
    (events.SessionFound(session=NAME),
     "HOOK_on_found_session_running_after_connect", BOTH),
    (events.SessionStarted(**STARTED), "HOOK_on_session_has_started_by_me", BOTH),
    (events.SessionResumed(**STARTED), "HOOK_on_session_has_resumed_by_me", BOTH),
    (events.SessionStartedElsewhere(session=NAME),
     "HOOK_on_session_has_started_by_other", BOTH),
    (events.SessionTakenOver(session=NAME),
     "HOOK_on_session_has_resumed_by_other", BOTH),
    (events.SessionSuspended(session=NAME, by_us=True),
     "HOOK_on_session_has_been_suspended", BOTH),
    (events.SessionTerminated(session=NAME, by_us=True),
     "HOOK_on_session_has_terminated", BOTH),
    (events.SessionFailed(session=NAME, reason=""),
     "HOOK_session_startup_failed", ONE),
    (events.ConnectionDied(session=NAME, reason=""),
     "HOOK_on_control_session_death", ONE),
    (events.LoginWanted(), "HOOK_profile_auto_connect", ONE),
    (events.BrokerUnreachable(reason=""), "HOOK_broker_connection_exception", ONE),
    (events.DesktopSharingDenied(desktop="a@:1"),
     "HOOK_desktop_sharing_denied", ONE),
    (events.DesktopListLate(), "HOOK_list_desktops_timeout", ONE),
    (events.DesktopMissing(desktop="a@:1"), "HOOK_no_such_desktop",
     {**ONE, "desktop": "a@:1"}),
    (events.CommandMissing(session=NAME, command="x"), "HOOK_no_such_command",
     {**BOTH, "cmd": "x"}),
    (events.FilesRefused(session=NAME, reason=""),
     "HOOK_on_failing_SFTP_client", BOTH),
    (events.GraphicsFailed(session=NAME, host="h", port=1, subsystem="s", reason=""),
     "HOOK_forwarding_tunnel_setup_failed",
     {**BOTH, "chain_host": "h", "chain_port": 1, "subsystem": "s"}),
    (events.ForwardRefused(session=NAME, service="sound", port=1, reason=""),
     "HOOK_rforward_request_denied", {**BOTH, "server_port": 1}),
    (events.ServiceFailed(session=NAME, service="sound", reason=""),
     "HOOK_on_sound_tunnel_failed", BOTH),
    (events.ServiceFailed(session=NAME, service="sharing", reason=""),
     "HOOK_sshfs_not_available", BOTH),
    (events.ServiceFailed(session=NAME, service="printing", reason=""),
     "HOOK_printing_not_available", BOTH),
    (events.ServiceFailed(session=NAME, service="mimebox", reason=""),
     "HOOK_mimebox_not_available", BOTH),
    (events.FolderNotShared(session=NAME, folder=PATH, reason=""),
     "HOOK_foldersharing_not_available", BOTH),
    (events.PrintJobFailed(session=NAME, title="t", action="PRINT", reason="r"),
     "HOOK_printaction_error", {**BOTH, "filename": "t", "err_msg": "r"}),
]  # fmt: skip
# A question, its HOOK, what that is told, what it answers, and what arrives.
HOST_KEY = {"host": "[h]:2222", "key_type": "ED25519", "fingerprint": "SHA256:x"}
ASKED: list[tuple[Question[object], str, dict[str, object], object, object]] = [
    (events.HostKeyQuestion(**HOST_KEY), "HOOK_check_host_dialog",
     {**ONE, "host": "h", "port": 2222, "fingerprint": "SHA256:x",
      "fingerprint_type": "ED25519"}, 1, True),
    (events.BrokerQuestion(is_connected=True),
     "HOOK_broker_ignore_connection_problems",
     {**ONE, "is_profile_connected": True}, True, True),
    (events.PrintQuestion(session=NAME, file=PATH, title="t"),
     "HOOK_open_print_dialog", BOTH, "PRINT", "PRINT"),
    (events.SaveAsQuestion(session=NAME, file=PATH),
     "HOOK_open_mimebox_saveas_dialog", {**BOTH, "filename": "file"},
     "/there", Path("/there")),
]  # fmt: skip


@pytest.mark.parametrize(("event", "hook", "told"), TOLD)
def test_a_hook_is_told_what_happened(
    client: ToldClient,
    session: x2go.X2GoSession,
    event: Event,
    hook: str,
    told: dict[str, object],
) -> None:
    session.events.emit(event)
    arguments = client.wait_hook(hook)
    assert arguments.pop("session_uuid", session.uuid) == session.uuid
    assert arguments == told
    assert client.threads == {"x2go-hooks"}


@pytest.mark.parametrize(("question", "hook", "told", "said", "answer"), ASKED)
def test_a_hook_is_asked_and_its_answer_holds(
    client: ToldClient,
    session: x2go.X2GoSession,
    question: Question[object],
    hook: str,
    told: dict[str, object],
    said: object,
    answer: object,
) -> None:
    client.answers[hook] = said
    assert session.events.ask(question, None) == answer
    assert client.hooks(hook) == [told]


@pytest.mark.parametrize(("question", "default"), [
    (events.HostKeyQuestion(**HOST_KEY), False),
    (events.PrintQuestion(file=PATH, title="t"), "PDFSAVE"),
    (events.SaveAsQuestion(file=PATH), None),
])  # fmt: skip
def test_a_hook_that_raises_answers_what_loses_nothing(
    client: ToldClient,
    session: x2go.X2GoSession,
    question: Question[object],
    default: object,
) -> None:
    for hook in HOOKS:
        client.answers[hook] = RuntimeError("on purpose")
    assert session.events.ask(question, "nobody answered") == default


def test_every_hook_that_is_called_at_all_is_in_these_tables() -> None:
    called = {row[1] for row in TOLD} | {row[1] for row in ASKED}
    windows = {name for name in HOOKS if "xserver" in name or "pulseaudio" in name}
    assert called | windows == set(HOOKS)


def test_a_hook_that_raises_delays_no_other(
    client: ToldClient, session: x2go.X2GoSession
) -> None:
    client.answers["HOOK_no_such_command"] = RuntimeError("on purpose")
    session.events.emit(events.CommandMissing(command="x"))
    session.events.emit(events.DesktopListLate())
    client.wait_hook("HOOK_list_desktops_timeout")
    assert client.hooks("HOOK_no_such_command")


def test_a_question_is_answered_while_another_hook_is_busy(
    client: ToldClient, session: x2go.X2GoSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def connects(profile_name: str) -> None:
        """What an application may do there: what it does asks a question."""
        question = events.HostKeyQuestion(**HOST_KEY)
        assert session.events.ask(question, False) is True
        done.set()

    monkeypatch.setattr(client, "HOOK_profile_auto_connect", connects)
    session.events.emit(events.LoginWanted())
    assert done.wait(PATIENCE_S)


def test_hooks_that_nobody_overrides_do_no_harm(tmp_path: Path) -> None:
    with x2go.X2GoClient(client_rootdir=str(tmp_path)) as client:
        session = client.register_session("server", return_object=True)
        for event, *_ in TOLD:
            session.events.emit(event)
        answers = [session.events.ask(row[0], "nobody") for row in ASKED]
    assert answers == [True, False, "PDFSAVE", None]


# With the real server.


@pytest.fixture(scope="module")
def lab(
    x2go_server: X2goServer,
    client_display: Display,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    yield from in_lab(x2go_server, client_display, tmp_path_factory.mktemp("hooks"))


def test_what_other_clients_do_is_noticed_by_itself(lab: Lab) -> None:
    with (
        lab.client() as other,
        lab.client(
            use_listsessions_cache=True,
            auto_update_listsessions_cache=True,
            auto_update_listdesktops_cache=True,
            auto_update_listmounts_cache=True,
            auto_update_sessionregistry=True,
            auto_register_sessions=True,
            refresh_interval=0.5,
        ) as client,
    ):
        theirs = other.register_session(profile_name=PROFILE)
        other.connect_session(theirs)
        assert other.start_session(theirs)
        name = other.get_session_name(theirs)
        uuid = client.register_session(profile_name=PROFILE)
        client.connect_session(uuid)
        told = client.wait_hook("HOOK_on_found_session_running_after_connect")
        assert told["session_name"] == name
        # What is listed may be from before, and is soon renewed.
        assert name in client.list_sessions(uuid)
        assert other.suspend_session(theirs)
        client.wait_hook("HOOK_on_session_has_been_suspended")
        assert other.resume_session(theirs)
        client.wait_hook("HOOK_on_session_has_resumed_by_other")
        second = other.register_session(profile_name=PROFILE)
        assert other.start_session(second)
        client.wait_hook("HOOK_on_session_has_started_by_other")
        assert other.clean_sessions(theirs)
        client.wait_hook("HOOK_on_session_has_terminated", 2)
        assert client.list_sessions(uuid) == {}


def test_a_hook_may_block_and_the_session_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    def blocks(**_: object) -> None:
        blocked.set()
        go_on.wait(PATIENCE_S)

    with lab.client() as client:
        monkeypatch.setattr(client, "HOOK_on_session_has_started_by_me", blocks)
        uuid = client.register_session(profile_name=PROFILE, printing=True)
        client.connect_session(uuid)
        assert client.start_session(uuid)
        assert blocked.wait(PATIENCE_S)
        client.set_session_print_action(uuid, "PDFSAVE", save_to_folder="prints")
        with pytest.raises(x2go.X2GoPrintActionException, match="PDFVIEW"):
            client.set_session_print_action(uuid, "BURN")
        assert client.terminate_session(uuid)
        go_on.set()
        client.wait_hook("HOOK_on_session_has_terminated")


def test_dialogs_of_printing_and_mime_box_are_hooks(lab: Lab) -> None:
    saved = lab.folder / "saved"
    with lab.client() as client:
        uuid = client.register_session(
            profile_name=PROFILE,
            printing=True,
            print_action="DIALOG",
            allow_mimebox=True,
            mimebox_action="SAVEAS",
        )
        client.answers |= {
            "HOOK_open_print_dialog": PdfSave(str(lab.folder)),
            "HOOK_open_mimebox_saveas_dialog": str(saved),
        }
        client.connect_session(uuid)
        assert client.start_session(uuid)
        name = client.get_session_name(uuid)
        assert name is not None
        print_document(lab.server, name, "letter")
        client.wait_hook("HOOK_open_print_dialog")
        wait_until((lab.folder / "letter.pdf").exists, PATIENCE_S)
        box = f".x2go/C-{name}/mimebox"
        lab.server.as_user("sh", "-c", f"echo from there >{box}/note.txt")
        asked = client.wait_hook("HOOK_open_mimebox_saveas_dialog")
        assert asked["filename"].endswith("note.txt")
        wait_until(saved.exists, PATIENCE_S)
        wait_until(lambda: saved.read_text() == "from there\n", PATIENCE_S)
        assert client.terminate_session(uuid)


def test_no_thread_of_a_client_is_left(lab: Lab) -> None:
    before = set(threading.enumerate())
    with lab.client(auto_update_sessionregistry=True, refresh_interval=0.1) as client:
        uuid = client.register_session(profile_name=PROFILE)
        client.connect_session(uuid)
        assert set(threading.enumerate()) > before
    wait_until(lambda: set(threading.enumerate()) <= before, PATIENCE_S)
