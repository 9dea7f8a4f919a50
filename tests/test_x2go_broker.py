"""The broker's client against Debian's x2gobroker: plain text, JSON, SSH, TLS, keys."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

import rtunnel
from rtunnel.errors import AuthenticationFailed
from tests.support.x2go import Display, X2goServer
from tests.support.x2gobroker import PASSWORD, USER, X2goBroker
from x2go_session import profiles
from x2go_session.broker import Broker, key_file, open_broker, profile_for
from x2go_session.broker.answers import SelectedSession
from x2go_session.control import Control
from x2go_session.errors import (
    BrokerAnswerError,
    BrokerDenied,
    BrokerUnreachable,
    NoServerAvailable,
    NotSupported,
)
from x2go_session.options import SessionOptions
from x2go_session.terminal import Terminal

FORMS = ("plain", "json")


@pytest.fixture(scope="module")
def x2gobroker(x2go_server: X2goServer) -> Iterator[X2goBroker]:
    """One broker for this file; tests that need other settings start their own."""
    broker = X2goBroker(x2go_server)
    try:
        yield broker.start()
    finally:
        broker.stop()


@pytest.fixture(params=[*FORMS, "ssh"])
def broker(
    request: pytest.FixtureRequest, x2gobroker: X2goBroker, x2go_server: X2goServer
) -> Iterator[Broker]:
    """A client of it, by each way that there is."""
    with _opened(request.param, x2gobroker, x2go_server) as opened:
        yield opened


def connect(
    server: X2goServer, profile: profiles.Profile, selected: SelectedSession
) -> rtunnel.Tunnel:
    """Connect to what a broker selected; with its key, or that of the server's user."""
    with key_file(selected) as key:
        found = profiles.connection(profile_for(profile, selected, key))
        options = {**found.options, "known_hosts": str(server.known_hosts)}
        options |= {"config_file": "none", "agent": False}
        if key is None:
            options["identity_files"] = [str(server.user_key)]
        return rtunnel.connect(found.destination, **options)


def test_the_profiles_are_the_same_by_each_way(
    broker: Broker, x2go_server: X2goServer
) -> None:
    broker.connect()
    found = broker.list_profiles()
    assert list(found) == ["autologin", "down", "office", "resumable"]
    office = found["office"]
    assert office.id == "office"
    assert office.name == "Office: Käse & <Co>"
    assert office.host == (x2go_server.host,)
    assert (office.sshport, office.user) == (x2go_server.port, x2go_server.user)
    assert (office.rootless, office.sound, office.xinerama) == (True, False, False)
    assert office.applications == ("TERMINAL", "WWWBROWSER", "MAILCLIENT", "OFFICE")
    assert broker.unreadable == {}


def test_a_selected_session_is_on_the_server_of_the_profile(
    broker: Broker, x2go_server: X2goServer
) -> None:
    profile = broker.list_profiles()["office"]
    selected = broker.select("office")
    assert selected == SelectedSession(x2go_server.host, x2go_server.port)
    with connect(x2go_server, profile, selected) as tunnel:
        assert "X2GO_XSESSION" in Control(tunnel).features()


def test_a_broker_is_tested(broker: Broker) -> None:
    broker.test()


def test_an_unknown_profile_has_no_server(broker: Broker) -> None:
    with pytest.raises(NoServerAvailable, match="no server for the profile 'none'"):
        broker.select("none")


@pytest.mark.parametrize("form", FORMS)
def test_an_authid_stands_for_the_password_and_is_used_once(
    form: str, x2gobroker: X2goBroker
) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return PASSWORD

    url = x2gobroker.url(form)
    with open_broker(url, password=ask) as broker:
        others = x2gobroker.cookies()
        broker.connect()
        given = x2gobroker.cookies() - others
        for _ in range(3):
            broker.list_profiles()
            # A password would have given one more; an authid is taken for another.
            (now,) = x2gobroker.cookies() - others
            assert {now} != given
            given = {now}
        assert asked == [f"Password of {USER} at {url.replace(f'{USER}@', '')}"]
        # As when the broker was reinstalled, or an answer did not arrive.
        x2gobroker.forget_cookies()
        assert "office" in broker.list_profiles()
        assert len(x2gobroker.cookies() - others) == 1
        assert len(asked) == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_password_is_denied(form: str, x2gobroker: X2goBroker) -> None:
    for password in ("sour-secret", None):
        with (
            open_broker(x2gobroker.url(form), password=password) as broker,
            pytest.raises(BrokerDenied, match="denies access to this user") as caught,
        ):
            broker.connect()
        assert "sour-secret" not in str(caught.value)


def test_who_cannot_log_in_by_ssh_gets_the_words_of_that(
    x2gobroker: X2goBroker, x2go_server: X2goServer, tmp_path: Path
) -> None:
    options = {**x2go_server.options, "identity_files": []}
    with (
        open_broker(x2gobroker.ssh_url, ssh=options) as broker,
        pytest.raises(AuthenticationFailed),
    ):
        broker.connect()


def test_a_program_that_is_not_there_is_named(
    x2gobroker: X2goBroker, x2go_server: X2goServer
) -> None:
    url = x2gobroker.ssh_url.replace(str(x2gobroker.program), "/no/x2gobroker")
    with (
        open_broker(url, ssh=x2go_server.options) as broker,
        pytest.raises(BrokerAnswerError, match="there is no /no/x2gobroker at"),
    ):
        broker.connect()


@pytest.mark.parametrize("form", FORMS)
def test_setpass_is_what_x2gobroker_says_yes_to(
    form: str, x2gobroker: X2goBroker
) -> None:
    with open_broker(x2gobroker.url(form), password=PASSWORD) as broker:
        broker.setpass("sweeter-secret")


def test_setpass_by_ssh_would_show_the_password_and_is_refused(
    x2gobroker: X2goBroker, x2go_server: X2goServer
) -> None:
    with (
        open_broker(x2gobroker.ssh_url, ssh=x2go_server.options) as broker,
        pytest.raises(NotSupported, match="command line that everybody"),
    ):
        broker.setpass("sweeter-secret")


@pytest.mark.parametrize("way", ["json", "plain", "ssh"])
def test_a_key_is_exchanged_and_good_for_the_session(
    way: str, x2gobroker: X2goBroker, x2go_server: X2goServer
) -> None:
    """In JSON the client offers one; otherwise the broker makes one."""
    allowed = x2go_server.home / ".x2go/authorized_keys"
    with _opened(way, x2gobroker, x2go_server) as broker:
        profile = broker.list_profiles()["autologin"]
        assert profile.key == "<will-be-exchanged-during-session-selection>"
        selected = broker.select("autologin", login=x2go_server.user)
    assert selected.key_accepted is (way == "json")
    assert selected.private_key is not None
    assert "no-pty" in allowed.read_text()
    with connect(x2go_server, profile, selected) as tunnel:
        assert rtunnel.run_command(tunnel.transport, "id -un").stdout.decode() == (
            f"{x2go_server.user}\n"
        )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["json", "ssh"])
def test_a_suspended_session_is_resumed_where_it_is(
    way: str,
    x2gobroker: X2goBroker,
    x2go_server: X2goServer,
    client_display: Display,
    tmp_path: Path,
) -> None:
    more = {
        "sessions_root": tmp_path,
        "environment": {**os.environ, "DISPLAY": client_display.name},
    }
    options = SessionOptions(command="xclock", link="lan")
    with _opened(way, x2gobroker, x2go_server) as broker:
        profile = broker.list_profiles()["resumable"]
        first = broker.select("resumable", login=x2go_server.user)
        assert first.session is None
        with connect(x2go_server, profile, first) as tunnel:
            terminal = Terminal(Control(tunnel), options, **more)
            name = terminal.start().name
            terminal.suspend()
        selected = broker.select("resumable", login=x2go_server.user)
        assert selected.session is not None
        assert selected.session.name == name
        assert selected.session.is_suspended
        with connect(x2go_server, profile, selected) as tunnel:
            terminal = Terminal.of_listed(
                Control(tunnel), selected.session, options, **more
            )
            terminal.resume()
            assert "xclock" in client_display.windows()
            terminal.terminate()
    x2go_server.end_sessions()


def test_a_profile_whose_servers_are_down_has_none(x2gobroker: X2goBroker) -> None:
    with (
        open_broker(x2gobroker.url("json"), password=PASSWORD) as broker,
        pytest.raises(NoServerAvailable, match="no server of the profile 'down' is up"),
    ):
        broker.select("down")


@pytest.mark.parametrize("form", FORMS)
def test_certificates_are_verified(
    form: str, x2go_server: X2goServer, tmp_path: Path
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    own, other = tmp_path / "own.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(str(own))
    stranger.cert_pem.write_to_path(str(other))
    broker = X2goBroker(x2go_server, certificate=authority.issue_cert("localhost"))
    try:
        broker.start()
        url = broker.url(form, "localhost")
        with open_broker(url, password=PASSWORD, ca_file=own) as trusted:
            assert "office" in trusted.list_profiles()
        for ca_file in (None, other):
            with (
                open_broker(url, password=PASSWORD, ca_file=ca_file) as client,
                pytest.raises(BrokerUnreachable, match=r"not trusted: .* --ca-file"),
            ):
                client.connect()
        with (
            open_broker(broker.url(form), password=PASSWORD, ca_file=own) as client,
            pytest.raises(BrokerUnreachable, match="name that stands in the certif"),
        ):
            client.connect()
        plain = broker.url(form, "localhost").replace("https:", "http:")
        with (
            open_broker(plain, password=PASSWORD) as client,
            pytest.raises((BrokerAnswerError, BrokerUnreachable)),
        ):
            client.connect()
    finally:
        broker.stop()


def test_an_authid_of_the_operator_is_needed_where_the_broker_says_so(
    x2go_server: X2goServer,
) -> None:
    """x2gobroker may want one, and no password."""
    broker = X2goBroker(x2go_server, "require-password=false", "require-cookie=true")
    broker.start()
    try:
        broker.set_authid("b60c3a2f-operator")
        for form in FORMS:
            url = broker.url(form)
            with open_broker(url, authid="b60c3a2f-operator") as client:
                client.connect()
                assert "office" in client.list_profiles()
            with open_broker(url) as client, pytest.raises(BrokerDenied):
                client.connect()
    finally:
        broker.stop()


def test_an_authid_that_stays_the_same_is_used_again(x2go_server: X2goServer) -> None:
    broker = X2goBroker(x2go_server, "use-static-cookie=true")
    broker.start()
    try:
        for form in FORMS:
            with open_broker(broker.url(form), password=PASSWORD) as client:
                client.connect()
                others = broker.cookies()
                for _ in range(2):
                    assert "office" in client.list_profiles()
                assert broker.cookies() == others
    finally:
        broker.stop()


@pytest.mark.parametrize("form", FORMS)
def test_a_broker_that_asks_for_no_password_gets_none(
    form: str, x2go_server: X2goServer
) -> None:
    broker = X2goBroker(x2go_server, "check-credentials=false")
    broker.start()
    try:
        with open_broker(broker.url(form)) as client:
            client.connect()
            assert "office" in client.list_profiles()
            assert client.select("office").server == x2go_server.host
    finally:
        broker.stop()


@pytest.mark.parametrize("way", ["json", "plain", "ssh"])
def test_no_secret_is_logged(
    way: str,
    x2gobroker: X2goBroker,
    x2go_server: X2goServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with _opened(way, x2gobroker, x2go_server) as broker:
        broker.connect()
        broker.list_profiles()
        selected = broker.select("autologin", login=x2go_server.user)
        assert PASSWORD not in f"{broker!r} {broker.url!r} {selected!r}"
        authids = {name.partition("_")[2] for name in x2gobroker.cookies()}
    assert "x2go_session.broker" in {record.name for record in caplog.records}
    for secret in (PASSWORD, "PRIVATE KEY", *authids):
        assert secret not in caplog.text


def _opened(way: str, broker: X2goBroker, server: X2goServer) -> Broker:
    if way == "ssh":
        return open_broker(broker.ssh_url, ssh=server.options)
    return open_broker(broker.url(way), password=PASSWORD)
