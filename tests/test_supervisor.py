"""What a supervisor promised is back by itself; what it need not touch, it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtunnel import Supervisor
from rtunnel.errors import ConfigError
from rtunnel.supervisor import Config, ServerConfig, TunnelConfig
from rtunnel.supervisor.server import HURRIED_GAP_S
from tests.support.link import Link
from tests.support.ports import bound, free_port, listens
from tests.support.sshd import Sshd, wait_until
from tests.support.supervising import (
    PATIENCE_S,
    TomlFile,
    info,
    row,
    server_table,
    wait_ready,
    wait_reconnected,
)
from tests.support.tunnels import (
    Target,
    ask,
    digest,
    echo,
    noise,
    read_all,
    read_end,
    read_exactly,
    say,
    visit,
)


@pytest.fixture
def file(tmp_path: Path) -> TomlFile:
    return TomlFile(tmp_path / "tunnels.toml")


@pytest.fixture
def target() -> Iterator[Target]:
    """A target that says hello."""
    with Target(say(b"hello")) as hello:
        yield hello


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """An sshd that a test may stop."""
    with Sshd(tmp_path / "sshd") as server:
        yield server


def tunnels(to: Target, *ports: int, **more: Any) -> dict[str, Any]:
    """Return tables of tunnels named by their port."""
    return {f"t{port}": {"listen": port, "to": to.spec, **more} for port in ports}


def write(
    file: TomlFile, sshd: Sshd, named: dict[str, Any], port: int | None = None
) -> Path:
    """Write a file with one server, `a`."""
    return file.write(a=server_table(sshd, port, tunnels=named))


# Coming up.


def test_all_tunnels_of_all_servers_listen(
    sshd: Sshd, file: TomlFile, target: Target, tmp_path: Path
) -> None:
    first, second, path = free_port(), free_port(), str(tmp_path / "s")
    file.write(
        a=server_table(sshd, tunnels={"unix": {"listen": path, "to": target.spec}}),
        b=server_table(sshd, tunnels=tunnels(target, first, second)),
    )
    with Supervisor(file.path) as supervisor:
        wait_ready(supervisor)
        assert [ask(first), ask(second)] == [b"hello"] * 2
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            assert read_all(sock) == b"hello"
        status = supervisor.status()
        assert (status.kind, status.ready) == ("run", True)
        assert [each.name for each in status.connections] == ["a", "b"]
        assert supervisor.summary() == "3 of 3 tunnels listen"
    assert not listens(first)
    assert supervisor.wait(0)


def test_a_configuration_of_code_is_kept_as_one_of_a_file(
    sshd: Sshd, target: Target
) -> None:
    table = server_table(sshd)
    del table["retry"]
    table["identity_files"] = tuple(table["identity_files"])
    web = TunnelConfig(listen=("127.0.0.1", free_port()), to=target.spec)
    edge = ServerConfig(**table, tunnels={"web": web})
    with Supervisor(Config(servers={"a": edge})) as supervisor:
        wait_ready(supervisor)
        other = TunnelConfig(listen=free_port(), to=target.spec)
        edge = ServerConfig(**table, tunnels={"web": other})
        supervisor.apply(Config(servers={"a": edge}))
        wait_ready(supervisor)
        assert ask(other.listen.port) == b"hello"
        with pytest.raises(ConfigError, match="no file"):
            supervisor.reload()


def test_the_rules_and_services_of_the_file_are_those_of_the_listeners(
    sshd: Sshd, file: TomlFile, target: Target, tmp_path: Path
) -> None:
    denied, folder = free_port(), free_port()
    (tmp_path / "page.txt").write_text("a page")
    named = {
        "denied": {"listen": denied, "to": target.spec, "deny": ["127.0.0.0/8", "::1"]},
        "folder": {"listen": folder, "to": f"folder:{tmp_path}"},
    }
    with Supervisor(write(file, sshd, named)) as supervisor:
        wait_ready(supervisor)
        with visit(denied) as sock:
            assert not read_end(sock)
        wait_until(lambda: row(supervisor, "denied").refused == 1)
        with visit(folder) as sock:
            sock.sendall(b"GET /page.txt HTTP/1.0\r\n\r\n")
            assert read_all(sock).endswith(b"a page")


def test_a_function_may_serve_the_visitors_of_a_tunnel_of_code(sshd: Sshd) -> None:
    def greet(conn: socket.socket) -> None:
        conn.sendall(b"from a function")

    table = server_table(sshd)
    del table["retry"]
    table["identity_files"] = tuple(table["identity_files"])
    web = TunnelConfig(listen=free_port(), to=greet)
    edge = ServerConfig(**table, tunnels={"web": web})
    with Supervisor(Config(servers={"a": edge})) as supervisor:
        wait_ready(supervisor)
        assert ask(web.listen.port) == b"from a function"
        assert row(supervisor, "web").target.endswith("greet()")


def test_a_port_that_the_server_chose_is_shown_and_kept_if_it_can_be(
    own_sshd: Sshd, file: TomlFile, target: Target
) -> None:
    named = {"any": {"listen": "127.0.0.1:0", "to": target.spec}}
    with Supervisor(write(file, own_sshd, named)) as supervisor:
        wait_ready(supervisor)
        first = chosen_port(supervisor)
        assert ask(first) == b"hello"
        own_sshd.kill_sessions()
        wait_reconnected(supervisor, 1)
        assert chosen_port(supervisor) == first
        assert ask(first) == b"hello"
        own_sshd.stop()
        wait_until(lambda: info(supervisor).state != "connected", PATIENCE_S)
        wait_until(lambda: not bound(first), PATIENCE_S)
        with socket.create_server(("127.0.0.1", first)):
            own_sshd.start()
            wait_reconnected(supervisor, 2)
            assert chosen_port(supervisor) != first
            assert ask(chosen_port(supervisor)) == b"hello"


def chosen_port(supervisor: Supervisor) -> int:
    return int(row(supervisor, "any").bind.rpartition(":")[2])


def test_a_server_that_is_down_is_tried_until_it_is_up(
    own_sshd: Sshd, file: TomlFile, target: Target
) -> None:
    port = free_port()
    own_sshd.stop()
    with Supervisor(write(file, own_sshd, tunnels(target, port))) as supervisor:
        assert supervisor.wait_settled(PATIENCE_S)
        wait_until(lambda: "refused" in str(info(supervisor).last_error))
        assert not supervisor.status().ready
        assert supervisor.summary() == "0 of 1 tunnels listen; not connected: a"
        own_sshd.start()
        wait_ready(supervisor)
        assert ask(port) == b"hello"


# Coming back.


def test_a_killed_connection_is_back_with_all_of_its_tunnels(
    own_sshd: Sshd, file: TomlFile, target: Target
) -> None:
    ports = [free_port() for _ in range(3)]
    with Supervisor(write(file, own_sshd, tunnels(target, *ports))) as supervisor:
        wait_ready(supervisor)
        for killed in range(1, 4):
            own_sshd.kill_sessions()
            wait_reconnected(supervisor, killed)
            assert [ask(port) for port in ports] == [b"hello"] * 3
        # What was counted before is not forgotten.
        assert row(supervisor, f"t{ports[0]}").connections_total == 3
        assert row(supervisor, f"t{ports[0]}").bytes_out == 3 * len(b"hello")


def test_a_server_that_is_started_again_has_its_tunnels_again(
    own_sshd: Sshd, file: TomlFile, target: Target
) -> None:
    port = free_port()
    with Supervisor(write(file, own_sshd, tunnels(target, port))) as supervisor:
        wait_ready(supervisor)
        own_sshd.stop()
        wait_until(lambda: info(supervisor).state != "connected", PATIENCE_S)
        own_sshd.start()
        wait_reconnected(supervisor, 1)
        assert ask(port) == b"hello"


def test_a_link_that_is_a_black_hole_is_noticed_and_the_held_port_waited_for(
    own_sshd: Sshd, file: TomlFile, target: Target
) -> None:
    port = free_port()
    with Link(own_sshd.port) as link:
        table = server_table(own_sshd, link.port, tunnels=tunnels(target, port))
        table |= {"keepalive_interval_s": 0.2, "keepalive_count_max": 3}
        with Supervisor(file.write(a=table)) as supervisor:
            wait_ready(supervisor)
            dead = own_sshd.sessions()
            link.freeze_those_that_stand()
            wait_until(lambda: info(supervisor).reconnects > 0, PATIENCE_S)
            # The server does not know yet that the first one is dead.
            wait_until(
                lambda: row(supervisor, f"t{port}").state == "port taken", PATIENCE_S
            )
            for pid in dead:  # as after ClientAliveInterval x ClientAliveCountMax
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_ready(supervisor)
            assert ask(port) == b"hello"


def test_closing_does_not_wait_for_a_server_that_is_silent(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    port = free_port()
    with Link(sshd.port) as link:
        supervisor = Supervisor(write(file, sshd, tunnels(target, port), link.port))
        with supervisor:
            wait_ready(supervisor)
            link.freeze()
        # Keepalives (45 s) and the cancel of a forward (10 s) would take longer.
        assert supervisor.wait(0)


# What one tunnel has to do with another.


def test_a_port_that_is_taken_is_waited_for_while_the_others_listen(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        waits = {"listen": f"127.0.0.1:{port}", "to": target.spec}
        named = tunnels(target, free) | {"waits": waits}
        with Supervisor(write(file, sshd, named)) as supervisor:
            wait_until(
                lambda: row(supervisor, "waits").state == "port taken", PATIENCE_S
            )
            assert "in use" in str(row(supervisor, "waits").last_error)
            assert ask(free) == b"hello"
            assert not supervisor.status().ready
            taken.close()
            wait_ready(supervisor)
            assert ask(port) == b"hello"
            assert info(supervisor).reconnects == 0


def test_a_port_that_is_forbidden_is_refused_while_the_others_listen(
    tmp_path: Path, file: TomlFile, target: Target
) -> None:
    free, forbidden = free_port(), free_port()
    with Sshd(tmp_path / "sshd", f"PermitListen localhost:{free}") as sshd:
        named = tunnels(target, free, forbidden)
        with Supervisor(write(file, sshd, named)) as supervisor:
            wait_until(
                lambda: row(supervisor, f"t{forbidden}").state == "refused", PATIENCE_S
            )
            assert "PermitListen" in str(row(supervisor, f"t{forbidden}").last_error)
            wait_until(lambda: row(supervisor, f"t{free}").state == "listening")
            assert ask(free) == b"hello"


# Logins that fail.


@pytest.mark.parametrize("wrong", ["key", "host key"])
def test_a_login_that_fails_is_not_tried_again_and_again(
    sshd: Sshd, file: TomlFile, target: Target, tmp_path: Path, wrong: str
) -> None:
    other = Sshd(tmp_path / "other")  # never started: for its keys
    with Link(sshd.port) as link:
        table = server_table(sshd, link.port, tunnels=tunnels(target, free_port()))
        if wrong == "key":
            table["identity_files"] = [str(other.user_key)]
        else:
            table["known_hosts"] = str(other.login.by(link.port).known_hosts)
        with Supervisor(file.write(a=table), watch=False) as supervisor:
            began = time.monotonic()
            assert supervisor.wait_settled(PATIENCE_S)
            assert info(supervisor).state == "waiting"
            # Not even if it is told to reload the whole time.
            for _ in range(50):
                supervisor.reload()
            assert link.taken <= 1 + (time.monotonic() - began) / HURRIED_GAP_S
        assert wrong in str(info(supervisor).last_error)


def test_many_servers_of_one_address_log_in_a_few_at_a_time(
    tmp_path: Path, file: TomlFile, target: Target
) -> None:
    # It drops whoever is the tenth that has not logged in yet.
    with Sshd(tmp_path / "sshd", "MaxStartups 10:100:10") as sshd:
        servers = {
            f"s{number}": server_table(sshd, tunnels=tunnels(target, free_port()))
            for number in range(20)
        }
        with Supervisor(file.write(**servers)) as supervisor:
            wait_ready(supervisor)
        assert "drop connection" not in sshd.log.read_text()


# Reload.


def test_what_changed_in_the_file_is_taken_over_by_itself(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    stays, goes, comes = free_port(), free_port(), free_port()
    write(file, sshd, tunnels(target, stays, goes))
    with Supervisor(file.path) as supervisor:
        wait_ready(supervisor)
        write(file, sshd, tunnels(target, stays, comes))
        wait_until(lambda: listens(comes) and not listens(goes), PATIENCE_S)
        wait_ready(supervisor)
        assert [ask(stays), ask(comes)] == [b"hello"] * 2
        assert info(supervisor).reconnects == 0


def test_a_symbolic_link_that_leads_elsewhere_is_a_change(
    sshd: Sshd, tmp_path: Path, target: Target
) -> None:
    # As configuration management and Kubernetes put files in place.
    old, new = free_port(), free_port()
    for name, port in (("one", old), ("two", new)):
        (tmp_path / name).mkdir()
        write(TomlFile(tmp_path / name / "t.toml"), sshd, tunnels(target, port))
    current = tmp_path / "current"
    current.symlink_to("one")
    (tmp_path / "t.toml").symlink_to("current/t.toml")
    with Supervisor(tmp_path / "t.toml") as supervisor:
        wait_ready(supervisor)
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").replace(current)
        wait_until(lambda: listens(new) and not listens(old), PATIENCE_S)


def test_a_file_with_a_mistake_changes_nothing(
    sshd: Sshd, file: TomlFile, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    good = write(file, sshd, tunnels(target, port)).read_text()
    with Supervisor(file.path) as supervisor:
        wait_ready(supervisor)
        with visit(port) as sock:
            file.write_text(good + 'lissten = "1"\n')
            wait_until(lambda: "did you mean listen?" in caplog.text, PATIENCE_S)
            with pytest.raises(ConfigError, match="did you mean listen"):
                supervisor.reload()
            assert read_all(sock) == b"hello"
        file.path.unlink()
        with pytest.raises(ConfigError, match="No such file"):
            supervisor.reload()
        assert ask(port) == b"hello"


def test_a_port_moves_from_one_tunnel_or_server_to_another(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    port = free_port()
    with (
        Target(say(b"other")) as other,
        Supervisor(
            file.write(
                a=server_table(sshd, tunnels=tunnels(target, port)),
                b=server_table(sshd),
            ),
            watch=False,
        ) as supervisor,
    ):
        wait_ready(supervisor)
        assert ask(port) == b"hello"
        renamed = {"renamed": {"listen": port, "to": other.spec}}
        file.write(a=server_table(sshd, tunnels=renamed), b=server_table(sshd))
        supervisor.reload()
        wait_ready(supervisor)
        assert ask(port) == b"other"
        file.write(a=server_table(sshd), b=server_table(sshd, tunnels=renamed))
        supervisor.reload()
        wait_ready(supervisor)
        assert ask(port) == b"other"
        file.write(c=server_table(sshd, tunnels=tunnels(target, port)))
        supervisor.reload()
        wait_ready(supervisor)
        assert ask(port) == b"hello"
        assert row(supervisor, f"t{port}", "c").state == "listening"


def test_a_port_that_moves_is_not_waited_for_as_one_that_is_taken(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    ports = [free_port() for _ in range(20)]
    slow = {"port_taken_first_s": 3600, "port_taken_max_s": 3600}
    # An address: for "localhost" sshd is content with the port on ::1 alone, while the
    # other connection still has it on 127.0.0.1.
    moving = {
        f"t{port}": {"listen": f"127.0.0.1:{port}", "to": target.spec} for port in ports
    }
    first = server_table(sshd, retry=slow, tunnels=moving)
    second = server_table(sshd, retry=slow)
    file.write(a=first, b=second)
    with Supervisor(file.path, watch=False) as supervisor:
        for _ in range(4):
            wait_ready(supervisor)
            assert [ask(port) for port in ports] == [b"hello"] * 20
            first["tunnels"], second["tunnels"] = (
                second.get("tunnels", {}),
                first["tunnels"],
            )
            file.write(a=first, b=second)
            supervisor.reload()
        wait_ready(supervisor)


def test_another_way_to_the_server_is_another_connection(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    port = free_port()
    write(file, sshd, tunnels(target, port))
    with Link(sshd.port) as link, Supervisor(file.path, watch=False) as supervisor:
        wait_ready(supervisor)
        write(file, sshd, tunnels(target, port), link.port)
        supervisor.reload()
        wait_ready(supervisor)
        assert ask(port) == b"hello"
        assert link.taken == 1


@contextlib.contextmanager
def streaming(port: int) -> Iterator[list[str]]:
    """Send noise through an echo beside the block; the list gets what was wrong."""
    wrong: list[str] = []
    over = threading.Event()

    def stream() -> None:
        try:
            with visit(port) as sock:
                while not over.is_set():
                    sent = noise(200_000)
                    sender = threading.Thread(target=sock.sendall, args=(sent,))
                    sender.start()
                    if digest(read_exactly(sock, len(sent))) != digest(sent):
                        wrong.append("other bytes came back")
                    sender.join(PATIENCE_S)
        except Exception as error:
            wrong.append(repr(error))

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        yield wrong
    finally:
        over.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_storm_of_reloads_leaves_live_connections_as_they_are(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    stays, other = free_port(), free_port()
    with Target(echo) as echoing:
        kept = {"kept": {"listen": stays, "to": echoing.spec}}
        changing = [
            kept | tunnels(target, other),
            kept,
            kept | tunnels(target, other, priority="bulk"),
            kept | tunnels(echoing, other),
        ]
        write(file, sshd, changing[0])
        with Supervisor(file.path, watch=False) as supervisor:
            wait_ready(supervisor)
            with streaming(stays) as wrong:
                for number in range(100):
                    write(file, sshd, changing[number % len(changing)])
                    supervisor.reload()
            assert wrong == []
            write(file, sshd, changing[0])
            supervisor.reload()
            wait_ready(supervisor)
            assert ask(other) == b"hello"
            assert info(supervisor).reconnects == 0
            assert row(supervisor, "kept").connections_total == 1


def test_reloads_from_many_threads_end_with_what_the_file_says(
    sshd: Sshd, file: TomlFile, target: Target
) -> None:
    ports = [free_port() for _ in range(4)]
    write(file, sshd, tunnels(target, ports[0]))
    with Supervisor(file.path) as supervisor:
        wait_ready(supervisor)

        def reload_often() -> None:
            for _ in range(20):
                supervisor.reload()
                supervisor.reload_soon()

        threads = [threading.Thread(target=reload_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        for port in ports:
            write(file, sshd, tunnels(target, port))
        for thread in threads:
            thread.join(PATIENCE_S)
        wait_until(
            lambda: [listens(port) for port in ports] == [False] * 3 + [True],
            PATIENCE_S,
        )
