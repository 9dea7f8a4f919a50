"""Our broker over HTTP: the bytes of the protocol, who is refused, several brokers."""

from __future__ import annotations

import json
import re
import signal
import ssl
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.brokers import (
    Balancer,
    BrokerServer,
    ask,
    write_settings,
    write_users,
)
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.sshd import Sshd
from tests.support.x2go import run
from x2go_session.broker import open_broker
from x2go_session.cli import main
from x2go_session.errors import BrokerDenied, NoServerAvailable

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
PROFILES = """\
[prof-one]
name=Profile One
host=127.0.0.1
sshport=2222
command=XFCE
user=BROKER_USER
fullscreen=false
kdrive=0
applications=TERMINAL,OFFICE
broker-portscan-x2goservers=false

[prof-pool]
name=Pool
host=srv-a.example.org,srv-b.example.org (192.0.2.7:2200)
user=
acl-users-allow=alice
acl-users-deny=ALL
acl-any-order=allow-deny
broker-portscan-x2goservers=false

[staff]
name=Staff
host=127.0.0.1
acl-groups-allow=staff-of-tests
broker-portscan-x2goservers=false
"""
SETTINGS = """
[authentication]
mechanism = "htpasswd"
file = "users"
[limits]
per_address = "2000/minute"
per_user = "500/minute"
[groups]
staff-of-tests = ["carol"]
"""
LISTED = """\
AUTHID:{authid}
Access granted
START_USER_SESSIONS

[prof-one]
name=Profile One
host=127.0.0.1
sshport=2222
command=XFCE
user=bob
fullscreen=0
kdrive=0
applications=TERMINAL,OFFICE
rootless=0

END_USER_SESSIONS
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broker")
    write_users(folder)
    return write_settings(folder, PROFILES, SETTINGS)


@pytest.fixture(scope="module")
def broker(settings: Path) -> Iterator[BrokerServer]:
    with BrokerServer(settings) as server:
        yield server


def authid_of(answer: httpx.Response) -> str:
    found = re.match(f"AUTHID:({UUID})\n", answer.text)
    assert found is not None, answer.text
    return found[1]


# The bytes of the protocol: spec, 9.1 and 9.2.


def test_a_plain_login_is_answered_byte_for_byte(broker: BrokerServer) -> None:
    answer = broker.ask(user="bob", password="b0b")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == f"AUTHID:{authid_of(answer)}\nAccess granted\n"


def test_a_plain_list_is_answered_byte_for_byte(broker: BrokerServer) -> None:
    answer = broker.ask(task="listsessions", user="bob", password="b0b", authid="")
    assert answer.text == LISTED.format(authid=authid_of(answer))


def test_a_plain_selection_is_answered_byte_for_byte(broker: BrokerServer) -> None:
    fields = {"task": "selectsession", "user": "bob", "password": "b0b"}
    answer = broker.ask(sid="prof-one", **fields)
    begin = f"AUTHID:{authid_of(answer)}\nAccess granted\n"
    assert answer.text == f"{begin}SERVER:127.0.0.1:2222\n"
    # One that there is not, or that is not for him.
    for sid in ("nothing", "prof-pool", "../x", ""):
        answer = broker.ask(sid=sid, **fields)
        assert answer.text.endswith("granted\nSERVER:no-server-available:22\n")


def test_the_bodies_of_x2goclient_are_understood(broker: BrokerServer) -> None:
    for body in (
        "task=listsessions&user=bob&password=b%30b&authid=",
        "task=selectsession&sid=prof-one&user=bob&password=b0b&authid=",
        "task=testcon&user=bob&password=b0b&authid=",
    ):
        for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
            answer = httpx.post(
                f"{broker.url}/plain/inifile",
                content=body,
                headers={"Content-Type": kind} if kind else {},
                trust_env=False,
            )
            assert answer.status_code == 200, body
            assert "Access granted" in answer.text or answer.text == "OK"


def test_a_json_login_is_answered_byte_for_byte(broker: BrokerServer) -> None:
    answer = broker.ask("/json/", user="bob", password="b0b")
    assert answer.headers["content-type"].startswith("text/json")
    authid = json.loads(answer.text)["next-authid"]
    assert re.fullmatch(UUID, authid)
    assert answer.text == (
        '{\n    "auth-status": "Access granted",\n'
        f'    "next-authid": "{authid}",\n    "task": ""\n}}'
    )


def test_json_has_profiles_and_selections_with_types(broker: BrokerServer) -> None:
    answer = broker.ask_json(task="listsessions", user="bob", password="b0b")
    assert answer["task"] == "listprofiles"
    assert answer["profiles"] == {
        "prof-one": {
            "name": "Profile One",
            "host": ["127.0.0.1"],
            "sshport": 2222,
            "command": "XFCE",
            "user": "bob",
            "fullscreen": False,
            "kdrive": False,
            "applications": ["TERMINAL", "OFFICE"],
            "rootless": False,
        }
    }
    fields: dict[str, Any] = {"user": "bob", "authid": answer["next-authid"]}
    answer = broker.ask_json(
        task="selectsession", **fields, **{"profile-id": "prof-one"}
    )
    assert answer["selected_session"] == {"server": "127.0.0.1", "port": "2222"}
    assert answer["auth-status"] == "Access granted"


def test_testcon_is_answered_as_x2gobroker_does(broker: BrokerServer) -> None:
    assert broker.ask(task="testcon", user="bob", password="b0b").text == "OK"
    assert broker.ask("/json/", task="testcon", user="bob", password="b0b").text == ""
    assert broker.ask(task="testcon").status_code == 401


def test_profiles_are_those_of_the_user(broker: BrokerServer) -> None:
    def profiles(user: str, password: str) -> list[str]:
        answer = broker.ask_json(task="listprofiles", user=user, password=password)
        return list(answer["profiles"])

    assert profiles("alice", "s3cret") == ["prof-one", "prof-pool"]
    assert profiles("bob", "b0b") == ["prof-one"]
    # By a group of the settings.
    assert profiles("carol", "c4rol") == ["prof-one", "staff"]


def test_a_selected_server_has_the_address_and_the_port_of_the_file(
    broker: BrokerServer,
) -> None:
    answer = broker.ask(
        task="selectsession", sid="prof-pool", user="alice", password="s3cret"
    )
    server = answer.text.splitlines()[-1]
    assert server in ("SERVER:srv-a.example.org:22", "SERVER:192.0.2.7:2200")
    # And stays for a while.
    for _ in range(5):
        again = broker.ask(
            task="selectsession", sid="prof-pool", user="alice", password="s3cret"
        )
        assert again.text.splitlines()[-1] == server


# Who is refused.


@pytest.mark.parametrize("path", ["/plain/", "/json/"])
def test_who_is_wrong_is_refused_with_401(broker: BrokerServer, path: str) -> None:
    for fields in (
        {"user": "bob", "password": "wrong"},
        {"user": "nobody", "password": "b0b"},
        {"user": "", "password": ""},
        {"user": "bob"},
        {"user": "bob", "password": "b0b", "authid": "unknown"},
        {"user": "check-credentials", "password": "FALSE"},
    ):
        answer = broker.ask(path, task="listsessions", **fields)
        assert (answer.status_code, answer.text) == (401, "Access denied\n")


def test_an_authid_is_good_once_and_without_a_password(broker: BrokerServer) -> None:
    first = authid_of(broker.ask(user="bob", password="b0b"))
    answer = broker.ask(task="listsessions", user="bob", authid=first)
    assert answer.text == LISTED.format(authid=authid_of(answer))
    assert broker.ask(task="listsessions", user="bob", authid=first).status_code == 401


def test_requests_that_are_none_are_refused(broker: BrokerServer) -> None:
    def post(path: str, content: bytes) -> int:
        return httpx.post(
            f"{broker.url}{path}", content=content, trust_env=False
        ).status_code

    assert post("/plain/", b"") == 401
    assert post("/plain/", b"user=%ff") == 400
    assert post("/plain/", b"user=\xff") == 400
    assert post("/plain/", b"&".join(b"a=b" for _ in range(100))) == 400
    assert post("/plain/", b"user=" + b"x" * 100_000) == 413
    assert post("/plain/", b"password=b0b&user=" + b"x" * 300) == 401
    assert post("/plain/ldap/", b"") == 404
    assert post("/uccs/", b"") == 404
    assert post("/", b"") == 404
    assert httpx.get(f"{broker.url}/plain/", trust_env=False).status_code == 405


def test_a_password_is_changed_by_who_shows_the_old_one(broker: BrokerServer) -> None:
    authid = authid_of(broker.ask(user="carol", password="c4rol"))
    change = {"task": "setpass", "newpass": "n3w", "user": "carol"}
    assert broker.ask(**change, password="wrong").status_code == 401
    assert broker.ask(**change, authid=authid).status_code == 401
    refused = broker.ask(task="setpass", newpass="", user="carol", password="c4rol")
    assert refused.status_code == 403
    assert "not changed" in refused.text
    answer = broker.ask(**change, password="c4rol")
    assert answer.text == f"AUTHID:{authid_of(answer)}\nAccess granted\n"
    assert broker.ask(user="carol", password="c4rol").status_code == 401
    back = {"task": "setpass", "newpass": "c4rol", "user": "carol", "password": "n3w"}
    assert broker.ask("/json/", **back).json()["auth-status"] == "Access granted"


def test_guesses_are_answered_with_429_and_when_to_come_again(tmp_path: Path) -> None:
    write_users(tmp_path)
    limited = SETTINGS.replace("500/minute", "3/hour")
    with BrokerServer(write_settings(tmp_path, PROFILES, limited)) as broker:
        for _ in range(3):
            assert broker.ask(user="bob", password="guess").status_code == 401
        answer = broker.ask(user="bob", password="b0b")
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 3600
        assert broker.ask(user="alice", password="s3cret").status_code == 200


def test_without_authentication_all_are_let_in_and_get_no_authid(
    tmp_path: Path,
) -> None:
    open_to_all = '[authentication]\nmechanism = "none"\n'
    with BrokerServer(write_settings(tmp_path, PROFILES, open_to_all)) as broker:
        answer = broker.ask(task="listsessions", user="anybody")
        assert answer.text.startswith("Access granted\nSTART_USER_SESSIONS\n")
        assert "user=anybody\n" in answer.text
        assert "next-authid" not in broker.ask_json(user="anybody")


def test_a_proxy_says_who_a_client_is_only_if_it_is_trusted(settings: Path) -> None:
    def address_in_log(*arguments: str) -> str:
        with BrokerServer(settings, *arguments) as broker:
            httpx.post(
                f"{broker.url}/plain/",
                data={"user": "bob", "password": "wrong"},
                headers={"X-Forwarded-For": "192.0.2.9"},
                trust_env=False,
            )
            found = re.search(r"refused: user='bob' address=(\S+)", broker.log())
            assert found is not None
            return found[1]

    assert address_in_log() == "127.0.0.1"
    assert address_in_log("--trust-proxies", "127.0.0.1") == "192.0.2.9"


def test_nobody_is_let_in_while_the_state_cannot_be_reached(
    tmp_path: Path, postgres: Postgres
) -> None:
    write_users(tmp_path)
    path = write_settings(tmp_path, PROFILES, SETTINGS, postgres.database())
    with BrokerServer(path) as broker:
        postgres.stop()
        try:
            answer = broker.ask(user="bob", password="b0b")
            assert (answer.status_code, "AUTHID" in answer.text) == (503, False)
        finally:
            postgres.start()
        assert broker.ask(user="bob", password="b0b").status_code == 200


def test_no_secret_is_in_the_log(tmp_path: Path) -> None:
    write_users(tmp_path)
    with BrokerServer(write_settings(tmp_path, PROFILES, SETTINGS)) as broker:
        authid = authid_of(broker.ask(user="bob", password="b0b"))
        answer = broker.ask(task="listsessions", user="bob", authid=authid)
        broker.ask(user="bob", password="a-wrong-one")
        broker.ask(task="setpass", user="bob", password="b0b", newpass="the-new-one")
        log = broker.log()
    assert "refused: user='bob' address=127.0.0.1 reason=wrong user" in log
    assert "profiles: user='bob'" in log
    for secret in (authid, authid_of(answer), "b0b", "a-wrong-one", "the-new-one"):
        assert secret not in log


# Our own client.


@pytest.mark.parametrize("form", ["plain", "json"])
def test_our_client_gets_what_our_broker_says(broker: BrokerServer, form: str) -> None:
    url = f"{broker.url}/{form}/"
    with open_broker(url, user="bob", password="b0b") as client:
        client.connect()
        client.test()
        found = client.list_profiles()
        assert client.unreadable == {}
        assert list(found) == ["prof-one"]
        profile = found["prof-one"]
        assert (profile.name, profile.host) == ("Profile One", ("127.0.0.1",))
        assert (profile.sshport, profile.user, profile.rootless) == (2222, "bob", False)
        assert profile.applications == ("TERMINAL", "OFFICE")
        selected = client.select("prof-one")
        assert (selected.server, selected.port) == ("127.0.0.1", 2222)
        assert selected.private_key is None
        with pytest.raises(NoServerAvailable):
            client.select("prof-pool")
        client.setpass("another")
        client.setpass("b0b")
        client.connect()
    with (
        open_broker(url, user="bob", password="wrong") as client,
        pytest.raises(BrokerDenied),
    ):
        client.list_profiles()


# How it is served.


def test_https_is_served_with_a_certificate(settings: Path, tmp_path: Path) -> None:
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert"))  # fmt: skip
    tls = ("--certificate", str(tmp_path / "cert"), "--key", str(tmp_path / "key"))
    with BrokerServer(settings, *tls) as broker:
        assert broker.scheme == "https"
        context = ssl.create_default_context(cafile=str(tmp_path / "cert"))
        answer = httpx.post(
            f"{broker.url}/plain/",
            data={"user": "bob", "password": "b0b"},
            verify=context,
            trust_env=False,
        )
        assert answer.text.endswith("Access granted\n")
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            ask(f"{broker.url}/plain/", user="bob")


def test_mistakes_are_said_with_what_to_do(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broker.toml"

    def fails(*arguments: str) -> str:
        assert main(["broker", *arguments]) != 0
        return capsys.readouterr().err

    (tmp_path / "profiles.conf").write_text(PROFILES)

    def verify(text: str) -> str:
        path.write_text(f'profiles = "profiles.conf"\nstate = "sqlite:state"\n{text}')
        return fails("verify", "--config", str(path))

    assert "broker.toml:3: unknown key 'prob'; did you mean probe?" in verify(
        "prob = true"
    )
    assert "needs file" in verify('[authentication]\nmechanism = "htpasswd"')
    assert "is no limit" in verify('[limits]\nper_user = "some"')
    assert "lets everybody be anybody" in verify(
        '[authentication]\nmechanism = "none"\n[servers]\nautologin = true'
    )
    assert "cannot read" in verify('[cookies]\npreset_file = "nothing"')
    config = ("serve", "--config", str(settings), "--port", "0")
    before = signal.getsignal(signal.SIGTERM)
    assert "--key belong together" in fails(*config, "--certificate", str(path))
    assert "certificate" in fails(
        *config, "--certificate", str(path), "--key", str(path)
    )
    assert "cannot listen" in fails(*config, "--host", "192.0.2.77")
    assert signal.getsignal(signal.SIGTERM) == before


def test_profiles_are_taken_over_while_it_runs_and_stay_while_they_are_wrong(
    tmp_path: Path,
) -> None:
    write_users(tmp_path)
    with BrokerServer(write_settings(tmp_path, PROFILES, SETTINGS)) as broker:

        def listed() -> list[str]:
            answer = broker.ask_json(task="listprofiles", user="bob", password="b0b")
            return sorted(answer["profiles"])

        profiles = tmp_path / "profiles.conf"
        assert listed() == ["prof-one"]
        profiles.write_text(f"{PROFILES}\n[more]\nhost=srv\n")
        assert listed() == ["more", "prof-one"]
        profiles.write_text(f"{PROFILES}\n[more]\nhost=a b c\n")
        assert listed() == ["more", "prof-one"]
        assert "profiles stay as they were" in broker.log()


# Servers that are dead, without asking any over SSH.


def test_dead_servers_are_not_given_out(tmp_path: Path, sshd: Sshd) -> None:
    write_users(tmp_path)
    dead = free_port()
    pool = f"a (127.0.0.1:{dead}), b (127.0.0.1:{sshd.port}), c (127.0.0.1:{dead})"
    profiles = f"[pool]\nhost={pool}\n[down]\nhost=a (127.0.0.1:{dead})\n"
    with BrokerServer(write_settings(tmp_path, profiles, SETTINGS)) as broker:
        fields = {"task": "selectsession", "user": "bob", "password": "b0b"}
        for _ in range(8):
            answer = broker.ask(sid="pool", **fields)
            assert answer.text.endswith(f"SERVER:127.0.0.1:{sshd.port}\n")
        answer = broker.ask(sid="down", **fields)
        assert "SERVER:no-X2Go-Server-available" in answer.text


# Several brokers.


def test_two_brokers_behind_a_balancer_are_as_one(
    tmp_path: Path, postgres: Postgres
) -> None:
    write_users(tmp_path)
    profiles = "[pool]\nbroker-portscan-x2goservers=false\nhost=" + ",".join(
        f"srv-{number}" for number in range(8)
    )
    path = write_settings(tmp_path, profiles, SETTINGS, postgres.database())
    with (
        BrokerServer(path) as one,
        BrokerServer(path) as two,
        Balancer(one.port, two.port) as balancer,
    ):
        url = f"{balancer.url}/plain/"
        # Each answer comes from the other broker than the one before.
        authid = authid_of(ask(url, user="bob", password="b0b"))
        servers = set()
        for _ in range(6):
            answer = ask(
                url, task="selectsession", sid="pool", user="bob", authid=authid
            )
            authid = authid_of(answer)
            servers.add(answer.text.splitlines()[-1])
        assert len(servers) == 1
        # Of many who come at once with one authid, at either broker, one is let in.
        for _ in range(5):
            fields = {"task": "listsessions", "user": "bob", "authid": authid}
            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(lambda _, f=fields: ask(url, **f), range(16)))
            assert Counter(each.status_code for each in answers) == {200: 1, 401: 15}
            (granted,) = (each for each in answers if each.status_code == 200)
            authid = authid_of(granted)
        # One dies; the other goes on with what both know.
        one.kill()
        assert two.ask(task="listsessions", user="bob", authid=authid).is_success
        assert "selected: user='bob'" in one.log()
        assert "selected: user='bob'" in two.log()


def test_users_who_come_at_once_get_all_servers_evenly(
    tmp_path: Path, postgres: Postgres
) -> None:
    users = {f"user{number}": "pw" for number in range(12)}
    write_users(tmp_path, **users)
    profiles = "[pool]\nbroker-portscan-x2goservers=false\nhost=a,b,c,d\n"
    path = write_settings(tmp_path, profiles, SETTINGS, postgres.database())
    with BrokerServer(path) as one, BrokerServer(path) as two:

        def select(user: str, broker: BrokerServer) -> str:
            answer = broker.ask(
                task="selectsession", sid="pool", user=user, password="pw"
            )
            return answer.text.splitlines()[-1]

        found = Counter(
            select(user, broker)
            for user, broker in zip(users, [one, two] * 6, strict=True)
        )
    assert set(found.values()) == {3}
