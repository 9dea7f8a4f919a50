"""paramiko's own names for requests and forwards, on top of `Connection`.

Whoever calls `transport.global_request`, `request_port_forward` and
`cancel_port_forward` goes on doing so beside a tunnel: these three are put before
paramiko's methods, on the one transport. They keep paramiko's signatures, results and
exceptions, and lose its faults: one handler for all ports, installed after the reply,
gone with the first cancel, and run on the transport's thread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paramiko
from paramiko.message import Message

from rtunnel.addresses import TcpBind
from rtunnel.errors import ConnectionLost, RequestRefused, RTunnelError
from rtunnel.forwards import Forward
from rtunnel.ssh import seams

if TYPE_CHECKING:
    from rtunnel.ssh.arrivals import ChannelOpen
    from rtunnel.ssh.connection import Connection

log = logging.getLogger("rtunnel.ssh.stock_api")

PortHandler = Callable[[paramiko.Channel, tuple[str, int], tuple[str, int]], object]


class StockApi:
    """The three methods, for one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._forwards: dict[tuple[str, int], Forward] = {}

    def install(self) -> None:
        """Put them before paramiko's."""
        transport = self._connection.transport
        seams.shadow(transport, "global_request", self.global_request)
        seams.shadow(transport, "request_port_forward", self.request_port_forward)
        seams.shadow(transport, "cancel_port_forward", self.cancel_port_forward)

    def global_request(
        self, kind: str, data: tuple[Any, ...] | None = None, wait: bool = True
    ) -> Message | None:
        """Send a global request, as `paramiko.Transport.global_request`.

        Waits for the reply without a limit, unless `wait` is false. None: refused, or
        the connection ended.
        """
        fields = Message()
        if data is not None:
            fields.add(*data)
        if not wait:
            self._connection.notify(kind, fields.asbytes())
            return None
        try:
            reply = self._connection.request(kind, fields.asbytes(), timeout_s=None)
        except (RequestRefused, ConnectionLost):
            return None
        return Message(reply)

    def request_port_forward(
        self, address: str, port: int, handler: PortHandler | None = None
    ) -> int:
        """Ask the server to listen, as `paramiko.Transport.request_port_forward`.

        Each port has its own handler; it runs on a thread of its own per visitor.
        Without one, channels are queued for `transport.accept()`.
        """

        def on_open(pending: ChannelOpen) -> None:
            def confirmed(channel: Any) -> None:
                channel.origin_addr = pending.origin
                if handler is None:
                    seams.queue_channel(self._connection.transport, channel)
                    return
                bound = (pending.forward.address, pending.forward.port)
                threading.Thread(
                    target=self._call,
                    args=(handler, channel, pending.origin, bound),
                    name=f"rtunnel-port-{bound[1]}",
                    daemon=True,
                ).start()

            pending.accept_channel(confirmed)

        if not self._connection.transport.is_active():
            raise paramiko.SSHException("SSH session not active")
        forward = Forward(TcpBind(address, int(port)))
        try:
            given = self._connection.listen(forward, on_open, None, diagnose=False)
        except RTunnelError as error:
            raise paramiko.SSHException(
                f"TCP forwarding request denied: {error}"
            ) from (error)
        with self._lock:
            self._forwards[address, given] = forward
        return given

    def cancel_port_forward(self, address: str, port: int) -> None:
        """Ask the server to stop, as `paramiko.Transport.cancel_port_forward`."""
        with self._lock:
            forward = self._forwards.pop((address, int(port)), None)
        if forward is None:
            self.global_request("cancel-tcpip-forward", (address, int(port)))
            return
        with contextlib.suppress(RequestRefused, ConnectionLost):
            self._connection.cancel(forward, None)

    @staticmethod
    def _call(
        handler: PortHandler,
        channel: paramiko.Channel,
        origin: tuple[str, int],
        bound: tuple[str, int],
    ) -> None:
        try:
            handler(channel, origin, bound)
        except Exception:
            log.exception("a port forward handler failed: port=%d", bound[1])
            channel.close()
