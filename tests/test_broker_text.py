"""What is said between clients and session brokers, byte for byte, in its two forms."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel import KeyPair
from x2go_session.broker import json_text, plain
from x2go_session.broker.answers import (
    MOST_ANSWER_BYTES,
    Answer,
    SelectedSession,
    decoded,
)
from x2go_session.broker.requests import Request, Task
from x2go_session.errors import BrokerAnswerError, BrokerDenied

AUTHID = "cf7a2614-81e9-4609-8082-8313e243a5d8"
LISTED = f"""\
AUTHID:{AUTHID}
Access granted
START_USER_SESSIONS

[prof-one]
name=Profile One
host=127.0.0.1
sshport=2222
command=XFCE
kdrive=0
rootless=1

[prof-pool]
name=Pool
host=srv-a.example.org,srv-b.example.org

END_USER_SESSIONS
"""
PROFILES = {
    "prof-pool": {"name": "Pool", "host": ["srv-a.example.org", "srv-b.example.org"]},
    "prof-one": {
        "name": "Profile One",
        "host": ["127.0.0.1"],
        "sshport": 2222,
        "command": "XFCE",
        "kdrive": False,
        "rootless": True,
    },
}
KEY = """\
-----BEGIN RSA PRIVATE KEY-----
MIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnzj4p4WGeKLs1Pt8Qu
KUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==
-----END RSA PRIVATE KEY-----
"""
INFO = (
    "14143|x2gotest-50-1795190498_stRTERMINAL_dp24|50|vm|S|2026-11-20T16:01:39|"
    "2c8324a108301b5d350f63c40d36a0d9|127.0.0.1|31824|31825|2026-11-20T16:01:40|"
    "x2gotest|1|31826|-1|-1"
)
SELECTED = f"""\
AUTHID:{AUTHID}
Access granted
SERVER:127.0.0.1:2222
{KEY}SESSION_INFO:{INFO}
"""
# As the example of the protocol's page writes it, by way of CGI.pm.
HTML = f"""\
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN">
<html xmlns="http://www.w3.org/1999/xhtml"><head><title>X2Go Broker</title></head>
<body>
<form method="post"><strong>Access granted</strong><br/>AUTHID:{AUTHID}<br />
START_USER_SESSIONS<br>
[123456789]<BR>
name=X2Go Session<br>
key=<will-be-exchanged-during-session-selection><br>
<p>
[abcdefg]<br>name= Test X2Go Session 2<br>
END_USER_SESSIONS<br></form></body></html>
"""


def read(text: str, task: Task) -> Answer:
    return plain.parse_answer(decoded(text.encode()), task)


# Requests.


def test_requests_are_forms_in_the_order_of_x2goclient() -> None:
    who = {"user": "me", "password": "a b&=ü", "authid": "A"}
    assert Request(Task.LIST_SESSIONS, **who).form() == (
        b"task=listsessions&user=me&password=a%20b%26%3D%C3%BC&authid=A"
    )
    assert Request(Task.SELECT_SESSION, profile_id="S 1", **who).form() == (
        b"task=selectsession&sid=S%201&user=me&password=a%20b%26%3D%C3%BC&authid=A"
    )
    assert Request(Task.SET_PASSWORD, new_password="N", **who).form() == (
        b"task=setpass&newpass=N&user=me&password=a%20b%26%3D%C3%BC&authid=A"
    )


def test_requests_in_json_have_the_names_of_python_x2go() -> None:
    assert Request(Task.LIST_SESSIONS, "me", authid="A").form(json=True) == (
        b"task=listprofiles&user=me&password=&authid=A"
    )
    asked = Request(Task.SELECT_SESSION, "me", "p", profile_id="S", pubkey="ssh-rsa A")
    assert asked.form(json=True) == (
        b"task=selectsession&profile-id=S&pubkey=ssh-rsa%20A&user=me&password=p"
    )
    assert Request(Task.LOGIN, "me", "p").form(json=True) == b"user=me&password=p"


def test_requests_over_ssh_are_a_quoted_command_without_passwords() -> None:
    asked = Request(
        Task.SELECT_SESSION, "me", "secret", "A", profile_id="it's; rm -r", login="you"
    )
    assert asked.command("/usr/bin/x2gobroker") == (
        "/usr/bin/x2gobroker --user me --authid A --task selectsession "
        "--sid 'it'\"'\"'s; rm -r' --login you"
    )
    with pytest.raises(ValueError, match="SET_PASSWORD"):
        Request(Task.SET_PASSWORD, "me", new_password="N").command("x2gobroker")


@pytest.mark.parametrize("as_json", [False, True])
@given(
    task=st.sampled_from(Task),
    texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=7, max_size=7),
)
def test_a_request_is_read_as_it_was_written(
    as_json: bool, task: Task, texts: list[str]
) -> None:
    asked = Request(task, *texts)
    assert Request.from_form(asked.form(json=as_json)) == asked


def test_nothing_secret_of_a_request_is_in_its_repr() -> None:
    shown = repr(Request(Task.LOGIN, "me", "pass1", "id1", new_password="pass2"))
    assert "me" in shown
    assert "pass" not in shown.replace("new_password", "").replace("password", "")
    assert "id1" not in shown


@pytest.mark.parametrize("body", [b"\xff", b"task=steal", b"&".join([b"a=1"] * 33)])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Request.from_form(body)


# Plain text.


def test_profiles_in_plain_text_are_those_of_x2gobroker() -> None:
    assert plain.format_answer(Answer(AUTHID, PROFILES)) == LISTED
    answer = read(LISTED, Task.LIST_SESSIONS)
    assert answer.authid == AUTHID
    assert answer.profiles is not None
    assert answer.profiles["prof-one"] == {
        "name": "Profile One",
        "host": "127.0.0.1",
        "sshport": "2222",
        "command": "XFCE",
        "kdrive": "0",
        "rootless": "1",
    }
    assert answer.profiles["prof-pool"]["host"] == "srv-a.example.org,srv-b.example.org"


def test_a_user_without_profiles_gets_no_block() -> None:
    assert plain.format_answer(Answer(None, {})) == "Access granted\n"
    assert read("Access granted\n", Task.LIST_SESSIONS) == Answer(None, {})


def test_a_selected_session_in_plain_text_is_that_of_x2gobroker() -> None:
    session = SelectedSession("127.0.0.1", 2222, KEY, session_info=INFO)
    assert plain.format_answer(Answer(AUTHID, selected=session)) == SELECTED
    answer = read(SELECTED, Task.SELECT_SESSION)
    assert answer == Answer(AUTHID, selected=session)
    assert answer.selected is not None
    resumed = answer.selected.session
    assert resumed is not None
    assert (resumed.is_suspended, resumed.display) == (True, 50)
    assert "PRIVATE" not in repr(answer)
    assert AUTHID not in repr(answer)


@pytest.mark.parametrize(
    ("said", "server", "port"),
    [
        ("a.example.org", "a.example.org", None),
        ("a.example.org:22", "a.example.org", 22),
        ("[2001:db8::1]:2222", "2001:db8::1", 2222),
        ("[2001:db8::1]", "2001:db8::1", None),
        ("2001:db8::1:2222", "2001:db8::1", 2222),  # x2gobroker knows no brackets
        ("no-server-available:22", "no-server-available", 22),
    ],
)
def test_a_server_has_a_port_or_none(said: str, server: str, port: int | None) -> None:
    answer = read(f"Access granted\nSERVER:{said}\n", Task.SELECT_SESSION)
    assert answer.selected == SelectedSession(server, port)


@pytest.mark.parametrize("port", [None, 22])
def test_an_address_with_colons_is_read_as_it_was_written(port: int | None) -> None:
    answer = Answer(selected=SelectedSession("fe80::1", port))
    text = plain.format_answer(answer)
    assert plain.parse_answer(text, Task.SELECT_SESSION) == answer


def test_keys_of_openssh_are_taken_too() -> None:
    key = KeyPair.generate().private_text
    text = f"Access granted\nSERVER:a:22\n{key}"
    answer = read(text, Task.SELECT_SESSION)
    assert answer.selected is not None
    assert answer.selected.private_key == key


def test_html_around_an_answer_is_no_part_of_it() -> None:
    answer = read(HTML, Task.LIST_SESSIONS)
    assert answer.authid == AUTHID
    assert answer.profiles == {
        "123456789": {
            "name": "X2Go Session",
            "key": "<will-be-exchanged-during-session-selection>",
        },
        "abcdefg": {"name": "Test X2Go Session 2"},
    }
    key = KEY.replace("\n", "<br>\n")
    answer = read(
        f"<html><body><strong>Access granted</strong>SERVER:a:22<br>{key}"
        f"SESSION_INFO:{INFO}</body></html>",
        Task.SELECT_SESSION,
    )
    assert answer.selected == SelectedSession("a", 22, KEY, session_info=INFO)


def test_access_denied_is_said_so_in_html_too() -> None:
    for text in ("Access denied", "<html><strong>Access denied</strong></html>"):
        with pytest.raises(BrokerDenied, match="denies access"):
            read(text, Task.LIST_SESSIONS)


def test_what_users_write_into_profiles_changes_no_answer() -> None:
    text = LISTED.replace("Profile One", "Access denied AUTHID:other SERVER:evil:1")
    answer = read(text, Task.LIST_SESSIONS)
    assert answer.authid == AUTHID
    assert answer.profiles is not None
    assert "evil" in str(answer.profiles["prof-one"]["name"])


def test_the_answer_to_a_test_is_one_word_or_an_answer() -> None:
    for text in ("OK", "OK\n", "Access granted\n"):
        assert read(text, Task.TEST_CONNECTION) == Answer()
    with pytest.raises(BrokerAnswerError, match="Access granted"):
        read("OK", Task.LOGIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no 'Access granted'"),
        ("<html><h1>It works!</h1></html>", "no 'Access granted'"),
        (LISTED[: LISTED.index("END_USER")], "cut off"),
        (LISTED[: LISTED.index("rootless")], "cut off"),
        (LISTED.replace("command=XFCE", "command"), "line that is none: 'command'"),
        (LISTED.replace("[prof-one]", ""), "line that is none"),
        (LISTED.replace(AUTHID, "a b"), "authid"),
        (LISTED.replace(AUTHID, "a" * 2000), "2000 characters"),
        (LISTED.replace("XFCE", "\x1b[2J"), "control character 0x1b"),
        (LISTED.replace("XFCE", "\x00"), "control character 0x00"),
    ],
)
def test_what_is_no_list_of_profiles_is_refused(text: str, words: str) -> None:
    with pytest.raises(BrokerAnswerError, match=words):
        read(text, Task.LIST_SESSIONS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Access granted\n", "named no server"),
        ("Access granted\nSERVER:\n", "no host"),
        ("Access granted\nSERVER:a;reboot:22\n", "no host: 'a;reboot'"),
        ("Access granted\nSERVER:-oProxyCommand=x:22\n", "no host"),
        ("Access granted\nSERVER:a:0\n", "port"),
        ("Access granted\nSERVER:a:70000\n", "port"),
        ("Access granted\nSERVER:a:2²\n", "port"),
        (SELECTED[: SELECTED.index("-----END")], "private key"),
        (SELECTED.replace("KUpR", "KU;R"), "private key"),
        (SELECTED.replace("MIIB", "M" * 40_000), "private key"),
        (SELECTED.replace("x2gotest-50", "../../etc"), "session to resume"),
    ],
)
def test_what_is_no_selected_session_is_refused(text: str, words: str) -> None:
    with pytest.raises(BrokerAnswerError, match=words) as caught:
        read(text, Task.SELECT_SESSION)
    assert "MIIB" not in str(caught.value)


def test_what_is_too_long_or_in_another_encoding_is_refused() -> None:
    with pytest.raises(BrokerAnswerError, match=f"longer than {MOST_ANSWER_BYTES}"):
        decoded(b"a" * (MOST_ANSWER_BYTES + 1))
    with pytest.raises(BrokerAnswerError, match="is not utf-8: byte 14"):
        decoded("Access granted\xe4".encode("latin-1"))
    with pytest.raises(BrokerAnswerError, match="control character 0x00"):
        decoded("Access granted".encode("utf-16-be"))
    assert decoded("Käse\r\n".encode("latin-1"), "latin-1") == "Käse\n"


@pytest.mark.timeout(20)
def test_no_answer_takes_long_to_read() -> None:
    for piece in ("<", "<br", "<a>", "[", "-----BEGIN ", "AUTHID:", "\n", " "):
        text = f"Access granted\nSTART_USER_SESSIONS\n{piece * (2**20 // len(piece))}"
        with pytest.raises(BrokerAnswerError):
            plain.parse_answer(text, Task.LIST_SESSIONS)
        text = f"Access granted\nSERVER:a\n-----BEGIN PRIVATE KEY-----\n{piece * 2**16}"
        with pytest.raises(BrokerAnswerError):
            plain.parse_answer(text, Task.SELECT_SESSION)


@given(st.text(st.sampled_from("<>[]=\n AUTHID:SERVER-BEGIN|0123br/")), st.data())
def test_any_text_is_an_answer_or_one_of_two_errors(
    text: str, data: st.DataObject
) -> None:
    task = data.draw(st.sampled_from(Task))
    at = data.draw(st.integers(0, len(LISTED)))
    whole = data.draw(st.sampled_from([LISTED, SELECTED, HTML]))
    for each in (text, f"Access granted\n{text}", whole[:at] + text + whole[at:]):
        for form in (plain, json_text):
            with contextlib.suppress(BrokerDenied, BrokerAnswerError):
                form.parse_answer(decoded(each.encode()), task)


# JSON.


def test_profiles_in_json_are_those_of_x2gobroker() -> None:
    text = json_text.format_answer(Answer(AUTHID, PROFILES), Task.LIST_SESSIONS)
    assert text.startswith(
        '{\n    "auth-status": "Access granted",\n    "next-authid": '
    )
    assert json.loads(text) == {
        "auth-status": "Access granted",
        "next-authid": AUTHID,
        "profiles": PROFILES,
        "task": "listprofiles",
    }
    answer = json_text.parse_answer(text, Task.LIST_SESSIONS)
    assert answer == Answer(AUTHID, PROFILES)


def test_a_login_in_json_is_that_of_x2gobroker() -> None:
    text = json_text.format_answer(Answer(AUTHID), Task.LOGIN)
    assert json.loads(text) == {
        "auth-status": "Access granted",
        "next-authid": AUTHID,
        "task": "",
    }
    assert json_text.parse_answer(text, Task.LOGIN) == Answer(AUTHID)


def test_a_selected_session_in_json_is_that_of_x2gobroker() -> None:
    session = SelectedSession("127.0.0.1", 2222, KEY, True, INFO)
    text = json_text.format_answer(Answer(selected=session), Task.SELECT_SESSION)
    assert json.loads(text)["selected_session"] == {
        "server": "127.0.0.1",
        "port": "2222",
        "key": KEY,
        "authentication_pubkey": "ACCEPTED",
        "session_info": INFO,
    }
    answer = json_text.parse_answer(text, Task.SELECT_SESSION)
    assert answer == Answer(selected=session)


def test_html_around_json_is_no_part_of_it() -> None:
    text = '<html><body>{"auth-status": "Access granted", "task": ""}</body></html>'
    assert json_text.parse_answer(text, Task.LOGIN) == Answer()


def granted(**told: object) -> str:
    return json.dumps({"auth-status": "Access granted", **told})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("1" * 10_000, "no JSON"),
        ('{"auth-status": NaN}', "no JSON"),
        ("[]", "no object"),
        ("{}", "no 'Access granted'"),
        (granted(), "list of profiles is no object"),
        (granted(profiles=[]), "list of profiles is no object"),
        (granted(profiles={"a": 1}), "profile a is no object"),
        (granted(profiles={"a": {"host": [1]}}), "profile a, host: this must be"),
        (granted(profiles={"a": {"width": 1.5}}), "profile a, width: this must be"),
        (granted(profiles={"": {}}), "id that is none"),
        (granted(profiles={}, **{"next-authid": 1}), "next-authid is no string"),
    ],
)
def test_json_that_is_no_list_of_profiles_is_refused(text: str, words: str) -> None:
    with pytest.raises(BrokerAnswerError, match=words):
        json_text.parse_answer(text, Task.LIST_SESSIONS)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "selected session is no object"),
        ({"selected_session": {}}, "named no server"),
        ({"selected_session": {"server": "a b"}}, "no host"),
        ({"selected_session": {"server": "a", "port": -1}}, "port"),
        ({"selected_session": {"server": "a", "port": []}}, "port"),
        ({"selected_session": {"server": "a", "key": "abc"}}, "private key"),
        ({"selected_session": {"server": "a", "key": KEY + KEY}}, "private key"),
        ({"selected_session": {"server": "a", "session_info": "x"}}, "to resume"),
    ],
)
def test_json_that_is_no_selected_session_is_refused(
    told: dict[str, object], words: str
) -> None:
    with pytest.raises(BrokerAnswerError, match=words):
        json_text.parse_answer(granted(**told), Task.SELECT_SESSION)


def test_access_denied_in_json_is_said_so() -> None:
    with pytest.raises(BrokerDenied):
        json_text.parse_answer('{"auth-status": "Access denied"}', Task.LOGIN)
