"""What serves visitors without a target: SOCKS, folders, commands, applications."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rtunnel import Tunnel
from rtunnel.errors import ConfigError, InvalidAddress
from rtunnel.tunnel import execute
from tests.support.curl import GOT_NOTHING, PROXY_ERROR, RECEIVE_ERROR, curl
from tests.support.ports import free_port
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import (
    PORT_0,
    TIMEOUT_S,
    Target,
    ask,
    background,
    echo,
    noise,
    open_tunnel,
    read_all,
    read_end,
    read_exactly,
    reset,
    send_and_end,
    visit,
)

MIB = 1024 * 1024


def serve_page(conn: socket.socket) -> None:
    """Answer one request of HTTP."""
    with suppress(ConnectionResetError):
        while b"\r\n\r\n" not in conn.recv(65536):
            pass
    conn.sendall(b"HTTP/1.0 200 OK\r\n\r\na page\n")


# SOCKS.


@pytest.fixture
def page() -> Iterator[Target]:
    with Target(serve_page) as target:
        yield target


@pytest.mark.parametrize("version", ["4", "4a", "5", "5-hostname"])
def test_a_socks_client_of_any_version_reaches_what_it_asks_for(
    tunnel: Tunnel, page: Target, version: str
) -> None:
    listener = tunnel.listen(PORT_0, "socks")
    host = "localhost" if version in ("4a", "5-hostname") else "127.0.0.1"
    proxy = f"--socks{version}"
    answer = curl(proxy, f"127.0.0.1:{listener.port}", f"http://{host}:{page.port}/")
    assert (answer.status, answer.body) == (0, b"a page\n"), answer.errors
    wait_until(lambda: listener.stats().connections_open == 0)
    assert listener.stats().errors == 0


def ask_for(port: int, host: bytes, target_port: int) -> socket.socket:
    """Ask a SOCKS proxy, version 5, for a host by name; nothing is read yet."""
    sock = visit(port)
    place = bytes([len(host)]) + host + target_port.to_bytes(2, "big")
    sock.sendall(b"\5\1\0" + b"\5\1\0\3" + place)
    assert read_exactly(sock, 2) == b"\5\0"
    return sock


def test_socks_carries_bytes_both_ways_and_each_end_by_itself(tunnel: Tunnel) -> None:
    data = noise(3 * MIB)
    with Target(echo) as target:
        listener = tunnel.listen(PORT_0, "socks")
        with ask_for(listener.port, b"127.0.0.1", target.port) as sock:
            assert read_exactly(sock, 10)[:2] == b"\5\0"
            with background(send_and_end, sock, data):
                assert read_all(sock) == data
        wait_until(lambda: listener.stats().connections_open == 0)


def test_what_is_sent_right_behind_a_socks_request_arrives(tunnel: Tunnel) -> None:
    with Target(echo) as target:
        listener = tunnel.listen(PORT_0, "socks")
        with ask_for(listener.port, b"127.0.0.1", target.port) as sock:
            send_and_end(sock, b"early")
            assert read_all(sock)[10:] == b"early"


def test_socks_says_that_a_target_refuses(tunnel: Tunnel) -> None:
    dead = free_port()
    listener = tunnel.listen(PORT_0, "socks")
    with ask_for(listener.port, b"127.0.0.1", dead) as sock:
        assert read_all(sock)[:2] == b"\5\5"  # connection refused
    assert listener.stats().errors == 1
    assert f"cannot connect to 127.0.0.1:{dead}" in str(listener.stats().last_error)
    wait_until(lambda: listener.stats().connections_open == 0)


def test_socks_says_that_a_host_does_not_exist(tunnel: Tunnel) -> None:
    listener = tunnel.listen(PORT_0, "socks")
    with ask_for(listener.port, b"no-such-host.invalid", 80) as sock:
        assert read_all(sock)[:2] == b"\5\4"  # host unreachable


def test_socks_dials_only_what_is_permitted(tunnel: Tunnel, page: Target) -> None:
    listener = tunnel.listen(PORT_0, "socks", permit_open=[f"localhost:{page.port}"])
    proxy = ("--socks5-hostname", f"127.0.0.1:{listener.port}")
    assert curl(*proxy, f"http://localhost:{page.port}/").body == b"a page\n"
    answer = curl(*proxy, f"http://127.0.0.1:{page.port}/")
    assert answer.status == PROXY_ERROR
    assert "(2)" in answer.errors or "not allowed" in answer.errors, answer.errors
    assert page.accepted == 1
    assert "permit_open does not allow" in str(listener.stats().last_error)


def test_a_visitor_who_does_not_speak_socks_is_closed(tunnel: Tunnel) -> None:
    listener = tunnel.listen(PORT_0, "socks")
    answer = curl(f"http://127.0.0.1:{listener.port}/")
    assert answer.status in (GOT_NOTHING, RECEIVE_ERROR)
    wait_until(lambda: listener.stats().connections_open == 0)
    assert listener.stats().last_error == "SOCKS: the visitor does not speak SOCKS"


def test_a_target_behind_socks_that_resets_ends_the_visitor(tunnel: Tunnel) -> None:
    def serve(conn: socket.socket) -> None:
        read_exactly(conn, 1)
        reset(conn)

    with Target(serve) as target:
        listener = tunnel.listen(PORT_0, "socks")
        with ask_for(listener.port, b"127.0.0.1", target.port) as sock:
            read_exactly(sock, 10)
            sock.sendall(b"x")
            assert read_end(sock) in (b"", None)
        wait_until(lambda: listener.stats().connections_open == 0)


def test_pausing_a_socks_listener_ends_its_targets_connections(tunnel: Tunnel) -> None:
    ended = threading.Event()

    def serve(conn: socket.socket) -> None:
        read_end(conn)
        ended.set()

    with Target(serve) as target:
        listener = tunnel.listen(PORT_0, "socks")
        with ask_for(listener.port, b"127.0.0.1", target.port) as sock:
            read_exactly(sock, 10)
            listener.pause()
            assert ended.wait(TIMEOUT_S)


def test_socks_needs_no_compiled_module(
    sshd: Sshd, page: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rtunnel._pump", None)
    with open_tunnel(sshd, "python") as tunnel:
        proxy = f"127.0.0.1:{tunnel.listen(PORT_0, 'socks').port}"
        answer = curl("--socks5-hostname", proxy, f"http://localhost:{page.port}/")
        assert answer.body == b"a page\n", answer.errors


# Folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "www"
    (root / "sub").mkdir(parents=True)
    (root / "a page.txt").write_text("a page")
    (root / "sub" / "index.html").write_text("<p>index")
    (root / ".env").write_text("SECRET=1")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    (root / "outside.txt").symlink_to("../outside.txt")
    (root / "inside.txt").symlink_to("a page.txt")
    (root / "env.txt").symlink_to(".env")
    (root / "linked").mkdir()
    (root / "linked" / "index.html").symlink_to("../../outside.txt")
    os.mkfifo(root / "pipe")
    return root


def fetch(port: int, path: str, *arguments: str) -> tuple[str, bytes]:
    """Return status and content of a path."""
    url = f"http://127.0.0.1:{port}{path}"
    flags = ("--path-as-is", "--write-out", "\n%{http_code}")
    content, _, status = curl(*flags, *arguments, url).body.rpartition(b"\n")
    return status.decode(), content


def test_the_files_of_a_folder_are_served_by_http(tunnel: Tunnel, folder: Path) -> None:
    (folder / "large").write_bytes(large := noise(2 * MIB))
    port = tunnel.listen(PORT_0, f"folder:{folder}").port
    assert fetch(port, "/a%20page.txt") == ("200", b"a page")
    assert fetch(port, "/inside.txt?x=1") == ("200", b"a page")
    assert fetch(port, "/sub/") == ("200", b"<p>index")
    assert fetch(port, "/sub", "--location") == ("200", b"<p>index")
    assert fetch(port, "/large") == ("200", large)
    assert fetch(port, "/none")[0] == "404"
    assert fetch(port, "/a%20page.txt", "--data", "x")[0] == "501"


@pytest.mark.parametrize(
    "path",
    [
        "/../outside.txt",
        "/sub/../../outside.txt",
        "/%2e%2e/outside.txt",
        "//../outside.txt",
        "/outside.txt",
        "/.env",
        "/%2eenv",
        "/env.txt",
        "/.git/config",
        "/.git/",
        "/linked/",
        "/pipe",
        "/a%00b",
    ],
)
def test_nothing_outside_of_a_folder_and_nothing_hidden_is_served(
    sshd: Sshd, folder: Path, path: str
) -> None:
    with open_tunnel(sshd, "engine") as tunnel:
        status, content = fetch(tunnel.listen(PORT_0, f"folder:{folder}").port, path)
    assert status == "404"
    assert b"secret" not in content.lower()


def test_a_folder_without_an_index_is_listed_as_far_as_it_is_served(
    sshd: Sshd, folder: Path
) -> None:
    (folder / "<b>").write_text("")
    with open_tunnel(sshd, "engine") as tunnel:
        port = tunnel.listen(PORT_0, f"folder:{folder}").port
        status, content = fetch(port, "/")
        page = content.decode()
        assert status == "200"
        assert 'href="./a%20page.txt"' in page
        assert "&lt;b&gt;" in page
        assert "<b>" not in page
        assert "sub/" in page
        for name in (".env", "git", "outside", "env.txt", "pipe"):
            assert name not in page


def test_a_connection_serves_several_requests_of_a_folder(
    tunnel: Tunnel, folder: Path
) -> None:
    listener = tunnel.listen(PORT_0, f"folder:{folder}")
    url = f"http://127.0.0.1:{listener.port}/a%20page.txt"
    assert curl(url, url, url).body == b"a page" * 3
    assert listener.stats().connections_total == 1


def test_a_folder_that_is_not_there_is_an_error_at_once(tunnel: Tunnel) -> None:
    with pytest.raises(ConfigError, match="cannot serve the folder '/nowhere'"):
        tunnel.listen(PORT_0, "folder:/nowhere")
    assert tunnel.listeners == []


# Commands.


def test_a_command_has_the_visitor_as_stdin_and_stdout(tunnel: Tunnel) -> None:
    data = noise(MIB)
    listener = tunnel.listen(PORT_0, "exec:cat")
    with visit(listener.port) as sock, background(send_and_end, sock, data):
        assert read_all(sock) == data
    wait_until(lambda: listener.stats().connections_open == 0)


def test_each_visitor_gets_a_command_that_knows_who_it_is(tunnel: Tunnel) -> None:
    listener = tunnel.listen(PORT_0, 'exec:read x; echo "$x $REMOTE_ADDR $REMOTE_PORT"')
    for word in (b"one", b"two"):
        with visit(listener.port) as sock:
            own_port = sock.getsockname()[1]
            sock.sendall(word + b"\n")
            assert read_all(sock) == word + b" 127.0.0.1 %d\n" % own_port


def test_a_command_that_cannot_be_run_ends_its_connection(
    tunnel: Tunnel, capfd: pytest.CaptureFixture[str]
) -> None:
    listener = tunnel.listen(PORT_0, "exec:/nowhere/command")
    assert ask(listener.port) == b""
    wait_until(lambda: listener.stats().connections_open == 0)
    assert "/nowhere/command" in capfd.readouterr().err  # the shell says so


def lives(pid: int) -> bool:
    """Say whether a process runs: one that ended may wait for somebody to notice."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


def test_a_command_ends_with_all_it_started_when_its_connection_is_reset(
    tunnel: Tunnel,
) -> None:
    listener = tunnel.listen(PORT_0, "exec:sleep 1000 & echo $! $$; sleep 1000")
    with visit(listener.port) as sock, sock.makefile("rb") as stream:
        pids = [int(word) for word in stream.readline().split()]
        assert all(map(lives, pids))
        listener.pause()
        wait_until(lambda: not any(map(lives, pids)))


def test_a_command_that_does_not_want_to_end_is_killed(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "KILL_AFTER_S", 0.1)
    with open_tunnel(sshd, "engine") as tunnel:
        spec = "exec:trap '' TERM; echo $$; while true; do sleep 0.05; done"
        listener = tunnel.listen(PORT_0, spec)
        with visit(listener.port) as sock, sock.makefile("rb") as stream:
            pid = int(stream.readline())
            listener.pause()
            wait_until(lambda: not lives(pid))


def test_no_command_is_left_when_the_tunnel_is_closed(sshd: Sshd, backend: str) -> None:
    with open_tunnel(sshd, backend) as tunnel:
        listener = tunnel.listen(PORT_0, "exec:echo $$; exec sleep 1000")
        with visit(listener.port) as sock, sock.makefile("rb") as stream:
            pid = int(stream.readline())
            tunnel.close()
            wait_until(lambda: not lives(pid))


def test_no_file_is_left_to_a_command_but_its_own(sshd: Sshd, backend: str) -> None:
    with open_tunnel(sshd, backend) as tunnel, Target(echo) as target:
        other = tunnel.listen(PORT_0, target.spec)
        with visit(other.port):
            wait_until(lambda: other.stats().connections_open == 1)
            files = ask(tunnel.listen(PORT_0, "exec:ls /proc/self/fd").port)
    # The fourth is the folder that ls reads.
    assert files.split() == [b"0", b"1", b"2", b"3"]


# Applications.


APPS = """
import os

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                open(os.environ["ENDED_FILE"], "w").close()
                return
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    client = "%s:%d" % tuple(scope["client"])
    port = str(scope["server"][1])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    text = f"{scope['path']} {len(body)} {client} {port}"
    await send({"type": "http.response.body", "body": text.encode()})

class Wsgi:
    def __call__(self, environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield environ["REMOTE_ADDR"].encode()
        yield environ["PATH_INFO"].encode()

wsgi = Wsgi()

async def does_not_start(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})

number = 5
"""


@pytest.fixture
def apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Applications in the current folder; returns what is there when one has ended."""
    (tmp_path / "some_apps.py").write_text(APPS)
    ended = tmp_path / "ended"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENDED_FILE", str(ended))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield ended
    sys.modules.pop("some_apps", None)


def test_an_asgi_application_serves_a_port(tunnel: Tunnel, apps: Path) -> None:
    listener = tunnel.listen(PORT_0, "app:some_apps:asgi")
    url = f"http://127.0.0.1:{listener.port}/a/path"
    path, count, client, port = curl("--data", "x" * 1000, url).body.decode().split()
    assert (path, count, port) == ("/a/path", "1000", str(listener.port))
    assert client.startswith("127.0.0.1:")
    listener.close()
    wait_until(apps.exists)


def test_a_wsgi_application_serves_a_port(tunnel: Tunnel, apps: Path) -> None:
    port = tunnel.listen(PORT_0, "app:some_apps:wsgi").port
    assert curl(f"http://127.0.0.1:{port}/path").body == b"127.0.0.1/path"


def test_the_threads_of_an_application_end_with_its_tunnel(
    sshd: Sshd, backend: str, apps: Path
) -> None:
    before = set(threading.enumerate())
    with open_tunnel(sshd, backend) as tunnel:
        port = tunnel.listen(PORT_0, "app:some_apps:asgi").port
        with visit(port) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_exactly(sock, 12) == b"HTTP/1.1 200"
            tunnel.close()
    wait_until(lambda: set(threading.enumerate()) <= before)
    assert apps.exists()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("app:no_such_module:app", "ModuleNotFoundError"),
        ("app:some_apps:nothing", "has no attribute 'nothing'"),
        ("app:some_apps:number", "cannot be called"),
        ("app:some_apps:does_not_start", "does not start"),
    ],
)
def test_an_application_that_cannot_serve_is_an_error_at_once(
    sshd: Sshd, apps: Path, spec: str, says: str
) -> None:
    with open_tunnel(sshd, "engine") as tunnel:
        with pytest.raises(ConfigError, match=says):
            tunnel.listen(PORT_0, spec)
        assert tunnel.listeners == []


@pytest.mark.parametrize(
    ("missing", "spec"),
    [("uvicorn", "app:some_apps:asgi"), ("a2wsgi", "app:some_apps:wsgi")],
)
def test_what_is_not_installed_is_named_with_how_to_get_it(
    sshd: Sshd, apps: Path, monkeypatch: pytest.MonkeyPatch, missing: str, spec: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with (
        open_tunnel(sshd, "engine") as tunnel,
        pytest.raises(ConfigError, match=rf"{missing}.*pip install 'rtunnel\[app\]'"),
    ):
        tunnel.listen(PORT_0, spec)


# All of them.


@pytest.mark.parametrize(
    ("spec", "rules", "says"),
    [
        ("socks", {"proxy_protocol": 1}, "proxy_protocol is for targets"),
        ("exec:true", {"proxy_protocol": 2}, "proxy_protocol is for targets"),
        ("localhost:80", {"permit_open": ["a:1"]}, "permit_open is for `socks`"),
        (echo, {"permit_open": ["a:1"]}, "permit_open is for `socks`"),
        (None, {"proxy_protocol": 1}, "proxy_protocol is for targets"),
    ],
)
def test_a_rule_that_a_handler_has_no_use_for_is_refused(
    sshd: Sshd, spec: object, rules: dict[str, object], says: str
) -> None:
    with (
        open_tunnel(sshd, "engine") as tunnel,
        pytest.raises(ValueError, match=says),
    ):
        tunnel.listen(PORT_0, spec, **rules)  # type: ignore[arg-type]


def test_a_service_cannot_be_dialled(tunnel: Tunnel) -> None:
    with pytest.raises(InvalidAddress):
        tunnel.dial("socks")
