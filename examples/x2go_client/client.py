#!/usr/bin/env python3
"""A small X2Go client for the command line, written for python-x2go's API.

    client.py SERVER [--port N] [--user NAME] [--key FILE] [--command CMD]

It uses documented names of python-x2go's `X2GoClient` and nothing else: with
`import x2go` in the place of the import below it is a program for python-x2go.

Starts a session, suspends and resumes it, and terminates it; says what happens.
"""

import argparse
import getpass
import sys
import threading

import x2go_session as x2go

WAIT_S = 60.0


class Client(x2go.X2GoClient):
    """Says what happens to its sessions."""

    def __init__(self, *args, **kwargs):
        self.happened = {}
        super().__init__(*args, **kwargs)

    def HOOK_check_host_dialog(
        self,
        profile_name="UNKNOWN",
        host="UNKNOWN",
        port=22,
        fingerprint="no fingerprint",
        fingerprint_type="UNKNOWN",
    ):
        print(f"unknown host key: {host}:{port} {fingerprint_type} {fingerprint}")
        return False

    def HOOK_on_session_has_started_by_me(self, **session):
        self._say("started", **session)

    def HOOK_on_session_has_been_suspended(self, **session):
        self._say("suspended", **session)

    def HOOK_on_session_has_resumed_by_me(self, **session):
        self._say("resumed", **session)

    def HOOK_on_session_has_terminated(self, **session):
        self._say("terminated", **session)

    def HOOK_no_such_command(self, cmd, profile_name="UNKNOWN", session_name="UNKNOWN"):
        print(f"the server has no {cmd}")

    def wait_for(self, what):
        """Wait until something happened to the session."""
        if not self._event(what).wait(WAIT_S):
            sys.exit(f"the session has not {what}")

    def _say(self, what, session_uuid, profile_name, session_name):
        print(f"{what}: {session_name}")
        self._event(what).set()

    def _event(self, what):
        return self.happened.setdefault(what, threading.Event())


def main():
    parser = argparse.ArgumentParser(description="start, suspend, resume, terminate")
    parser.add_argument("server")
    parser.add_argument("--port", type=int, default=22)
    parser.add_argument("--user", default=getpass.getuser())
    parser.add_argument("--key")
    parser.add_argument("--command", default="TERMINAL")
    parser.add_argument("--geometry", default="800x600")
    parser.add_argument("--sessions", help="where sessions have their files")
    parser.add_argument("--ssh", help="in the place of ~/.ssh")
    options = parser.parse_args()

    client = Client(sessions_rootdir=options.sessions, ssh_rootdir=options.ssh)
    session = client.register_session(
        options.server,
        port=options.port,
        username=options.user,
        key_filename=options.key,
        look_for_keys=options.key is None,
        cmd=options.command,
        session_type="application",
        geometry=options.geometry,
        snd_system="none",
        profile_name="example",
    )
    try:
        client.connect_session(session)
    except x2go.X2GoHostKeyException as error:
        sys.exit(f"{error}")
    print("features:", " ".join(client.get_server_features("example")))
    for name, info in client.list_sessions(session).items():
        print(f"there is: {name} {info.status}")

    if not client.start_session(session):
        sys.exit("the session did not start")
    client.wait_for("started")
    client.suspend_session(session)
    client.wait_for("suspended")
    client.resume_session(session)
    client.wait_for("resumed")
    print("runs:", client.is_session_running(session))
    client.terminate_session(session)
    client.wait_for("terminated")
    print("sessions left:", len(client.list_sessions(session)))
    client.disconnect_session(session)


if __name__ == "__main__":
    main()
