"""Find out why a server refused to listen, and say what to do about it.

REQUEST_FAILURE carries no reason (RFC 4254, section 4). The causes need different
cures, so they are told apart by what can be seen from here: what the server said in
DEBUG messages, whether something answers on that port over there, and whether the
server would grant any other port.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

from rtunnel.addresses import TcpBind, UnixBind
from rtunnel.errors import (
    ChannelOpenError,
    ForwardingDenied,
    ForwardRefused,
    OpenFailureCode,
    PortInUse,
    RequestRefused,
    RequestTimeout,
)
from rtunnel.forwards import Forward

if TYPE_CHECKING:
    from rtunnel.ssh.arrivals import ChannelOpen
    from rtunnel.ssh.connection import Connection

# Each probe is one round trip; a server that is slower than this gets the answer
# that fits all causes.
PROBE_TIMEOUT_S: Final = 5.0
FIRST_UNPRIVILEGED_PORT: Final = 1024

# What sshd says in a DEBUG message when its configuration forbids the forward.
_DISABLED: Final = "disabled"

_WHERE_TO_LOOK: Final = (
    "see AllowTcpForwarding, PermitListen and DisableForwarding in sshd_config, and "
    "permitlisten, restrict and no-port-forwarding in authorized_keys"
)
# sshd grants a socket path only where it would grant a port, too, which its manual
# does not say.
_WHERE_TO_LOOK_UNIX: Final = (
    "see AllowStreamLocalForwarding, AllowTcpForwarding (it takes both) and "
    "DisableForwarding in sshd_config, and restrict and no-port-forwarding in "
    "authorized_keys; the path must be writable for the user and, unless "
    "StreamLocalBindUnlink is set, not exist"
)


def explain(
    connection: Connection,
    forward: Forward,
    peer_said: tuple[str, ...],
    probe: bool = True,
) -> ForwardRefused:
    """Return the error that fits a refused forward; with `probe`, ask the server.

    Waits for the server, for `PROBE_TIMEOUT_S` per probe at the most.
    """
    forbidden = [text for text in peer_said if _DISABLED in text.lower()]
    if isinstance(forward.bind, UnixBind):
        return _explain_unix(connection, forward, forbidden, probe)
    return _explain_tcp(connection, forward, forward.bind, forbidden, probe)


def _explain_unix(
    connection: Connection, forward: Forward, forbidden: list[str], probe: bool
) -> ForwardRefused:
    if not forbidden and probe and _answers(connection, forward):
        return PortInUse(
            f"socket {forward.address} is already in use on the server: stop what "
            "listens there, or choose another path"
        )
    return ForwardingDenied(
        f"listening on {forward} was refused by the server{_quoted(forbidden)}: "
        f"{_WHERE_TO_LOOK_UNIX}"
    )


def _explain_tcp(
    connection: Connection,
    forward: Forward,
    bind: TcpBind,
    forbidden: list[str],
    probe: bool,
) -> ForwardRefused:
    denied = ForwardingDenied(
        f"listening on {forward} was refused by the server{_quoted(forbidden)}: "
        f"{_WHERE_TO_LOOK}"
    )
    if forbidden or not probe or bind.port == 0:
        return denied
    if _answers(connection, forward):
        return PortInUse(
            f"port {bind.port} is already in use on the server: stop what listens "
            "there, or choose another port"
        )
    user = connection.transport.get_username()
    if bind.port < FIRST_UNPRIVILEGED_PORT and user != "root":
        return ForwardingDenied(
            f"port {bind.port} is below {FIRST_UNPRIVILEGED_PORT}, and the server lets "
            f"only root listen there, not {user}: choose a higher port"
        )
    if _grants_any_port(connection, bind):
        return PortInUse(
            f"port {bind.port} is taken on the server, maybe by a session of yours "
            "that is dead but not given up yet (ClientAliveInterval): wait, or choose "
            f"another port; if it is free, {_WHERE_TO_LOOK}"
        )
    return denied


def _answers(connection: Connection, forward: Forward) -> bool:
    """Look whether something accepts connections there, as seen by the server."""
    ours, theirs = socket.socketpair()
    with ours:
        try:
            if isinstance(forward.bind, UnixBind):
                relay = connection.open_unix(
                    forward.address, theirs, timeout_s=PROBE_TIMEOUT_S
                )
            else:
                relay = connection.open_tcp(
                    _probe_host(forward.address),
                    forward.port,
                    theirs,
                    timeout_s=PROBE_TIMEOUT_S,
                )
        except (ChannelOpenError, RequestTimeout):
            return False
        relay.reset()
        return True


def _probe_host(address: str) -> str:
    return "127.0.0.1" if address in ("", "localhost", "0.0.0.0", "::") else address


def _grants_any_port(connection: Connection, bind: TcpBind) -> bool:
    """Ask for any port at the same address; give it back at once."""
    other = Forward(TcpBind(bind.address, 0))
    try:
        connection.listen(other, _refuse_visitor, PROBE_TIMEOUT_S, diagnose=False)
    except (RequestRefused, RequestTimeout):
        return False
    with contextlib.suppress(RequestRefused, RequestTimeout):
        connection.cancel(other, PROBE_TIMEOUT_S)
    return True


def _refuse_visitor(pending: ChannelOpen) -> None:
    pending.reject(OpenFailureCode.ADMINISTRATIVELY_PROHIBITED, "closing")


def _quoted(said: list[str]) -> str:
    return f' ("{said[-1]}")' if said else ""
