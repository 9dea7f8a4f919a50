"""The broker's client against brokers that say what the test says, mostly bad."""

from __future__ import annotations

import getpass
import itertools
import json
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

import rtunnel
from rtunnel.errors import ConfigError, InvalidAddress
from tests.support.ports import free_port
from tests.support.scripted_broker import ScriptedBroker, answer
from tests.support.sshd import Sshd
from tests.support.tunnels import Target
from x2go_session.broker import Broker, key_file, open_broker, profile_for
from x2go_session.broker.answers import MOST_ANSWER_BYTES, SelectedSession
from x2go_session.broker.url import BrokerUrl
from x2go_session.errors import BrokerAnswerError, BrokerDenied, BrokerUnreachable
from x2go_session.profiles import Profile

GRANTED = "Access granted\n"
SECRETS = {"password": "pass-word-1", "authid": "auth-id-1"}


def granted(authid: str, more: str = "") -> bytes:
    return answer(f"AUTHID:{authid}\n{GRANTED}{more}")


def in_json(**told: object) -> bytes:
    text = json.dumps({"auth-status": "Access granted", **told})
    return answer(text, kind="text/json; charset=utf-8")


def fields(body: str) -> dict[str, str]:
    return {name: texts[0] for name, texts in parse_qs(body).items()}


# Who is asked what.


def test_the_password_goes_once_and_then_each_authid_in_its_turn() -> None:
    with (
        ScriptedBroker(granted("A"), granted("B"), granted("C")) as peer,
        open_broker(peer.url(), password="secret") as broker,
    ):
        broker.connect()
        broker.list_profiles()
        broker.list_profiles()
    sent = [fields(each.body) for each in peer.asked]
    assert sent == [
        {"user": "me", "password": "secret"},
        {"task": "listsessions", "user": "me", "authid": "A"},
        {"task": "listsessions", "user": "me", "authid": "B"},
    ]
    for each in peer.asked:
        assert each.head.startswith("POST /plain/ HTTP/1.1\r\n")
        assert "secret" not in each.head
        assert "uthorization" not in each.head


def test_an_authid_that_is_taken_no_more_costs_one_login() -> None:
    denied = answer("<html>Unauthorized</html>", "401 Unauthorized")
    with (
        ScriptedBroker(granted("A"), denied, granted("B"), granted("C")) as peer,
        open_broker(peer.url(), password="secret") as broker,
    ):
        broker.connect()
        broker.list_profiles()
    sent = [fields(each.body) for each in peer.asked]
    assert sent[1:] == [
        {"task": "listsessions", "user": "me", "authid": "A"},
        {"task": "listsessions", "user": "me", "password": "secret"},
    ]


def test_an_authid_of_the_operator_goes_with_the_password() -> None:
    with (
        ScriptedBroker(granted("A"), granted("B")) as peer,
        open_broker(peer.url(), password="secret", authid="preset") as broker,
    ):
        broker.connect()
        broker.test()
    sent = [fields(each.body) for each in peer.asked]
    assert sent[0] == {"user": "me", "password": "secret", "authid": "preset"}
    assert sent[1] == {"task": "testcon", "user": "me", "authid": "A"}


def test_threads_share_a_broker_and_no_authid() -> None:
    answers = [granted(f"A{number}") for number in range(13)]
    with (
        ScriptedBroker(*answers) as peer,
        open_broker(peer.url(), password="secret") as broker,
    ):
        threads = [
            threading.Thread(target=lambda: [broker.list_profiles() for _ in range(3)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    used = [fields(each.body).get("authid") for each in peer.asked]
    assert used == [None, *(f"A{number}" for number in range(11))]


def test_a_key_is_offered_in_json_and_returned_when_it_is_accepted() -> None:
    session = {"server": "a", "port": "22", "authentication_pubkey": "ACCEPTED"}
    with (
        ScriptedBroker(in_json(selected_session=session)) as peer,
        open_broker(peer.url("json"), password="secret") as broker,
    ):
        selected = broker.select("office", login="you")
    sent = fields(peer.asked[0].body)
    assert sent["profile-id"] == "office"
    assert sent["login"] == "you"
    options, kind, blob, comment = sent["pubkey"].split(" ")
    assert options == "no-X11-forwarding,no-pty,no-user-rc"
    assert comment == "you@127.0.0.1"
    assert selected.private_key is not None
    with key_file(selected) as path:
        assert path is not None
        key = public_line(path)
    assert key == f"{kind} {blob}"


def public_line(path: Path) -> str:
    """Return the public key of a private one, as authorized_keys(5) has it."""
    key = serialization.load_ssh_private_key(path.read_bytes(), None)
    return (
        key.public_key()
        .public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        .decode()
    )


def test_the_key_of_a_session_is_in_a_file_of_this_user_for_a_while() -> None:
    selected = SelectedSession("b", 2222, rtunnel.KeyPair.generate().private_text)
    profile = Profile(id="office", host=("a", "b"), sshport=22)
    with key_file(selected) as path:
        assert path is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        chosen = profile_for(profile, selected, path)
        assert (chosen.host, chosen.sshport) == (("b",), 2222)
        assert (chosen.key, chosen.autologin) == (str(path), False)
    assert not path.parent.exists()
    with key_file(SelectedSession("b")) as nothing:
        assert nothing is None
    assert profile_for(profile, SelectedSession("b")).sshport == 22


def test_a_new_password_is_the_one_that_is_used_then() -> None:
    with (
        ScriptedBroker(granted("A"), answer(GRANTED)) as peer,
        open_broker(peer.url(), password="old") as broker,
    ):
        broker.connect()
        broker.setpass("new")
        broker.connect()
    sent = [fields(each.body) for each in peer.asked]
    assert sent[1:] == [
        {"task": "setpass", "newpass": "new", "user": "me", "password": "old"},
        {"user": "me", "password": "new"},
    ]


def test_a_password_that_is_not_changed_stays() -> None:
    with (
        ScriptedBroker(answer("", "403 Forbidden"), answer(GRANTED)) as peer,
        open_broker(peer.url(), password="old") as broker,
    ):
        with pytest.raises(BrokerDenied, match="403"):
            broker.setpass("new")
        broker.connect()
    assert fields(peer.asked[1].body)["password"] == "old"


def test_a_profile_that_makes_no_sense_hides_no_other() -> None:
    listed = "START_USER_SESSIONS\n[a]\nname=A\nsshport=ssh\n[b]\nname=B\n"
    with (
        ScriptedBroker(granted("A", listed + "END_USER_SESSIONS\n")) as peer,
        open_broker(peer.url(), password="secret") as broker,
    ):
        assert list(broker.list_profiles()) == ["b"]
        assert "sshport" in str(broker.unreadable["a"])


# What brokers may answer.


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (answer("", "401 Unauthorized"), BrokerDenied, "denies access to this user"),
        (
            answer("", "429 Too Many Requests", "Retry-After: 30"),
            BrokerDenied,
            "too many logins that failed: wait 30 s",
        ),
        (answer("", "404 Not Found"), BrokerAnswerError, "no broker at http"),
        (answer("", "405 Method Not Allowed"), BrokerAnswerError, "no broker at"),
        (answer("", "500 Internal Server Error"), BrokerUnreachable, "HTTP 500"),
        (answer("<h1>It works!</h1>"), BrokerAnswerError, "is the URL that of a sess"),
        (answer(b"\xff\xfe" + GRANTED.encode()), BrokerAnswerError, "not utf-8"),
        (answer(GRANTED + "\x00"), BrokerAnswerError, "control character"),
        (answer(GRANTED, kind="text/plain; charset=utf-7"), BrokerAnswerError, "utf-7"),
        (
            answer(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip"),
            BrokerAnswerError,
            "compressed",
        ),
        (answer(GRANTED)[:-5], BrokerAnswerError, "cut off"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nAccess",
            BrokerAnswerError,
            "cut off",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", BrokerAnswerError, "did not answer as HTTP"),
        (b"", BrokerAnswerError, "did not answer as HTTP"),
    ],
)
@pytest.mark.parametrize("form", ["plain", "json"])
def test_what_is_no_answer_is_an_error_that_says_what_to_do(
    form: str, said: bytes, error: type[Exception], words: str
) -> None:
    with (
        ScriptedBroker(said) as peer,
        open_broker(peer.url(form), **SECRETS) as broker,
        pytest.raises(error, match=words) as caught,
    ):
        broker.connect()
    for secret in SECRETS.values():
        assert secret not in str(caught.value)


def endless(head: bytes) -> Iterator[bytes]:
    yield head
    yield from itertools.repeat(b"10000\r\n" + b"a" * 0x10000 + b"\r\n")


@pytest.mark.parametrize(
    "said",
    [
        lambda: endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        lambda: endless(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n"),
        lambda: endless(b"HTTP/1.1 200 OK\r\n\r\n"),
        lambda: endless(b"HTTP/1.1 200 OK\r\nX: "),
    ],
)
def test_an_answer_without_an_end_is_left(said: Callable[[], Iterator[bytes]]) -> None:
    with (
        ScriptedBroker(said()) as peer,
        open_broker(peer.url(), **SECRETS) as broker,
        pytest.raises(BrokerAnswerError, match=r"longer than|did not answer as HTTP"),
    ):
        broker.connect()
    # What is in the buffers of the kernel, too.
    assert peer.sent_bytes < MOST_ANSWER_BYTES + (16 << 20)


def slowly() -> Iterator[bytes]:
    for byte in itertools.chain(b"HTTP/1.1 200 OK\r\n\r\n", itertools.repeat(97)):
        time.sleep(0.01)
        yield bytes([byte])


@pytest.mark.parametrize("said", [None, slowly()])
def test_a_broker_that_is_silent_or_slow_is_left_in_time(
    said: Iterator[bytes] | None,
) -> None:
    with (
        ScriptedBroker(said) as peer,
        open_broker(peer.url(), timeout_s=1.0, **SECRETS) as broker,
        pytest.raises(BrokerUnreachable, match="did not answer within 1 s"),
    ):
        broker.connect()


def test_nobody_there_is_said_so() -> None:
    with (
        open_broker(f"http://127.0.0.1:{free_port()}/plain/", **SECRETS) as broker,
        pytest.raises(BrokerUnreachable, match="cannot be reached"),
    ):
        broker.connect()


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 P"])
def test_a_password_follows_no_redirect(status: str) -> None:
    with ScriptedBroker(answer(GRANTED)) as other:
        there = f"http://127.0.0.1:{other.port}/plain/"
        with (
            ScriptedBroker(answer("", status, f"Location: {there}")) as peer,
            open_broker(peer.url(), **SECRETS) as broker,
            pytest.raises(BrokerAnswerError, match="elsewhere, at " + there),
        ):
            broker.connect()
        assert other.asked == []


def test_https_to_what_speaks_no_tls_is_said_so() -> None:
    with (
        Target(lambda conn: conn.sendall(b"220 mail.example.org\r\n")) as target,
        open_broker(f"https://{target.spec}/plain/", **SECRETS) as broker,
        pytest.raises(BrokerUnreachable, match="did not agree on TLS"),
    ):
        broker.connect()


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(ConfigError, match=name):
            open_broker("https://h/plain/", ca_file=tmp_path / name)
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "right.pem"))
    open_broker("https://h/plain/", ca_file=tmp_path / "right.pem").close()


def test_answers_in_the_encoding_that_they_name_are_read() -> None:
    listed = f"{GRANTED}START_USER_SESSIONS\n[a]\nname=Käse\nEND_USER_SESSIONS\n"
    kind = "text/html; charset=ISO-8859-1"
    with (
        ScriptedBroker(answer(listed.encode("latin-1"), kind=kind)) as peer,
        open_broker(peer.url(), **SECRETS) as broker,
    ):
        assert broker.list_profiles()["a"].name == "Käse"


# By SSH, with programs that are not x2gobroker.


def by_ssh(sshd: Sshd, folder: Path, script: str, **options: Any) -> Broker:
    """Open the broker that is a script."""
    program = folder / "a broker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    login = {
        "identity_files": [str(sshd.user_key)],
        "known_hosts": str(sshd.known_hosts),
        "config_file": "none",
        "agent": False,
    }
    return open_broker(
        f"ssh://{sshd.user}@127.0.0.1:{sshd.port}{quote(str(program))}",
        ssh=login,
        **options,
    )


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("echo 'Access denied' >&2; exit 255", BrokerDenied, "denies access"),
        ("exit 0", BrokerDenied, "denies access .* or wants an authid"),
        ("echo oops >&2; exit 3", BrokerAnswerError, r"status 3\): oops"),
        ("exit 2", BrokerAnswerError, r"status 2\): it did not say why"),
        ("kill -9 $$", BrokerAnswerError, "failed"),
        ("echo hello", BrokerAnswerError, "no 'Access granted'"),
        ("printf '\\377'", BrokerAnswerError, "not utf-8"),
        ("head -c 5000000 /dev/zero", BrokerAnswerError, "longer than"),
    ],
)
def test_what_is_no_answer_by_ssh_is_an_error_that_says_what_to_do(
    script: str, error: type[Exception], words: str, sshd: Sshd, tmp_path: Path
) -> None:
    with (
        by_ssh(sshd, tmp_path, script) as broker,
        pytest.raises(error, match=words),
    ):
        broker.list_profiles()


def test_a_broker_that_is_silent_by_ssh_is_left_in_time(
    sshd: Sshd, tmp_path: Path
) -> None:
    with (
        by_ssh(sshd, tmp_path, "sleep 60", timeout_s=1.0) as broker,
        pytest.raises(BrokerUnreachable, match="did not answer within 1 s"),
    ):
        broker.test()


def test_what_a_login_prints_before_the_answer_is_no_part_of_it(
    sshd: Sshd, tmp_path: Path
) -> None:
    listed = (
        "Access granted\\nSTART_USER_SESSIONS\\n[a]\\nname=A\\nEND_USER_SESSIONS\\n"
    )
    with by_ssh(sshd, tmp_path, f"echo Welcome; printf '{listed}'") as broker:
        assert list(broker.list_profiles()) == ["a"]


def test_commands_by_ssh_have_no_secret_but_the_authid_of_the_operator(
    sshd: Sshd, tmp_path: Path
) -> None:
    noted = tmp_path / "noted"
    script = f"echo \"$*\" >>'{noted}'; printf 'AUTHID:next\\nAccess granted\\n'"
    with by_ssh(sshd, tmp_path, script, password="secret") as broker:
        broker.connect()
        broker.list_profiles()
    with by_ssh(sshd, tmp_path, script, authid="preset") as broker:
        broker.connect()
        broker.list_profiles()
    user = f"--user {sshd.user}"
    assert noted.read_text().splitlines() == [
        f"{user} --task testcon",
        f"{user} --task listsessions",
        f"{user} --authid preset --task testcon",
        f"{user} --authid next --task listsessions",
    ]


def test_one_ssh_connection_serves_all_requests_and_is_made_anew(
    sshd: Sshd, tmp_path: Path
) -> None:
    where = tmp_path / "where"
    script = f"echo $SSH_CONNECTION >>'{where}'; echo Access granted"
    with by_ssh(sshd, tmp_path, script) as broker:
        broker.test()
        broker.test()
        broker.close()
        broker.test()
    first, second, third = where.read_text().splitlines()
    assert first == second
    assert third != first


# URLs.


@pytest.mark.parametrize(
    ("text", "shown", "user", "password"),
    [
        ("https://h/plain/", "https://h/plain/", "", None),
        ("http://u:p%40%2F@h:8080/json/x", "http://h:8080/json/x", "u", "p@/"),
        ("https://u@[2001:db8::1]:443/", "https://[2001:db8::1]/", "u", None),
        ("https://h", "https://h/", "", None),
        ("ssh://u@h:2222/opt/b", "ssh://h:2222/opt/b", "u", None),
        ("ssh://u:p@h", "ssh://h/usr/bin/x2gobroker", "u", "p"),
    ],
)
def test_urls_are_read_and_shown_without_passwords(
    text: str, shown: str, user: str, password: str | None
) -> None:
    url = BrokerUrl.parse(text)
    assert (str(url), url.user, url.password) == (shown, user, password)
    assert "p@/" not in repr(url)
    assert url.is_json is ("/json/" in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "broker.example.org",
        "ftp://u:secret@h/",
        "https://u:secret@/plain/",
        "https://u:secret@h:99999/",
        "https://u:secret@h:0/",
        "https://u:sec ret@h/",
        "https://h/plain/?password=secret",
        "https://u:se/cret@h/plain/",
        "https://[::1/",
        "http://u:secret@-h/",
        "http://u:secret@h\n/",
    ],
)
def test_a_url_that_is_none_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(InvalidAddress, match="https://host/plain/") as caught:
        open_broker(text)
    for part in ("secret", "sec", "cret"):
        assert part not in str(caught.value)


def test_the_user_is_that_of_the_call_or_of_the_url_or_of_this_machine() -> None:
    url = "https://u:p@h/plain/"
    assert open_broker(url).user == "u"
    assert open_broker(url, user="me").user == "me"
    assert open_broker("https://h/plain/").user == getpass.getuser()


def test_a_password_that_others_can_read_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for url in (
        "https://h/plain/",
        "http://127.0.0.1/plain/",
        "http://localhost/json/",
    ):
        open_broker(url)
    assert caplog.records == []
    open_broker("http://broker.example.org/plain/")
    assert "use https" in caplog.text
