"""`rtunnel.Transport`: a full `paramiko.Transport` that the engine can run.

Everything of paramiko stays: client and server mode, exec, SFTP, X11, agent and
forwarding calls. What differs: AES-GCM is preferred, so that the engine can run;
TCP_NODELAY is set; forwards are dispatched by port and admitted before they are
confirmed; global requests are paired with their replies; keepalives want an answer;
the end is orderly.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import time
from typing import Any, Final, NoReturn

import paramiko
from paramiko.message import Message
from paramiko.ssh_exception import IncompatiblePeer

from rtunnel.errors import BackendUnavailable, DisconnectCode, ProtocolError
from rtunnel.ssh import seams
from rtunnel.ssh.connection import Connection
from rtunnel.ssh.guards import guard
from rtunnel.ssh.inbound import PeerFault
from rtunnel.ssh.keepalive import COUNT_MAX, Keepalive
from rtunnel.ssh.packetizer import (
    MSG_DISCONNECT,
    EnginePacketizer,
    EngineStatus,
    why_no_engine,
)
from rtunnel.ssh.sockets import set_nodelay
from rtunnel.wire import boolean, string

GCM_CIPHERS: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
DATA_MESSAGES: Final = (94, 95)
LOG_NAME: Final = "rtunnel.ssh.paramiko"
# How long close() waits for the transport's thread.
JOIN_S: Final = 5.0


# For the names that the stubs of paramiko do not know.
_stock: Any = paramiko.Transport


class Transport(paramiko.Transport):
    """One SSH connection, over a connected socket; see `paramiko.Transport`.

    `backend` is "auto", "engine", "pump" or "python"; None takes RTUNNEL_BACKEND, else
    "auto". A name never falls back: where "engine" cannot run, the key exchange fails
    with BackendUnavailable. `rekey_bytes` and `rekey_s` lower the limits of one key
    pair. The other arguments are paramiko's.
    """

    _preferred_ciphers = GCM_CIPHERS + tuple(
        name for name in _stock._preferred_ciphers if name not in GCM_CIPHERS
    )

    packetizer: EnginePacketizer
    remote_cipher: str
    remote_compression: str
    kex_engine: Any
    local_kex_init: bytes | None
    # What visitors of a SOCKS listener may reach, unless the listener says it.
    permit_remote_open: tuple[str, ...] | None = None
    # Whether `close` was called.
    is_closing: bool = False

    def __init__(
        self,
        sock: Any,
        *args: Any,
        backend: str | None = None,
        rekey_bytes: int | None = None,
        rekey_s: float | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("packetizer_class", EnginePacketizer)
        super().__init__(sock, *args, **kwargs)
        # One KEXINIT in an exchange, also when two threads want one at the same time.
        self._kexinit_lock = threading.Lock()
        self.backend_wish = backend or os.environ.get("RTUNNEL_BACKEND") or "auto"
        if rekey_bytes is not None:
            self.packetizer.rekey_bytes = rekey_bytes
            # paramiko's own limit, for ciphers that the engine does not run.
            self.packetizer.REKEY_BYTES = rekey_bytes
        if rekey_s is not None:
            self.packetizer.rekey_s = rekey_s
        self.packetizer.last_words = self._last_words
        # The packetizer ends an exchange of keys that takes too long. 30 s, by a clock
        # that may be set, broke off who waited to send, and nothing else.
        self.clear_to_send_timeout = math.inf
        guard(self, self._fail)
        set_nodelay(self.sock)
        # paramiko reports failures with a traceback, which belongs into our log.
        self.set_log_channel(LOG_NAME)

    @property
    def defers_user_messages(self) -> bool:
        """Whether `_send_user_message` never blocks, but for channel data."""
        return self.packetizer.engine is not None

    @property
    def preferred_keys(self) -> Any:
        """The types of host keys that are offered, the best one first."""
        # paramiko adds a certificate's name to each, even to that of a certificate.
        wanted = self._preferred_keys  # type: ignore[attr-defined]
        if any("-cert-" in name for name in wanted):
            return wanted
        return _stock.preferred_keys.fget(self)

    @property
    def engine_status(self) -> EngineStatus:
        """Say whether the engine runs this connection, and why not."""
        return self.packetizer.status

    def _log(self, level: int, msg: Any, *args: Any) -> None:
        # paramiko logs a failure in one line, then its traceback as a list of lines.
        # Whatever is wrong with the peer or the network is raised to whoever waits,
        # and explained there: where in the code it came up says nothing.
        if isinstance(msg, list) and isinstance(
            sys.exc_info()[1], paramiko.SSHException
        ):
            level = logging.DEBUG
        super()._log(level, msg, *args)  # type: ignore[misc]

    # What a peer must not do, and paramiko lets it do.

    def _fail(self, error: ProtocolError) -> NoReturn:
        raise PeerFault(str(error), error.code)

    def _ensure_authed(self, kind: int, message: Message) -> Message | None:
        refusal: Message | None = super()._ensure_authed(kind, message)  # type: ignore[misc]
        if refusal is not None and not refusal.asbytes():
            raise PeerFault(f"the client sent message {kind} before its login")
        return refusal

    def _parse_newkeys(self, message: Message) -> None:
        if self.kex_engine is None:
            raise PeerFault("the peer sent NEWKEYS, and no keys were exchanged")
        super()._parse_newkeys(message)  # type: ignore[misc]

    def _send_kex_init(self) -> None:
        with self._kexinit_lock:
            if self.local_kex_init is None:
                super()._send_kex_init()  # type: ignore[misc]

    def _last_words(self) -> ProtocolError | None:
        """Say what the peer is disconnected for, when this thread gives up."""
        error = seams.end_of(self)
        if threading.current_thread() is not self or error is None:
            return None
        if isinstance(error, ProtocolError):
            return error
        if isinstance(error, IncompatiblePeer):
            return ProtocolError(str(error), DisconnectCode.KEY_EXCHANGE_FAILED)
        if isinstance(error, paramiko.SSHException):
            return ProtocolError(str(error))
        if isinstance(error, EOFError | OSError):
            return None
        # Ours, or of whoever wrote the handler.
        return ProtocolError("an internal error", DisconnectCode.BY_APPLICATION)

    # Keys.

    def _why_no_engine(self) -> str | None:
        if self.backend_wish not in ("auto", "engine"):
            return f"the backend {self.backend_wish!r} was asked for"
        if (self.local_compression, self.remote_compression) != ("none", "none"):
            return "compression was agreed"
        for cipher in (self.local_cipher, self.remote_cipher):
            if cipher not in GCM_CIPHERS:
                return f"the cipher {cipher} was agreed, not AES-GCM"
        return why_no_engine(self.sock)

    def _get_engine(self, *arguments: Any, **named: Any) -> Any:
        # The only place where paramiko shows the raw key.
        reason = None if self.packetizer.engine else self._why_no_engine()
        if reason is None:
            sealing = named["operation"] is _stock._ENCRYPT
            self.packetizer.stage_key(named["key"], sealing=sealing)
        else:
            self.packetizer.refuse_engine(reason)
            if self.backend_wish == "engine":
                raise BackendUnavailable(
                    f"the engine was asked for, and cannot run: {reason}; name no "
                    "backend (or `auto`) to let another one run"
                )
        return _stock._get_engine(self, *arguments, **named)

    # Sending.

    def _send_user_message(self, data: Message) -> None:
        # The packetizer holds what may not leave during a key exchange, so that only
        # data has to wait: its sender should feel a full queue.
        own_thread = threading.current_thread() is self
        if own_thread or data.asbytes()[0] not in DATA_MESSAGES:
            if self.active:
                # Dropped when the connection broke a moment ago, as paramiko drops what
                # comes after that: whoever waits for an answer is told by the end.
                with contextlib.suppress(EOFError):
                    self.packetizer.send_message(data)
            return
        self.packetizer.wait_for_room()
        _stock._send_user_message(self, data)

    # Requests. `Connection` shadows the first three on this transport when it is made:
    # each port gets its own handler, each reply its own request, with or without a
    # `Tunnel`.

    def global_request(
        self, kind: str, data: Any = None, wait: bool = True
    ) -> Message | None:
        """Send a global request; see `rtunnel.ssh.stock_api`."""
        if not self.is_authenticated():
            return super().global_request(kind, data, wait)
        Connection.of(self)
        return self.global_request(kind, data, wait)

    def request_port_forward(self, address: str, port: int, handler: Any = None) -> int:
        """Ask the server to listen; see `rtunnel.ssh.stock_api`."""
        if not self.is_authenticated():
            return super().request_port_forward(address, port, handler)
        Connection.of(self)
        return self.request_port_forward(address, port, handler)

    def cancel_port_forward(self, address: str, port: int) -> None:
        """Ask the server to listen no more; see `rtunnel.ssh.stock_api`."""
        if self.is_authenticated():
            Connection.of(self)
            self.cancel_port_forward(address, port)

    def channel_request(
        self,
        channel: paramiko.Channel,
        kind: str,
        payload: bytes = b"",
        wait: bool = True,
    ) -> None:
        """Send a request of any kind on a channel; `payload` is what RFC 4254 puts
        behind "want reply" for it.

        With `wait`, blocks until the peer has granted it, for which no other request
        may wait on this channel meanwhile. Raises SSHException when the peer refused:
        paramiko has closed the channel by then. Not for the transport's thread.
        (RFC 4254, section 5.4)
        """
        seams.request_on_channel(channel, string(kind) + boolean(wait) + payload, wait)

    def open_sftp_client(self) -> paramiko.SFTPClient:
        """Open an SFTP session.

        Where the engine runs, its bytes are pumped, and `get` and `put` have many large
        requests under way. Waits for the server. Raises SSHException if it has no SFTP.
        """
        if not self.is_authenticated() or Connection.of(self).backend.name != "engine":
            return super().open_sftp_client()
        from rtunnel.ssh.sftp_channel import open_sftp_client

        return open_sftp_client(self)

    # Keepalive.

    def set_keepalive(self, interval: float, count_max: int = COUNT_MAX) -> None:
        """Ask the peer for life after `interval` seconds of silence; 0 stops it.

        The connection is ended when the peer stayed silent for `interval * count_max`
        seconds; whatever it sends counts as an answer. Never blocks. Any thread.
        """
        keepalive = None
        if interval > 0:
            keepalive = Keepalive(
                interval, count_max, time.monotonic(), self.packetizer.heard_bytes
            )
        self.packetizer.watch_peer(keepalive, self._ask_for_life)

    def _ask_for_life(self) -> None:
        if self.is_authenticated():
            Connection.of(self).ping(lambda: None)

    # The end.

    def run(self) -> None:
        """Run the transport's thread; paramiko starts it."""
        try:
            super().run()
        finally:
            self.packetizer.finish()

    def close(self) -> None:
        """End the connection in order: what was sent leaves, then DISCONNECT.

        Blocks until the transport's thread has ended, a few seconds at most; called
        from a handler on that thread, it does not wait. Any thread, any number of
        times.
        """
        # Before the goodbye: the peer may hang up before we have.
        self.is_closing = True
        if self.active and threading.current_thread() is not self:
            self._say_goodbye()
        super().close()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(JOIN_S)

    def atfork(self) -> None:
        """Leave the connection to the other process of a fork.

        Nothing is sent and nothing shut down: the other process goes on with it. This
        one's transport is closed, without waiting; its tunnels may not be used any
        more.
        """
        if self.is_alive():
            self.active = False
            self.packetizer.leave()
            if threading.current_thread() is not self:
                self.join(JOIN_S)
        else:
            # In the child of the fork: the thread lives in the parent, and whatever
            # lock it held is held here for ever.
            self.active = False
            self.packetizer.leave_to_parent()
        self.sock.close()

    def _say_goodbye(self) -> None:
        message = Message()
        message.add_byte(bytes([MSG_DISCONNECT]))
        message.add_int(int(DisconnectCode.BY_APPLICATION))
        message.add_string("closed by the application")
        message.add_string("")
        try:
            if self.initial_kex_done:
                self.packetizer.send_message(message)
                self.packetizer.drain()
        except (EOFError, OSError, paramiko.SSHException):
            return  # it is over already
