"""Addresses are read as ssh(1) reads them, and written so that they read back."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtunnel.addresses import (
    Bind,
    Destination,
    Target,
    TcpBind,
    TcpTarget,
    UnixBind,
    UnixTarget,
    format_forward,
    parse_bind,
    parse_destination,
    parse_forward,
    parse_target,
)
from rtunnel.errors import InvalidAddress
from rtunnel.services import (
    AppService,
    ExecService,
    FolderService,
    Service,
    SocksService,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web", Destination(None, "web", None)),
        ("web:2222", Destination(None, "web", 2222)),
        ("me@web", Destination("me", "web", None)),
        ("me@web:22", Destination("me", "web", 22)),
        ("me@corp.example@web", Destination("me@corp.example", "web", None)),
        ("DOMAIN\\me@web", Destination("DOMAIN\\me", "web", None)),
        ("::1", Destination(None, "::1", None)),
        ("me@fe80::1%eth0", Destination("me", "fe80::1%eth0", None)),
        ("[::1]", Destination(None, "::1", None)),
        ("me@[::1]:22", Destination("me", "::1", 22)),
        ("ssh://web", Destination(None, "web", None)),
        ("ssh://me@web:22/", Destination("me", "web", 22)),
        ("SSH://me%40corp@[::1]:22", Destination("me@corp", "::1", 22)),
    ],
)
def test_a_destination_is_read(text: str, expected: Destination) -> None:
    assert parse_destination(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "host is missing"),
        ("me@", "host is missing"),
        ("@web", "user name before @ is empty"),
        (":22", "host is missing"),
        ("web:", "not a port number"),
        ("web:ssh", "not a port number"),
        ("web:0", "from 1 to 65535"),
        ("web:65536", "from 1 to 65535"),
        ("web:٢٢", "not a port number"),
        ("[::1", "not closed"),
        ("[::1]22", "only :port may follow"),
        ("ssh://web/path", "no path"),
        ("ssh://::1", "brackets"),
        ("web:22:22", "not an IPv6 address"),
        ("-oProxyCommand=x", "not a host name"),
        ("web;reboot", "not a host name"),
        ("$(reboot)", "not a host name"),
        ("we b", "not a host name"),
        ("`id`@web", "characters that do not belong"),
        ("ssh://%24x;y@web", "characters that do not belong"),
    ],
)
def test_a_bad_destination_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(InvalidAddress, match=says):
        parse_destination(text)


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        (8080, TcpBind("localhost", 8080)),
        (0, TcpBind("localhost", 0)),
        ("8080", TcpBind("localhost", 8080)),
        (("127.0.0.1", 80), TcpBind("127.0.0.1", 80)),
        (("", 80), TcpBind("", 80)),
        (("*", 80), TcpBind("", 80)),
        (("[::1]", 80), TcpBind("::1", 80)),
        ("*:80", TcpBind("", 80)),
        (":80", TcpBind("", 80)),
        ("[::1]:80", TcpBind("::1", 80)),
        ("localhost:80", TcpBind("localhost", 80)),
        ("/run/app.sock", UnixBind("/run/app.sock")),
        ("unix:/run/a:b", UnixBind("/run/a:b")),
        (UnixBind("/x"), UnixBind("/x")),
    ],
)
def test_a_bind_is_read(bind: int | str | tuple[str, int], expected: Bind) -> None:
    assert parse_bind(bind) == expected


@pytest.mark.parametrize(
    ("bind", "says"),
    [
        (-1, "from 0 to 65535"),
        (65536, "from 0 to 65535"),
        (True, "expected a port"),
        (8080.0, "expected a port"),
        (("a", "80"), "expected a port"),
        (("a", 80, 1), "expected a port"),
        ("", "not a port number"),
        ("::1:80", "brackets"),
        ("a b:80", "not a host name"),
        ("unix:run", "begins with /"),
        ("/" + "x" * 107, "at most 107 bytes"),
        ("/\ud800", "cannot be the name of a file"),
    ],
)
def test_a_bad_bind_is_refused_with_the_reason(bind: object, says: str) -> None:
    with pytest.raises(InvalidAddress, match=says):
        parse_bind(bind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:3000", TcpTarget("localhost", 3000)),
        ("[::1]:80", TcpTarget("::1", 80)),
        (("::1", 80), TcpTarget("::1", 80)),
        ("unix:/run/x", UnixTarget("/run/x")),
        ("/run/x", UnixTarget("/run/x")),
        (TcpTarget("a", 1), TcpTarget("a", 1)),
        ("socks", SocksService()),
        ("folder:.", FolderService(".")),
        ("exec:80", TcpTarget("exec", 80)),
        (ExecService("true"), ExecService("true")),
    ],
)
def test_a_target_is_read(
    target: str | tuple[str, int], expected: Target | Service
) -> None:
    assert parse_target(target) == expected


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("3000", "expected host:port"),
        ("localhost", "expected host:port"),
        (":80", "host is empty"),
        ("localhost:0", "from 1 to 65535"),
        ("::1:80", "brackets"),
        ("*:80", "not a host name"),
        ("unix:", "begins with /"),
        (80, "expected host:port"),
    ],
)
def test_a_bad_target_is_refused_with_the_reason(target: object, says: str) -> None:
    with pytest.raises(InvalidAddress, match=says):
        parse_target(target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "bind", "target"),
    [
        (
            "8080:localhost:3000",
            TcpBind("localhost", 8080),
            TcpTarget("localhost", 3000),
        ),
        ("0:localhost:3000", TcpBind("localhost", 0), TcpTarget("localhost", 3000)),
        ("*:80:a:81", TcpBind("", 80), TcpTarget("a", 81)),
        (":80:a:81", TcpBind("", 80), TcpTarget("a", 81)),
        ("[::1]:80:[::2]:81", TcpBind("::1", 80), TcpTarget("::2", 81)),
        ("80:unix:/l.sock", TcpBind("localhost", 80), UnixTarget("/l.sock")),
        ("80:/l.sock", TcpBind("localhost", 80), UnixTarget("/l.sock")),
        ("0.0.0.0:80:/l", TcpBind("0.0.0.0", 80), UnixTarget("/l")),
        ("/r.sock:a:81", UnixBind("/r.sock"), TcpTarget("a", 81)),
        ("/r.sock:/l.sock", UnixBind("/r.sock"), UnixTarget("/l.sock")),
        ("unix:/r:unix:/l", UnixBind("/r"), UnixTarget("/l")),
        (r"/r\:1:/l\\2", UnixBind("/r:1"), UnixTarget("/l\\2")),
        ("1080", TcpBind("localhost", 1080), SocksService()),
        ("[::1]:1080", TcpBind("::1", 1080), SocksService()),
        ("/r.sock", UnixBind("/r.sock"), SocksService()),
        ("1080:socks", TcpBind("localhost", 1080), SocksService()),
        ("*:80:folder:/srv/a:b", TcpBind("", 80), FolderService("/srv/a:b")),
        ("80:exec:a | b :c", TcpBind("localhost", 80), ExecService("a | b :c")),
        ("/r:exec:[ -t 0 ]", UnixBind("/r"), ExecService("[ -t 0 ]")),
        ("80:app:a.b:c", TcpBind("localhost", 80), AppService("a.b", "c")),
        ("80:app:81", TcpBind("localhost", 80), TcpTarget("app", 81)),
        (r"/r\:exec\:x:a:81", UnixBind("/r:exec:x"), TcpTarget("a", 81)),
    ],
)
def test_a_forward_is_read(spec: str, bind: Bind, target: Target | Service) -> None:
    assert parse_forward(spec) == (bind, target)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "'' is not a port number"),
        ("8080:3000", "a host is missing; expected 8080:localhost:3000"),
        ("x:exec:true", "'x' is not a port number"),
        ("80:exec: ", "command is missing"),
        ("80:folder:", "path is missing"),
        ("80:app:module", "expected app:module:attribute"),
        ("80:app:a b:c", "expected app:module:attribute"),
        ("a:1:b:2:c", "expected"),
        ("::1:80:a:81", "expected"),
        ("80:a:b", "'b' is not a port number"),
        ("x:a:81", "'x' is not a port number"),
        ("/r:a", "expected host:port"),
        ("80:/l:x", "nothing may follow"),
        ("a:b:c:/l", "expected"),
        ("[::1:80:a:81", "not closed"),
        ("80:a:0", "from 1 to 65535"),
    ],
)
def test_a_bad_forward_is_refused_with_the_reason(spec: str, says: str) -> None:
    with pytest.raises(InvalidAddress, match=says):
        parse_forward(spec)


def test_texts_are_short_where_the_default_says_the_rest() -> None:
    assert str(TcpBind("localhost", 8080)) == "8080"
    assert str(TcpBind("", 8080)) == "*:8080"
    assert str(UnixBind("/run/x")) == "unix:/run/x"
    assert str(TcpTarget("::1", 80)) == "[::1]:80"
    assert str(Destination("me", "::1", None)) == "me@[::1]"


_names = st.text(string.ascii_letters + string.digits + "-._", min_size=1).filter(
    lambda name: not name.startswith("-")
)
_hosts = _names | st.ip_addresses().map(str)
_paths = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20
).map("/{}".format)
_binds: st.SearchStrategy[Bind] = st.builds(
    TcpBind, _hosts | st.just(""), st.integers(0, 65535)
) | st.builds(UnixBind, _paths)
_targets: st.SearchStrategy[Target] = st.builds(
    TcpTarget, _hosts, st.integers(1, 65535)
) | st.builds(UnixTarget, _paths)
_texts = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1
)
_identifiers = st.from_regex(r"[a-z_]\w*(\.[a-z_]\w*)?", fullmatch=True)
_services: st.SearchStrategy[Service] = (
    st.builds(SocksService)
    | st.builds(FolderService, _texts.filter(lambda text: not text.isdigit()))
    | st.builds(
        ExecService, _texts.filter(lambda text: text.strip() and not text.isdigit())
    )
    | st.builds(AppService, _identifiers, _identifiers)
)
_destinations = st.builds(
    Destination, st.none() | _names, _hosts, st.none() | st.integers(1, 65535)
)


@given(_destinations)
def test_a_destination_reads_back(destination: Destination) -> None:
    assert parse_destination(str(destination)) == destination


@given(_binds)
def test_a_bind_reads_back(bind: Bind) -> None:
    assert parse_bind(str(bind)) == bind


@given(_targets)
def test_a_target_reads_back(target: Target) -> None:
    assert parse_target(str(target)) == target


@given(_binds, _targets | _services)
def test_a_forward_reads_back(bind: Bind, target: Target | Service) -> None:
    assert parse_forward(format_forward(bind, target)) == (bind, target)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_never_anything_else(text: str) -> None:
    for parse in (parse_destination, parse_bind, parse_target, parse_forward):
        try:
            parse(text)
        except InvalidAddress:
            continue
