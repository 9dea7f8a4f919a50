"""python-x2go's client with a session broker: Debian's x2gobroker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import x2go_session as x2go
from tests.support.x2go import Display, X2goServer
from tests.support.x2go_programs import Lab, in_lab
from tests.support.x2gobroker import PASSWORD, X2goBroker

pytestmark = pytest.mark.timeout(300)
OFFICE = "Office: Käse & <Co>"


@pytest.fixture(scope="module")
def lab(
    x2go_server: X2goServer,
    client_display: Display,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    yield from in_lab(x2go_server, client_display, tmp_path_factory.mktemp("broker"))


@pytest.fixture
def broker(x2go_server: X2goServer) -> Iterator[X2goBroker]:
    broker = X2goBroker(x2go_server)
    try:
        yield broker.start()
    finally:
        broker.stop()


def test_profiles_and_servers_are_those_of_the_broker(
    lab: Lab, broker: X2goBroker
) -> None:
    key = str(lab.server.user_key)
    with lab.client(broker_url=broker.url(), broker_password=PASSWORD) as client:
        assert OFFICE in client.profile_names
        assert client.get_profile_config("office", "host") == [lab.server.host]
        assert client.get_profile_metatype(OFFICE) == "Single Applications"
        assert client.to_profile_id(OFFICE) == "office"
        with pytest.raises(x2go.X2GoProfileException, match="broker"):
            client.set_profile_config("office", "command", "xclock")
        uuid = client.register_session(profile_name=OFFICE, key_filename=key)
        assert client.connect_session(uuid)
        assert client.list_sessions(uuid) == {}
        down = client.register_session(profile_id="down", key_filename=key)
        with pytest.raises(x2go.X2GoBrokerConnectionException, match="is up"):
            client.connect_session(down)


def test_a_key_of_the_broker_logs_in(lab: Lab, broker: X2goBroker) -> None:
    url = broker.url("json")
    with lab.client(broker_url=url, broker_password=PASSWORD) as client:
        uuid = client.register_session(profile_id="autologin")
        assert client.connect_session(uuid)
        assert client.server_is_alive(uuid)


def test_a_broker_that_is_gone_is_told_to_a_hook_and_another_decides(
    lab: Lab, broker: X2goBroker
) -> None:
    key = str(lab.server.user_key)
    with lab.client(broker_url=broker.url(), broker_password=PASSWORD) as client:
        uuid = client.register_session(profile_name=OFFICE, key_filename=key)
        broker._process.terminate()
        broker._process.wait(30)
        with pytest.raises(x2go.X2GoBrokerConnectionException):
            client.connect_session(uuid)
        client.wait_hook("HOOK_broker_connection_exception")
        client.answers["HOOK_broker_ignore_connection_problems"] = True
        assert client.connect_session(uuid)


def test_a_broker_that_lets_nobody_in_says_so(lab: Lab, broker: X2goBroker) -> None:
    with (
        lab.client(broker_url=broker.url(), broker_password="sour") as client,
        pytest.raises(x2go.X2GoBrokerConnectionException),
    ):
        assert client.profile_names
