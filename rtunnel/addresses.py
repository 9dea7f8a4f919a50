"""Addresses in the notation of ssh(1): destinations, binds, targets, forwards.

Four nouns, and one parser for each:

* a *destination* is the SSH server: `user@host:port`, `ssh://user@host:port`, or
  a host alias of ssh_config(5);
* a *bind* is where the server listens: a port, `address:port`, or the path of a
  Unix socket on the server;
* a *target* is where a connection is taken to: `host:port`, or the path of a Unix
  socket here; a service (`rtunnel.services`) may stand in its place;
* a *forward* is both, as ssh(1) writes it after `-R`:
  `[bind_address:]port:host:hostport`.

Everything is checked when it is parsed or made, so the rest of the package may
trust what it holds. `str()` gives the one text that logs and commands show, and
each parser reads it back. An IPv6 address is held without brackets and written
with them when a port follows.

What the address of a bind asks of the server (RFC 4254, section 7.1):

    "localhost"   loopback only, all protocols: what a bare port means, as in ssh(1)
    ""            all interfaces, all protocols; written `*` or left empty
    others        that address, if GatewayPorts of the server lets the client choose
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from rtunnel.errors import InvalidAddress
from rtunnel.services import Service, SocksService, parse_service, split_at_service

LAST_PORT: Final = 65535
# sun_path of Linux's sockaddr_un has 108 bytes, the last of them NUL.
SOCKET_PATH_BYTES: Final = 107
LOOPBACK: Final = "localhost"
ALL_INTERFACES: Final = ""

_SSH_URL: Final = "ssh://"
_UNIX_PREFIX: Final = "unix:"

# Host and user end up in ProxyCommand's %h and %r, on a shell's command line. These
# are the characters that valid_hostname() and valid_ruser() of OpenSSH 9.6 refuse
# (CVE-2023-51385).
_UNSAFE_IN_HOST: Final = re.compile(r"""^-|[\x00-\x20\x7f'"`$\\;&<>|(){}]""")
_UNSAFE_IN_USER: Final = re.compile(r"""^-|\s-|\\$|[\x00-\x1f\x7f'"`;&<>|(){}]""")
_PORT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Destination:
    """The SSH server to connect to; None stands for "as ssh_config(5) says"."""

    user: str | None
    host: str
    port: int | None

    def __post_init__(self) -> None:
        _check_host(self.host, "destination")
        if self.user is not None and (
            not self.user or _UNSAFE_IN_USER.search(self.user)
        ):
            raise InvalidAddress(
                f"user name {self.user!r} in the destination is empty or has "
                "characters that do not belong there; expected user@host"
            )
        if self.port is not None:
            _check_port(self.port, 1, "destination")

    def __str__(self) -> str:
        user = "" if self.user is None else f"{self.user}@"
        if self.port is None:
            return f"{user}{_bracketed(self.host)}"
        return f"{user}{_join(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class TcpBind:
    """A port that the server listens on; port 0 lets the server choose."""

    address: str
    port: int

    def __post_init__(self) -> None:
        if self.address == "*":
            object.__setattr__(self, "address", ALL_INTERFACES)
        elif self.address:
            _check_host(self.address, "bind")
        _check_port(self.port, 0, "bind")

    def __str__(self) -> str:
        if self.address == LOOPBACK:
            return str(self.port)
        return _join(self.address or "*", self.port)


@dataclass(frozen=True, slots=True)
class UnixBind:
    """A Unix socket that the server listens on: an absolute path over there."""

    path: str

    def __post_init__(self) -> None:
        _check_path(self.path, "bind")

    def __str__(self) -> str:
        return f"{_UNIX_PREFIX}{self.path}"


@dataclass(frozen=True, slots=True)
class TcpTarget:
    """A host and port, looked up and dialled on this side."""

    host: str
    port: int

    def __post_init__(self) -> None:
        _check_host(self.host, "target")
        _check_port(self.port, 1, "target")

    def __str__(self) -> str:
        return _join(self.host, self.port)


@dataclass(frozen=True, slots=True)
class UnixTarget:
    """A Unix socket on this side: an absolute path."""

    path: str

    def __post_init__(self) -> None:
        _check_path(self.path, "target")

    def __str__(self) -> str:
        return f"{_UNIX_PREFIX}{self.path}"


Bind = TcpBind | UnixBind
Target = TcpTarget | UnixTarget


def parse_destination(text: str) -> Destination:
    """Read `[user@]host[:port]`, `ssh://[user@]host[:port]` or a host alias.

    An IPv6 address needs brackets only when a port follows it. The user ends at the
    last `@`, as in ssh(1). Raises `InvalidAddress`.
    """
    is_url = text[: len(_SSH_URL)].lower() == _SSH_URL
    rest = text[len(_SSH_URL) :] if is_url else text
    if is_url:
        rest, _, path = rest.partition("/")
        if path:
            raise _invalid(
                "destination", text, "an ssh:// URL has no path after the host"
            )
    user, at, place = rest.rpartition("@")
    if at and not user:
        raise _invalid("destination", text, "the user name before @ is empty")
    if is_url:
        # RFC 3986 escapes; ";fingerprint=" and other parameters are not understood.
        user = unquote(user)
    if place.count(":") > 1 and not place.startswith("["):
        if is_url:
            raise _invalid("destination", text, "put the IPv6 address in brackets")
        host, port = place, None
    else:
        fields = _split(place, "destination", text)
        if len(fields) > 2:
            raise _invalid("destination", text, "expected [user@]host[:port]")
        host = _unbracketed(fields[0])
        port = _port(fields[1], "destination", text) if len(fields) == 2 else None
    if not host:
        raise _invalid(
            "destination", text, "the host is missing; expected [user@]host[:port]"
        )
    return Destination(user if at else None, host, port)


def parse_bind(bind: int | str | tuple[str, int] | Bind) -> Bind:
    """Read where the server shall listen.

    A port (`8080` or `"8080"`), `(address, port)`, `"address:port"`, `"*:port"`,
    `"[::1]:port"`, or a socket path on the server (`"/path"` or `"unix:/path"`).
    Without an address, loopback is asked for. Raises `InvalidAddress`.
    """
    if isinstance(bind, TcpBind | UnixBind):
        return bind
    if isinstance(bind, bool):
        raise _invalid(
            "bind", bind, "expected a port, (address, port) or a socket path"
        )
    if isinstance(bind, int):
        return TcpBind(LOOPBACK, bind)
    if isinstance(bind, str):
        path = _socket_path(bind)
        if path is not None:
            return UnixBind(path)
        return _tcp_bind(_split(bind, "bind", bind), bind)
    if isinstance(bind, tuple) and len(bind) == 2:
        address, port = bind
        if isinstance(address, str) and _is_int(port):
            return TcpBind(_unbracketed(address), port)
    raise _invalid("bind", bind, "expected a port, (address, port) or a socket path")


def parse_target(target: str | tuple[str, int] | Target | Service) -> Target | Service:
    """Read where connections shall be taken to, or what serves them, on this side.

    What `parse_address` reads, or the text of a service. Raises `InvalidAddress`.
    """
    if isinstance(target, Service):
        return target
    service = parse_service(target) if isinstance(target, str) else None
    return parse_address(target) if service is None else service


def parse_address(target: str | tuple[str, int] | Target) -> Target:
    """Read where to connect to.

    `"host:port"`, `"[::1]:port"`, `(host, port)`, or a socket path (`"/path"` or
    `"unix:/path"`). Raises `InvalidAddress`.
    """
    if isinstance(target, TcpTarget | UnixTarget):
        return target
    if isinstance(target, str):
        path = _socket_path(target)
        if path is not None:
            return UnixTarget(path)
        return _tcp_target(_split(target, "target", target), target)
    if isinstance(target, tuple) and len(target) == 2:
        host, port = target
        if isinstance(host, str) and _is_int(port):
            return TcpTarget(_unbracketed(host), port)
    raise _invalid("target", target, "expected host:port or a socket path")


def parse_address_and_port(text: str, what: str) -> tuple[str, str]:
    """Read `host:port`, where either may be `*`; the port is not looked at.

    Raises `InvalidAddress`.
    """
    fields = _split(text, what, text)
    if len(fields) != 2:
        raise _invalid(what, text, "expected host:port; put IPv6 in brackets")
    host = _unbracketed(fields[0])
    if host != "*":
        _check_host(host, what)
    return host, fields[1]


def parse_forward(spec: str) -> tuple[Bind, Target | Service]:
    """Read a remote forward as ssh(1) writes it after `-R`.

    The bind is `port`, `address:port` or a socket path on the server; then a colon;
    the target is `host:port`, a socket path here, or a service. Paths begin with `/`
    and may have `unix:` in front; a backslash keeps a colon of a path from ending it.
    A bind alone is a SOCKS proxy. Raises `InvalidAddress`.
    """
    served = split_at_service(spec)
    if served is not None:
        head, service = served
        return _forward_bind(_split(head, "forward", spec, escapes=True), spec), service
    fields = _split(spec, "forward", spec, escapes=True)
    first_path = next((i for i, f in enumerate(fields) if _is_path(f)), None)
    if first_path == 0:
        bind: Bind = UnixBind(fields[0])
        rest = fields[1:]
    elif first_path in (1, 2):
        bind = _tcp_bind(fields[:first_path], spec)
        rest = fields[first_path:]
    elif first_path is None and len(fields) in (3, 4):
        bind = _tcp_bind(fields[:-2], spec)
        rest = fields[-2:]
    elif first_path is None and len(fields) < 3:
        if len(fields) == 2 and fields[0].isdigit():
            why = f"a host is missing; expected {fields[0]}:localhost:{fields[1]}"
            raise _invalid("forward", spec, why)
        return _forward_bind(fields, spec), SocksService()
    else:
        raise _invalid("forward", spec, "expected [bind_address:]port:host:hostport")
    if not rest:
        return bind, SocksService()
    if _is_path(rest[0]):
        if len(rest) > 1:
            raise _invalid("forward", spec, f"nothing may follow {rest[0]!r}")
        return bind, UnixTarget(rest[0])
    return bind, _tcp_target(rest, spec)


def format_forward(bind: Bind, target: Target | Service) -> str:
    """Write a forward so that `parse_forward` reads the same back."""
    return f"{_escaped(bind)}:{_escaped(target)}"


def _forward_bind(fields: list[str], spec: str) -> Bind:
    """Return the bind of a forward whose target has been taken off."""
    if len(fields) == 1 and _is_path(fields[0]):
        return UnixBind(fields[0])
    return _tcp_bind(fields, spec)


def _escaped(part: Bind | Target | Service) -> str:
    if isinstance(part, UnixBind | UnixTarget):
        path = part.path.replace("\\", "\\\\").replace(":", "\\:")
        return f"{_UNIX_PREFIX}{path}"
    return str(part)


def _tcp_bind(fields: list[str], text: object) -> TcpBind:
    if len(fields) == 1:
        return TcpBind(LOOPBACK, _port(fields[0], "bind", text))
    if len(fields) == 2:
        return TcpBind(_unbracketed(fields[0]), _port(fields[1], "bind", text))
    raise _invalid(
        "bind", text, "expected [address:]port; put an IPv6 address in brackets"
    )


def _tcp_target(fields: list[str], text: object) -> TcpTarget:
    if len(fields) != 2:
        raise _invalid(
            "target",
            text,
            "expected host:port, /path or unix:/path; put an IPv6 address in brackets",
        )
    return TcpTarget(_unbracketed(fields[0]), _port(fields[1], "target", text))


def _split(text: str, what: str, whole: object, escapes: bool = False) -> list[str]:
    """Split at colons that are neither in brackets, nor escaped, nor behind `unix`.

    A bracketed field keeps its brackets; an escape is resolved.
    """
    fields = [""]
    i = 0
    while i < len(text):
        char = text[i]
        if char == "[" and not fields[-1]:
            end = text.find("]", i)
            if end < 0:
                raise _invalid(what, whole, "the bracket [ is not closed")
            if text[end + 1 : end + 2] not in ("", ":"):
                raise _invalid(what, whole, "after ] only :port may follow")
            fields[-1] = text[i : end + 1]
            i = end + 1
            continue
        if char == "\\" and escapes and i + 1 < len(text):
            fields[-1] += text[i + 1]
            i += 2
            continue
        if char == ":" and not (fields[-1] == "unix" and text[i + 1 : i + 2] == "/"):
            fields.append("")
        elif char == ":":
            fields[-1] = ""
        else:
            fields[-1] += char
        i += 1
    return fields


def _is_path(field: str) -> bool:
    return field.startswith("/")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _socket_path(text: str) -> str | None:
    if text.startswith("/"):
        return text
    return text[len(_UNIX_PREFIX) :] if text.startswith(_UNIX_PREFIX) else None


def _port(text: str, what: str, whole: object) -> int:
    if not _PORT.fullmatch(text):
        raise _invalid(what, whole, f"{text!r} is not a port number")
    return int(text)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _unbracketed(host: str) -> str:
    return host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host


def _join(host: str, port: int) -> str:
    return f"{_bracketed(host)}:{port}"


def _check_host(host: str, what: str) -> None:
    if not host:
        raise _invalid(what, host, "the host is empty")
    if _UNSAFE_IN_HOST.search(host) or any(c in host for c in "[]@/*"):
        raise _invalid(what, host, "it is not a host name or an IP address")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            why = "it has colons, but is not an IPv6 address"
            raise _invalid(what, host, why) from None


def _check_port(port: int, first: int, what: str) -> None:
    if not _is_int(port) or not first <= port <= LAST_PORT:
        raise _invalid(what, port, f"a port is a number from {first} to {LAST_PORT}")


def _check_path(path: str, what: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise _invalid(what, path, "the path of a Unix socket begins with /")
    try:
        size_bytes = len(path.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise _invalid(what, path, "it cannot be the name of a file") from None
    if size_bytes > SOCKET_PATH_BYTES:
        why = f"the path of a Unix socket has at most {SOCKET_PATH_BYTES} bytes"
        raise _invalid(what, path, why)


def _invalid(what: str, text: object, why: str) -> InvalidAddress:
    return InvalidAddress(f"cannot understand {what} {text!r}: {why}")
