"""`x2go-session broker list`, `select`, `test` and `setpass`, as a shell runs them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from rtunnel import KeyPair
from tests.support.command import ROOT
from tests.support.ports import free_port
from tests.support.scripted_broker import ScriptedBroker, answer
from tests.support.sshd import Sshd
from x2go_session.cli.exit_status import ExitStatus

TIMEOUT_S = 60.0
LISTED = """\
Access granted
START_USER_SESSIONS
[office]
name=Office
host=a.example.org,b.example.org
rootless=0
command=XFCE
[broken]
name=Broken
sshport=ssh
END_USER_SESSIONS
"""
NAME = "me-50-1795190498_stRTERMINAL_dp24"
INFO = f"14143|{NAME}|50|vm|S|||127.0.0.1|31824|31825||me|1|31826|-1|-1"


def broker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `x2go-session broker`, with nobody to ask."""
    return subprocess.run(
        [sys.executable, "-m", "x2go_session", "broker", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == ExitStatus.ENDED, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def secret(folder: Path, text: str = "secret") -> str:
    path = folder / text
    path.write_text(f"{text}\n")
    return str(path)


def test_profiles_are_listed(tmp_path: Path) -> None:
    with ScriptedBroker(answer(LISTED)) as peer:
        given = ("--broker-url", peer.url(), "--password-file", secret(tmp_path))
        done = broker("list", *given)
        assert done.stdout == (
            "office  'Office'  XFCE Desktop, on a.example.org, b.example.org\n"
        )
        assert "left out: profile broken, sshport" in done.stderr
        assert rows(broker("list", "--json", *given)) == [
            {
                "profile": "office",
                "name": "Office",
                "type": "XFCE Desktop",
                "command": "XFCE",
                "hosts": ["a.example.org", "b.example.org"],
            }
        ]
    assert "password=secret" in peer.asked[0].body


def test_a_server_is_selected_with_a_key_and_a_session(tmp_path: Path) -> None:
    key = KeyPair.generate().private_text
    text = f"Access granted\nSERVER:a.example.org:2222\n{key}SESSION_INFO:{INFO}\n"
    path = tmp_path / "key"
    with ScriptedBroker(answer(text)) as peer:
        given = ("select", "--broker-url", peer.url(), "office")
        done = broker(*given, "--key-file", str(path), "--login", "you")
        assert done.stdout == (
            f"server: a.example.org port 2222\nkey: {path}\nto resume: {NAME}\n"
        )
        assert path.read_text() == key
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = broker(*given, "--key-file", str(path))
        assert again.returncode == ExitStatus.CONFIGURATION
        assert "File exists" in again.stderr
        assert rows(broker(*given, "--json")) == [
            {
                "server": "a.example.org",
                "port": 2222,
                "key_file": None,
                "session": NAME,
            }
        ]
    assert "login=you" in peer.asked[0].body


def test_a_broker_is_tested_and_each_failure_has_its_status(tmp_path: Path) -> None:
    with ScriptedBroker(answer("OK"), answer("", "401 Unauthorized")) as peer:
        done = broker("test", "--broker-url", peer.url())
        shown = peer.url().replace("me@", "")
        assert done.stdout == f"the broker works: {shown}, for me\n"
        denied = broker("test", "--broker-url", peer.url())
        assert denied.returncode == ExitStatus.AUTHENTICATION
    nobody = broker("test", "--broker-url", f"http://127.0.0.1:{free_port()}/plain/")
    assert nobody.returncode == ExitStatus.CONNECTION_FAILED
    wrong = broker("test", "--broker-url", "gopher://u:secret@h/")
    assert wrong.returncode == ExitStatus.USAGE
    assert "secret" not in wrong.stderr


def test_a_password_in_the_url_works_and_is_warned_of() -> None:
    with ScriptedBroker(answer("OK")) as peer:
        done = broker("test", "--broker-url", peer.url().replace("me@", "me:secret@"))
    assert done.returncode == ExitStatus.ENDED
    assert "use --password-file" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert "password=secret" in peer.asked[0].body


def test_a_password_is_changed(tmp_path: Path) -> None:
    new = secret(tmp_path, "newer")
    with ScriptedBroker(answer("Access granted\n")) as peer:
        given = ("setpass", "--broker-url", peer.url())
        given = (*given, "--password-file", secret(tmp_path))
        done = broker(*given, "--new-password-file", new)
        assert done.stdout == "the broker took the new password of me\n"
        assert "newpass=newer" in peer.asked[0].body
        nobody = broker(*given)
        assert nobody.returncode == ExitStatus.USAGE
        assert "--new-password-file" in nobody.stderr
        (tmp_path / "empty").write_text("\n")
        empty = broker(*given, "--new-password-file", str(tmp_path / "empty"))
        assert empty.returncode == ExitStatus.USAGE
        missing = broker(*given, "--new-password-file", str(tmp_path / "missing"))
        assert missing.returncode == ExitStatus.CONFIGURATION
    assert len(peer.asked) == 1


def test_a_broker_behind_ssh_is_asked_with_the_flags_of_ssh(
    sshd: Sshd, tmp_path: Path
) -> None:
    program = tmp_path / "broker"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    program.chmod(0o755)
    given = ("--broker-url", f"ssh://{sshd.user}@127.0.0.1:{sshd.port}{program}")
    login = ("-F", "none", "-i", str(sshd.user_key))
    known = ("-o", f"UserKnownHostsFile={sshd.known_hosts}")
    done = broker("list", *given, *login, *known)
    assert done.stdout.startswith("office  'Office'"), done.stderr
    unknown = broker("list", *given, *login, "-o", "UserKnownHostsFile=none")
    assert unknown.returncode == ExitStatus.HOST_KEY
