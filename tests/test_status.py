"""The status server: health, metrics, JSON and the page, over HTTP on loopback."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as read_metrics

from rtunnel import Transport, Tunnel
from rtunnel.errors import ConfigError
from rtunnel.ssh.vitals import RttMeter
from rtunnel.status import model
from rtunnel.status import server as server_module
from rtunnel.status.model import ProcessStatus, from_json, of_process, of_tunnel
from rtunnel.status.server import MAX_REQUESTS, StatusServer
from tests.support.files import open_files
from tests.support.sshd import Sshd, wait_until
from tests.support.statuses import HOSTILE, STARTED, connection, get, process, row
from tests.support.tunnels import (
    PORT_0,
    Target,
    echo,
    open_transport,
    open_tunnel,
    read_exactly,
    visit,
)

# For what takes milliseconds on a machine that is not busy.
WAIT_S = 30.0

PATHS = ["/", "/page.css", "/page.js", "/metrics", "/healthz", "/readyz", "/status"]

WORKING = process(connection(row()))
BROKEN = process(connection(row(), row("db", "port taken", last_error="no luck")))


@pytest.fixture
def served() -> Iterator[StatusServer]:
    with StatusServer(lambda: WORKING) as server:
        yield server


def samples(port: int) -> dict[str, float]:
    """Return the value of each series of a scrape: `name{label="value"}`."""
    found = {}
    for family in read_metrics(get(port, "/metrics").text):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def drain(conn: socket.socket) -> None:
    while conn.recv(1 << 20):
        pass


def broken() -> ProcessStatus:
    raise RuntimeError("the source is broken")


@pytest.mark.parametrize("path", PATHS)
def test_every_path_answers_and_no_answer_may_be_kept_or_framed(
    served: StatusServer, path: str
) -> None:
    answer = get(served.port, path)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_head_request_has_the_length_and_no_body(served: StatusServer) -> None:
    answer = get(served.port, "/status", method="HEAD")
    assert answer.status == 200
    assert int(answer.headers["content-length"]) > 100
    assert answer.text == ""


def test_an_unknown_path_is_answered_with_those_that_there_are(
    served: StatusServer,
) -> None:
    answer = get(served.port, "/../etc/passwd")
    assert answer.status == 404
    assert "/metrics" in answer.text


def test_nothing_can_be_changed(served: StatusServer) -> None:
    assert get(served.port, "/status", method="POST").status == 501
    assert get(served.port, "/status", method="DELETE").status == 501


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", ""])
def test_a_web_site_cannot_read_it_under_a_name_of_its_own(
    served: StatusServer, host: str
) -> None:
    answer = get(served.port, "/status", Host=host)
    assert answer.status == 421
    assert "home" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]", "[::1]:9"])
def test_this_machine_may_be_asked_under_any_of_its_names(
    served: StatusServer, host: str
) -> None:
    assert get(served.port, "/healthz", Host=host).status == 200


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_other_addresses_than_loopback_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="loopback only"):
        StatusServer(lambda: WORKING, address)


def test_a_port_that_is_taken_is_said_to_be(served: StatusServer) -> None:
    with pytest.raises(ConfigError, match="give another port"):
        StatusServer(lambda: WORKING, "127.0.0.1", served.port)


def test_it_serves_on_the_loopback_of_ipv6_too() -> None:
    with StatusServer(lambda: WORKING, "::1") as server:
        assert server.url == f"http://[::1]:{server.port}/"
        with socket.create_connection(("::1", server.port), 30) as sock:
            sock.sendall(b"GET /healthz HTTP/1.0\r\nHost: [::1]\r\n\r\n")
            assert b" 200 " in sock.makefile("rb").readline()


def test_json_says_all_that_the_model_has(served: StatusServer) -> None:
    answer = get(served.port, "/status")
    assert answer.headers["content-type"] == "application/json"
    assert from_json(json.loads(answer.text)) == WORKING


def test_json_of_something_else_is_refused() -> None:
    for data in ([], {}, {"connections": [{}]}, {"connections": 1}):
        with pytest.raises(ValueError, match="not a status"):
            from_json(data)  # type: ignore[arg-type]


def test_ready_says_what_is_not() -> None:
    with StatusServer(lambda: BROKEN) as server:
        assert get(server.port, "/healthz").status == 200
        answer = get(server.port, "/readyz")
        assert answer.status == 503
        assert answer.text == "not ready\nhome 8080: port taken: no luck\n"


def test_a_connection_that_is_lost_is_not_ready() -> None:
    lost = process(connection(state="waiting", last_error="timed out"))
    with StatusServer(lambda: lost) as server:
        assert (
            get(server.port, "/readyz").text == "not ready\nhome: waiting: timed out\n"
        )


def test_a_process_without_connections_is_ready_only_if_it_says_so() -> None:
    assert not process().ready
    assert of_process("gateway", STARTED, (), ready=True).ready


def test_ready_asks_the_check_when_all_else_is_well() -> None:
    said: list[str] = ["home 8080: nobody answers"]
    with StatusServer(lambda: WORKING, ready_check=lambda: said) as server:
        assert (
            get(server.port, "/readyz").text == "not ready\nhome 8080: nobody answers\n"
        )
        said.clear()
        assert get(server.port, "/readyz").status == 200


def test_a_source_that_fails_is_a_process_that_does_not_work() -> None:
    with StatusServer(broken) as server:
        for path in ("/healthz", "/readyz", "/status", "/metrics"):
            answer = get(server.port, path)
            assert answer.status == 500
            assert "broken" not in answer.text
        assert get(server.port, "/").status == 200


def test_metrics_have_the_figures_of_each_listener() -> None:
    status = process(
        connection(
            row(
                connections_open=2, connections_total=7, refused=1, errors=3,
                bytes_in=10, bytes_out=20, stalled=1,
            ),
            rtt_s=0.25, rtt_best_s=0.125, rekeys=4, reconnects=5,
            cipher="aes128-gcm@openssh.com", backend="engine",
        )
    )  # fmt: skip
    with StatusServer(lambda: status) as server:
        found = samples(server.port)
    listener = '{connection="home",listener="web"}'
    way = '{{connection="home",direction="{}",listener="web"}}'
    assert {
        "rtunnel_ready{}": 1,
        'rtunnel_connection_up{connection="home"}': 1,
        'rtunnel_connection_rtt_seconds{connection="home"}': 0.25,
        'rtunnel_connection_rtt_best_seconds{connection="home"}': 0.125,
        'rtunnel_connection_rekeys_total{connection="home"}': 4,
        'rtunnel_connection_reconnects_total{connection="home"}': 5,
        f"rtunnel_listener_up{listener}": 1,
        f"rtunnel_listener_connections{listener}": 2,
        f"rtunnel_listener_accepted_total{listener}": 7,
        f"rtunnel_listener_refused_total{listener}": 1,
        f"rtunnel_listener_errors_total{listener}": 3,
        f"rtunnel_listener_stalled_connections{listener}": 1,
        f"rtunnel_listener_bytes_total{way.format('in')}": 10,
        f"rtunnel_listener_bytes_total{way.format('out')}": 20,
    }.items() <= found.items()
    assert found["process_open_fds{}"] > 0


def test_metrics_come_in_the_newer_format_to_who_asks_for_it(
    served: StatusServer,
) -> None:
    answer = get(served.port, "/metrics", Accept="application/openmetrics-text")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in read_openmetrics(answer.text)}
    assert "rtunnel_listener_accepted" in names


def test_listeners_of_the_same_name_and_hostile_texts_do_not_break_a_scrape() -> None:
    status = process(connection(row("web"), row("web"), row(HOSTILE)), connection())
    with StatusServer(lambda: status) as server:
        found = samples(server.port)
    assert 'rtunnel_listener_up{connection="home",listener="web#2"}' in found
    assert 'rtunnel_connection_up{connection="home#2"}' in found


def test_a_tunnel_tells_what_it_carries(tunnel: Tunnel) -> None:
    with Target(echo) as target:
        listener = tunnel.listen(PORT_0, to=target.spec, name="web")
        with visit(listener.port) as visitor:
            visitor.sendall(b"x" * 1000)
            read_exactly(visitor, 1000)
            # Asked for with the first look, and answered a moment later.
            wait_until(lambda: of_tunnel("home", tunnel).rtt_s is not None, WAIT_S)
            told = of_tunnel("home", tunnel, destination="user@host")
    assert (told.state, told.backend, told.rekeys) == ("connected", tunnel.backend, 0)
    assert told.cipher == tunnel.transport.remote_cipher  # type: ignore[union-attr]
    assert told.rtt_s is not None
    assert told.rtt_best_s is not None
    assert 0 < told.rtt_best_s <= told.rtt_s < 60
    (shown,) = told.listeners
    assert (shown.name, shown.target, shown.state) == ("web", target.spec, "listening")
    assert shown.bind == f"127.0.0.1:{listener.port}"
    assert (shown.connections_open, shown.connections_total) == (1, 1)
    assert (shown.bytes_in, shown.bytes_out) == (1000, 1000)


def test_key_exchanges_after_the_first_are_counted(
    sshd: Sshd, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTUNNEL_BACKEND", backend)
    transport = open_transport(sshd, Transport)
    with Tunnel(transport) as tunnel:
        assert of_tunnel("home", tunnel).rekeys == 0
        transport.renegotiate_keys()
        wait_until(lambda: of_tunnel("home", tunnel).rekeys == 1, WAIT_S)


def test_a_tunnel_that_is_closed_says_so(tunnel: Tunnel) -> None:
    tunnel.close()
    told = of_tunnel("home", tunnel)
    assert (told.state, told.rtt_s, told.listeners) == ("closed", None, ())


def test_a_visitor_that_does_not_read_is_a_stalled_connection(tunnel: Tunnel) -> None:
    def flood(conn: socket.socket) -> None:
        while True:
            conn.sendall(bytes(65536))

    with Target(flood) as target:
        listener = tunnel.listen(PORT_0, to=target.spec)
        with visit(listener.port):
            # More than window and sockets hold: from then on it waits for the visitor.
            wait_until(lambda: model.of_listener(listener).stalled == 1, WAIT_S)
        wait_until(lambda: model.of_listener(listener).stalled == 0, WAIT_S)


def test_while_data_moves_the_probes_of_the_engine_tell_the_round_trip(
    sshd: Sshd,
) -> None:
    with open_tunnel(sshd, "engine") as tunnel, Target(drain) as target:
        listener = tunnel.listen(PORT_0, to=target.spec)
        assert tunnel.connection.backend.round_trips_s() == (0.0, 0.0)
        with visit(listener.port) as visitor:

            def was_probed() -> bool:
                visitor.sendall(bytes(1_000_000))
                return tunnel.connection.backend.round_trips_s()[0] > 0

            wait_until(was_probed, WAIT_S)
        last_s, best_s = tunnel.connection.backend.round_trips_s()
        assert 0 < best_s <= last_s < 60


def test_a_round_trip_is_of_the_last_measure_and_the_best_is_kept() -> None:
    answers: list[Callable[[], None]] = []
    probes = [(0.0, 0.0)]
    meter = RttMeter(answers.append, lambda: probes[-1])
    assert meter.read_s() == (None, None)
    answers.pop()()
    first_s, best_s = meter.read_s()
    assert first_s == best_s is not None
    # What the engine measures counts as an answer, and is told at once.
    probes.append((0.5, 0.25))
    assert meter.read_s() == (0.5, min(0.25, best_s))
    assert answers == []


def test_who_connects_and_asks_nothing_keeps_nobody_out(served: StatusServer) -> None:
    silent = [visit(served.port) for _ in range(MAX_REQUESTS - 1)]
    try:
        assert get(served.port, "/healthz").status == 200
    finally:
        for sock in silent:
            sock.close()


def test_more_requests_than_it_takes_are_turned_away_and_later_ones_served(
    served: StatusServer,
) -> None:
    silent = [visit(served.port) for _ in range(MAX_REQUESTS)]
    extra = visit(served.port)
    try:
        assert extra.recv(1) == b""
    finally:
        for sock in (extra, *silent):
            sock.close()

    def serves() -> bool:
        try:
            return get(served.port, "/healthz").status == 200
        except OSError:
            return False

    wait_until(serves, WAIT_S)


def test_who_asks_too_slowly_is_cut_off(
    served: StatusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server_module, "SWEEP_S", 0.05)
    with visit(served.port) as slow:

        def is_cut_off() -> bool:
            slow.settimeout(0.01)
            try:
                slow.sendall(b"G")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(is_cut_off, WAIT_S)


def test_closing_frees_the_port_the_thread_and_the_descriptors() -> None:
    before, threads = open_files(), threading.active_count()
    for _ in range(5):
        with StatusServer(lambda: WORKING) as server:
            assert get(server.port, "/healthz").status == 200
        server.close()
    wait_until(lambda: open_files() == before, WAIT_S)
    wait_until(lambda: threading.active_count() == threads, WAIT_S)
