"""The names of python-x2go's `x2go.rforward`, on the core.

    tunnel = X2GoRevFwTunnel(server_port, "127.0.0.1", 4713, transport)
    tunnel.start()
    ...
    tunnel.stop_thread()

A tunnel listens on the server's loopback, and its connections go to a host and port of
this side: on the pump, with no thread for each, each told by its own port. What is
known of the original to go wrong does not: a connection never gets the channel of
another port, a target that does not answer closes it, no byte is lost, either side may
finish before the other, and a pause gives the port back to the server.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

import rtunnel
from rtunnel.errors import ConnectionLost, ForwardRefused, RTunnelError

log = logging.getLogger("x2go_session.rforward")

LOOPBACK: Final = "127.0.0.1"
# What x2go.log has for its default.
LOGLEVEL: Final = 56
CONNECT_TIMEOUT_S: Final = 10.0
# A port that is taken is often free again a moment later.
ATTEMPTS: Final = 2
RETRY_PAUSE_S: Final = 1.0
READ_BYTES: Final = 64 * 1024

Logger = logging.Logger | Callable[..., object]


class _Reverse:
    """What the tunnels of one transport share: the core's, and who has which port."""

    _making: Final = threading.Lock()

    def __init__(self, transport: Any) -> None:
        self.tunnel = rtunnel.Tunnel(transport)
        self.by_port: dict[int, X2GoRevFwTunnel] = {}

    @classmethod
    def of(cls, transport: Any) -> _Reverse:
        """Return that of a transport: the first call makes it, all get the same."""
        with cls._making:
            found = transport.__dict__.get("_x2go_reverse")
            if found is None:
                found = transport.__dict__["_x2go_reverse"] = cls(transport)
        assert isinstance(found, _Reverse)
        return found


class X2GoRevFwTunnel(threading.Thread):
    """A port of the server's loopback whose connections go to a host and port here.

    `start` has the server listen, on the thread's own time; `stop_thread` ends it. A
    `session_instance` is told when the server refuses twice, by its method
    HOOK_rforward_request_denied(server_port=...). Any thread may call any method.
    """

    def __init__(
        self,
        server_port: int,
        remote_host: str,
        remote_port: int,
        ssh_transport: Any,
        session_instance: Any = None,
        logger: Logger | None = None,
        loglevel: int = LOGLEVEL,
    ) -> None:
        super().__init__(name=f"x2go-rforward-{server_port}", daemon=True)
        self.server_port = server_port
        self.remote_host = remote_host
        self.remote_port = remote_port
        self.ssh_transport = ssh_transport
        self.session_instance = session_instance
        self.logger = logger or log
        self.loglevel = loglevel
        self._reverse: _Reverse | None = None
        # Protected by _changed.
        self._changed = threading.Condition()
        self._wanted = True
        self._stopped = False
        self._listener: rtunnel.Listener | None = None
        self._announced: list[Any] = []
        self._channels: set[X2GoRevFwChannelThread] = set()

    @property
    def is_listening(self) -> bool:
        """Whether the server listens for us now. Never blocks."""
        with self._changed:
            listener = self._listener
        return listener is not None and listener.state.value != "closed"

    @property
    def accepts_channels(self) -> bool:
        """Whether connections are taken: not while paused, nor after the end."""
        with self._changed:
            return self._wanted and not self._stopped

    def run(self) -> None:
        """Listen, and stay until `stop_thread`; `start` calls it."""
        try:
            self._reverse = _Reverse.of(self.ssh_transport)
        except RTunnelError as error:
            self._say(f"port {self.server_port} is not forwarded: {error}")
            return
        self._reverse.by_port[self.server_port] = self
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._stopped:
                    break
                announced, self._announced = self._announced, []
            for channel in announced:
                self._serve(channel)
            if self.accepts_channels and not self.is_listening:
                self._listen()
        self._close()

    def notify(self, channel: Any = None) -> None:
        """Take a channel that came in for our port. Never blocks.

        For `x2go_transport_tcp_handler`; what comes in by our own request needs no
        announcement.
        """
        with self._changed:
            taken = channel is not None and self.accepts_channels
            if taken:
                self._announced.append(channel)
            self._changed.notify_all()
        if channel is not None and not taken:
            channel.close()

    def pause(self) -> None:
        """Take no connections, close those that are open, give the port back.

        Blocks until the server has answered.
        """
        with self._changed:
            self._wanted = False
        self._close()

    def resume(self) -> None:
        """Listen again after `pause`, on the thread's own time. Never blocks."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def cancel_port_forward(self, address: str, port: int) -> None:
        """Have the server listen no more at an address and port. Blocks.

        Errors are ignored, and so is an address that our own port does not have: it is
        cancelled as it was requested, which is all that servers accept.
        """
        with self._changed:
            ours = self._listener is not None and self._listener.port == port
        if ours:
            self.pause()
            return
        with contextlib.suppress(Exception):
            self.ssh_transport.cancel_port_forward(address, port)

    def stop_thread(self) -> None:
        """End the tunnel: as `pause`, and for good. Blocks."""
        self.pause()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        reverse = self._reverse
        if reverse is not None and reverse.by_port.get(self.server_port) is self:
            del reverse.by_port[self.server_port]
        if self.is_alive() and threading.current_thread() is not self:
            self.join()

    def _has_work(self) -> bool:
        wants_port = self._wanted and self._listener is None
        return self._stopped or wants_port or bool(self._announced)

    def _listen(self) -> None:
        reverse = self._reverse
        assert reverse is not None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                listener = reverse.tunnel.listen(
                    (LOOPBACK, self.server_port),
                    to=(self.remote_host, self.remote_port),
                    name=self.name,
                    connect_timeout_s=CONNECT_TIMEOUT_S,
                )
            except ForwardRefused as error:
                if attempt == ATTEMPTS:
                    self._denied(error)
                elif self._stops_within(RETRY_PAUSE_S):
                    return
            except RTunnelError as error:
                self._say(f"port {self.server_port} is lost: {error}")
                with self._changed:
                    self._wanted = False
                    self._stopped |= isinstance(error, ConnectionLost)
                return
            else:
                self._keep(listener)
                return

    def _keep(self, listener: rtunnel.Listener) -> None:
        with self._changed:
            if self._wanted and not self._stopped:
                self._listener = listener
                return
        listener.close()  # paused meanwhile

    def _denied(self, error: ForwardRefused) -> None:
        """The server refused: it is not asked again before `resume`."""
        with self._changed:
            self._wanted = False
        self._say(f"the server refused port {self.server_port}: {error}")
        hook = getattr(self.session_instance, "HOOK_rforward_request_denied", None)
        if hook is not None:
            hook(server_port=self.server_port)

    def _stops_within(self, time_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(
                lambda: self._stopped or not self._wanted, time_s
            )

    def _close(self) -> None:
        with self._changed:
            listener, self._listener = self._listener, None
            channels, self._channels = self._channels, set()
            announced, self._announced = self._announced, []
        for channel in announced:
            channel.close()
        for thread in channels:
            thread.channel.close()
        if listener is not None:
            with contextlib.suppress(RTunnelError):
                listener.close()

    def _serve(self, channel: Any) -> None:
        thread = X2GoRevFwChannelThread(
            channel,
            (self.remote_host, self.remote_port),
            target=x2go_rev_forward_channel_handler,
            kwargs={
                "chan": channel,
                "addr": self.remote_host,
                "port": self.remote_port,
                "parent_thread": self,
                "logger": self.logger,
            },
        )
        with self._changed:
            self._channels = {each for each in self._channels if each.is_alive()}
            self._channels.add(thread)
            # Started under the lock: whoever is in the set is alive, or was.
            thread.start()

    def _say(self, message: str) -> None:
        _log(self.logger, message, self.loglevel)


class X2GoRevFwChannelThread(threading.Thread):
    """A thread for one channel of a reverse tunnel; `remote` is (host, port) here."""

    def __init__(self, channel: Any, remote: Any = None, **kwargs: Any) -> None:
        kwargs.setdefault("daemon", True)
        super().__init__(**kwargs)
        self.channel = channel
        self.remote = remote
        if remote is not None:
            self.remote_host, self.remote_port = remote[0], remote[1]


def x2go_transport_tcp_handler(
    chan: Any, origin: tuple[str, int], server: tuple[str, int]
) -> None:
    """Hand an incoming channel to the tunnel that has its server port.

    For paramiko's `Transport.request_port_forward(handler=...)`. The tunnels are those
    that were started on the transport, and what its `reverse_tunnels` names: a mapping
    {session: {service: (port, tunnel)}}. A channel for no tunnel is queued for
    `Transport.accept`, as paramiko does. Never blocks.
    """
    transport = chan.get_transport()
    tunnel = _Reverse.of(transport).by_port.get(server[1])
    if tunnel is None:
        named = getattr(transport, "reverse_tunnels", {})
        found = [
            entry[1]
            for services in list(named.values())
            for entry in list(services.values())
            if entry[0] == server[1] and entry[1] is not None
        ]
        tunnel = found[0] if found else None
    if tunnel is not None:
        tunnel.notify(chan)
    else:
        transport._queue_incoming_channel(chan)


def x2go_rev_forward_channel_handler(
    chan: Any = None,
    addr: str = "",
    port: int = 0,
    parent_thread: X2GoRevFwTunnel | None = None,
    logger: Logger | None = None,
) -> None:
    """Copy between a channel and a host and port here, until both sides are done.

    Blocks until then. A target that does not answer closes the channel; so does a
    pause of `parent_thread`.
    """
    if chan is None or (
        parent_thread is not None and not parent_thread.accepts_channels
    ):
        if chan is not None:
            chan.close()
        return
    try:
        sock = socket.create_connection((addr, port), CONNECT_TIMEOUT_S)
    except OSError as error:
        _log(logger or log, f"cannot connect to {addr}:{port}: {error}", LOGLEVEL)
        chan.close()
        return
    with sock, contextlib.closing(chan):
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(
            target=_copy,
            args=(sock.recv, chan.sendall, chan.shutdown_write),
            name="x2go-rforward-back",
            daemon=True,
        )
        back.start()
        # A channel that was closed, and not finished, resets its socket.
        finished = _copy(chan.recv, sock.sendall, lambda: sock.shutdown(socket.SHUT_WR))
        if not finished or chan.closed:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        back.join()


def _copy(
    read: Callable[[int], bytes],
    write: Callable[[bytes], object],
    finish: Callable[[], object],
) -> bool:
    """Copy to the end, and pass the end on; False if either side broke off."""
    try:
        while data := read(READ_BYTES):
            write(data)
        finish()
    except (OSError, EOFError):
        return False
    return True


def _log(logger: Logger, message: str, loglevel: int) -> None:
    """Log with a logger of Python, or with one of x2go.log, which is called."""
    if isinstance(logger, logging.Logger):
        logger.info(message)
    else:
        logger(message, loglevel=loglevel)
