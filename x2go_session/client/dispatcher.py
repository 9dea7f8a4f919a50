"""Calls the HOOK methods of a client: the one place that does.

Subscribed to the events of every session. What is told goes through one queue to one
thread, in order; so a HOOK may block, or call the client, and delays nobody but later
HOOKs. What is asked gets a thread of its own: a HOOK that connects may be the cause of
a question about a host key, which then is answered while it waits.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from x2go_session import events
from x2go_session.registry import RegisteredSession

log = logging.getLogger("x2go_session.client.hooks")

Call = tuple[str, dict[str, Any]]
SSH_PORT: Final = 22
# As known_hosts has a host whose port is not 22.
_HOST_AND_PORT: Final = re.compile(r"\[(?P<host>[^]]+)\]:(?P<port>\d+)")
_STATES: Final[dict[type[events.Event], str]] = {
    events.SessionFound: "HOOK_on_found_session_running_after_connect",
    events.SessionStarted: "HOOK_on_session_has_started_by_me",
    events.SessionResumed: "HOOK_on_session_has_resumed_by_me",
    events.SessionStartedElsewhere: "HOOK_on_session_has_started_by_other",
    events.SessionTakenOver: "HOOK_on_session_has_resumed_by_other",
    events.SessionSuspended: "HOOK_on_session_has_been_suspended",
    events.SessionTerminated: "HOOK_on_session_has_terminated",
}
_SERVICES: Final = {
    "sound": ("HOOK_on_sound_tunnel_failed",),
    "sharing": ("HOOK_sshfs_not_available", "HOOK_foldersharing_not_available"),
    "printing": ("HOOK_printing_not_available",),
    "mimebox": ("HOOK_mimebox_not_available",),
}
_PROFILES: Final[dict[type[events.Event], str]] = {
    events.LoginWanted: "HOOK_profile_auto_connect",
    events.ConnectionDied: "HOOK_on_control_session_death",
    events.SessionFailed: "HOOK_session_startup_failed",
    events.DesktopSharingDenied: "HOOK_desktop_sharing_denied",
    events.DesktopListLate: "HOOK_list_desktops_timeout",
    events.BrokerUnreachable: "HOOK_broker_connection_exception",
}
# What holds where the HOOK that is asked raises.
_DEFAULTS: Final[dict[type[events.Event], Any]] = {
    events.HostKeyQuestion: False,
    events.BrokerQuestion: False,
    events.PrintQuestion: "PDFSAVE",
    events.SaveAsQuestion: None,
}


class Dispatcher:
    """Calls HOOKs of `client` for what happens to the sessions that it watches."""

    def __init__(self, client: object) -> None:
        self._client = client
        self._waiting: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, session: RegisteredSession) -> None:
        """Call HOOKs for this session from now on."""
        session.events.subscribe(lambda event: self._take(session, event))

    def close(self) -> None:
        """Call none any more, after those that wait. Blocks, unless a HOOK calls it."""
        with self._starting:
            thread = self._thread
        if thread is not None:
            self._waiting.put(None)
            if thread is not threading.current_thread():
                thread.join()

    def _take(self, session: RegisteredSession, event: events.Event) -> None:
        if isinstance(event, events.Question):
            threading.Thread(
                target=self._answer, args=(session, event), name="x2go-question",
                daemon=True,
            ).start()  # fmt: skip
            return
        for call in calls(session, event):
            self._waiting.put(call)
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="x2go-hooks", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while (call := self._waiting.get()) is not None:
            self._call(call, None)

    def _answer(
        self, session: RegisteredSession, question: events.Question[Any]
    ) -> None:
        default = _DEFAULTS.get(type(question))
        for call in calls(session, question):
            question.answer(self._call(call, default))

    def _call(self, call: Call, default: Any) -> Any:
        name, arguments = call
        hook: Callable[..., Any] = getattr(self._client, name)
        try:
            answer = hook(**arguments)
        except Exception:
            log.exception("a HOOK failed: name=%s", name)
            return default
        if name == "HOOK_open_mimebox_saveas_dialog":
            return None if answer is None else Path(answer)
        return bool(answer) if default is False else answer


def calls(session: RegisteredSession, event: events.Event) -> Iterator[Call]:
    """Yield what is to be called for an event. Pure."""
    profile = {"profile_name": session.profile_name}
    both = {**profile, "session_name": event.session or session.name}
    if hook := _STATES.get(type(event)):
        yield hook, {**both, "session_uuid": session.uuid}
    if hook := _PROFILES.get(type(event)):
        yield hook, profile
    match event:
        case events.HostKeyQuestion():
            found = _HOST_AND_PORT.fullmatch(event.host)
            yield (
                "HOOK_check_host_dialog",
                {
                    **profile,
                    "host": found["host"] if found else event.host,
                    "port": int(found["port"]) if found else SSH_PORT,
                    "fingerprint": event.fingerprint,
                    "fingerprint_type": event.key_type,
                },
            )
        case events.BrokerQuestion():
            yield (
                "HOOK_broker_ignore_connection_problems",
                {
                    **profile,
                    "is_profile_connected": event.is_connected,
                },
            )
        case events.PrintQuestion():
            yield "HOOK_open_print_dialog", both
        case events.SaveAsQuestion():
            yield (
                "HOOK_open_mimebox_saveas_dialog",
                {
                    **both,
                    "filename": str(event.file),
                },
            )
        case events.CommandMissing():
            yield "HOOK_no_such_command", {**both, "cmd": event.command}
        case events.DesktopMissing():
            yield "HOOK_no_such_desktop", {**profile, "desktop": event.desktop}
        case events.FilesRefused():
            yield "HOOK_on_failing_SFTP_client", both
        case events.GraphicsFailed():
            yield (
                "HOOK_forwarding_tunnel_setup_failed",
                {
                    **both,
                    "chain_host": event.host,
                    "chain_port": event.port,
                    "subsystem": event.subsystem,
                },
            )
        case events.ForwardRefused():
            yield "HOOK_rforward_request_denied", {**both, "server_port": event.port}
        case events.ServiceFailed():
            for hook in _SERVICES.get(event.service, ()):
                yield hook, both
        case events.FolderNotShared():
            yield "HOOK_foldersharing_not_available", both
        case events.PrintJobFailed():
            yield (
                "HOOK_printaction_error",
                {
                    **both,
                    "filename": event.title,
                    "err_msg": event.reason,
                },
            )
