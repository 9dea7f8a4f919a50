"""The binary packet protocol (RFC 4253, section 6): paramiko's, then the engine's.

Theory of operation. A connection begins in paramiko's packetizer: banner and first key
exchange. When both directions have agreed on AES-GCM, the engine takes the socket over,
one direction at a time, at the very packet from which the new key counts. From then on
`read_message` is the engine's event loop: it returns what paramiko has to see, while
the bytes of pumped channels never come here.

A hold lies between our KEXINIT and our NEWKEYS: only key exchange messages may leave
(RFC 4253, section 7.1). The engine holds the messages of its channels; this class holds
everyone else's, in order, and sends them right behind NEWKEYS. So nobody who has
something to say during a rekey needs to wait, least of all the transport's own thread,
which alone can finish it (paramiko waits there for 30 s, then gives up: its #822).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import paramiko
from paramiko.common import MSG_NAMES
from paramiko.message import Message
from paramiko.packet import NeedRekeyException, Packetizer
from paramiko.util import format_binary

from rtunnel import _engine
from rtunnel.errors import DisconnectCode, ProtocolError
from rtunnel.ssh import seams
from rtunnel.ssh.disconnect import say_disconnect
from rtunnel.ssh.inbound import PacketReader, PeerDead, PeerFault, PeerMessage
from rtunnel.ssh.keepalive import ANSWER_GRACE_S, Keepalive, Verdict

if TYPE_CHECKING:
    from typing_extensions import Buffer

MSG_DISCONNECT: Final = 1
MSG_KEXINIT: Final = 20
MSG_NEWKEYS: Final = 21
REPLIES: Final = (99, 100)  # CHANNEL_SUCCESS, CHANNEL_FAILURE
MSG_CHANNEL_REQUEST: Final = 98
FIRST_HELD_MESSAGE: Final = 50  # user authentication and connection protocol

# RFC 5647 forbids more than 2^64 packets under one AES-GCM key; OpenSSH rekeys after
# 2^32 blocks or 2^31 packets, whichever comes first (packet.c, ssh_set_newkeys).
REKEY_BYTES: Final = 16 * 2**32
REKEY_PACKETS: Final = 2**31
# RFC 4253, section 9: "after each hour of connection time".
REKEY_S: Final = 3600.0
# How long one key exchange may take. Nothing else leaves meanwhile, and a peer that
# keeps us there has to go: LoginGraceTime of sshd, in which it wants the first one.
KEX_TIMEOUT_S: Final = 120.0
# Messages that may be held during one: answers that the peer provokes meanwhile
# (OpenSSH's CVE-2025-26466, x/crypto's CVE-2025-22869). As in the outbox.
HELD_MESSAGES_MAX: Final = 65_536
# Bytes in front of the first packet without the end of a line: OpenSSH's
# SSH_MAX_BANNER_LEN.
BANNER_LINE_MAX_BYTES: Final = 8192
# How long the last messages of a connection that we end may take to leave.
DRAIN_MS: Final = 1000

# Engines of a parent process, see `leave_to_parent`.
_left_to_parent: Final[list[_engine.Engine]] = []

# For the names that the stubs of paramiko do not know.
_stock: Any = Packetizer

EndedChannels = list[tuple[int, int, int, int, bool]]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Whether the engine runs this connection, and why not."""

    active: bool
    reason: str


class EnginePacketizer(Packetizer):
    """paramiko's packetizer until the engine can take over.

    `read_message` and the `set_*_cipher` calls belong to the transport's thread; the
    others may come from any thread.
    """

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self._socket = sock
        self._engine: _engine.Engine | None = None
        self._opens = False  # the engine opens what arrives
        self._seals = False  # the engine seals what leaves
        self._seal_key: bytes | None = None
        self._open_key: bytes | None = None
        self._reader = PacketReader(self.read_all)
        self._line_bytes = 0  # of the line before the first packet
        self._sequence_out = 0
        self._was_closed = False
        self.status = EngineStatus(False, "keys have not been exchanged yet")

        # Makes "held or sent" one decision, and the order of messages that of the
        # calls. Held while sending: an RLock, because a rekey sends from within.
        self._send_lock = threading.RLock()
        self._holding = False
        self._held: deque[Message] = deque()

        self.rekey_bytes = REKEY_BYTES
        self.rekey_packets = REKEY_PACKETS
        self.rekey_s = REKEY_S
        self._rekey_due = False
        self._fresh_keys = 0  # bit 1: open key, bit 2: seal key, since _rekey_due
        self._keys_since_s = time.monotonic()
        self._seal_keys = 0  # that there have been
        self.kex_timeout_s = KEX_TIMEOUT_S
        self._kex_since_s: float | None = None  # our KEXINIT left, keys are not new
        self._fault: PeerFault | PeerDead | None = None  # found while sending
        # Whether nothing can be said any more: DISCONNECT was sent, as a rule.
        self._said_disconnect = False
        # What to say in a DISCONNECT when the transport's thread gives up.
        self.last_words: Callable[[], ProtocolError | None] = lambda: None

        self._dump_log = logging.getLogger("paramiko.transport")
        self._keepalive: Keepalive | None = None
        self._ask: Callable[[], None] | None = None
        self.on_ended: Callable[[EndedChannels], None] | None = None
        # Replies to requests on pumped channels: local id, and whether granted.
        self.on_reply: Callable[[int, bool], None] = lambda local_id, granted: None
        # Requests on those pumped channels that want them: local id, and what follows.
        self.on_request: Callable[[int, bytes], None] = lambda local_id, body: None

    # What the transport tells.

    @property
    def engine(self) -> _engine.Engine | None:
        """The engine, once it opens and seals all packets."""
        return self._engine if self._opens and self._seals else None

    @property
    def rekeys(self) -> int:
        """Key exchanges after the first."""
        return max(0, self._seal_keys - 1)

    def refuse_engine(self, reason: str) -> None:
        """Leave this connection to paramiko. Before the first keys."""
        self.status = EngineStatus(False, reason)

    def stage_key(self, key: bytes, *, sealing: bool) -> None:
        """Keep a raw AES-GCM key for the `set_*_cipher` call that follows."""
        if sealing:
            self._seal_key = key
        else:
            self._open_key = key

    def _make_engine(self) -> _engine.Engine:
        if self._engine is None:
            self._engine = _engine.Engine(self._socket.fileno())
            self._engine.set_rekey_limits(self.rekey_bytes, self.rekey_packets)
        return self._engine

    def set_outbound_cipher(self, *arguments: Any, **named: Any) -> None:
        """Seal with the staged key from here on, then send what was held."""
        key, self._seal_key = self._seal_key, None
        self._seal_keys += 1
        with self._send_lock:
            if key is not None:
                engine = self._make_engine()
                engine.set_seal_key(key, named["iv_out"])
                if not self._seals:
                    engine.set_sequence_out(self._sequence_out)
                    self._seals = True
            elif self._seals:
                raise paramiko.SSHException("AES-GCM was dropped in a key exchange")
            else:
                super().set_outbound_cipher(*arguments, **named)
            self._keys_changed(2)
            self._said_disconnect = False
            self._holding = False
            while self._held:
                self._send(self._held.popleft())

    def set_inbound_cipher(self, *arguments: Any, **named: Any) -> None:
        """Open with the staged key from here on."""
        key, self._open_key = self._open_key, None
        if key is not None:
            engine = self._make_engine()
            engine.set_open_key(key, named["iv_in"])
            if not self._opens:
                engine.set_sequence_in(self._reader.sequence)
                self._opens = True
                self.status = EngineStatus(True, "AES-GCM both ways, no compression")
        elif self._opens:
            raise paramiko.SSHException("AES-GCM was dropped in a key exchange")
        else:
            super().set_inbound_cipher(*arguments, **named)
            self._reader.set_cipher(*arguments, **named)
        self._keys_changed(1)

    def set_inbound_compressor(self, compressor: Any) -> None:
        """Inflate what arrives from here on, with a limit that paramiko's has not."""
        self._reader.inflate()

    def _keys_changed(self, which: int) -> None:
        self._fresh_keys |= which
        if self._fresh_keys == 3:
            self._fresh_keys = 0
            self._kex_since_s = None
            self._rekey_due = False
            self._keys_since_s = time.monotonic()

    def reset_seqno_out(self) -> None:
        """Number our packets from 0: strict key exchange."""
        super().reset_seqno_out()
        self._sequence_out = 0
        if self._engine is not None:
            self._engine.set_sequence_out(0)

    def reset_seqno_in(self) -> None:
        """Number the peer's packets from 0: strict key exchange."""
        super().reset_seqno_in()
        self._reader.sequence = 0
        if self._engine is not None:
            self._engine.set_sequence_in(0)

    def need_rekey(self) -> bool:
        """Say whether it is time for a key exchange."""
        # Looked at for each message; the loop of the engine has a timer of its own.
        if self._seal_keys and self._keys_are_old():
            self._rekey_due = True
        return self._rekey_due or bool(super().need_rekey())

    def _keys_are_old(self) -> bool:
        return time.monotonic() >= self._keys_since_s + self.rekey_s

    # Sending.

    def wait_for_room(self) -> None:
        """Block while the send queue is full. Not for the transport's thread.

        Without any lock: what empties the queue is the transport's thread, which may
        need each of them. Raises EOFError when the connection is over.
        """
        if self._seals and self._engine is not None:
            self._engine.wait_room()

    def send_message(self, data: Message) -> None:
        """Send one message; hold it while keys are exchanged.

        Never blocks once the engine seals; before, while the socket is full.
        """
        kind = data.asbytes()[0]
        with self._send_lock:
            if kind == MSG_KEXINIT:
                self._holding = True
                self._fresh_keys = 0
                self._kex_since_s = time.monotonic()
                if self._engine is not None:
                    self._engine.hold()
                    self._engine.wake()  # it waits longer than this may take
            elif kind in (MSG_DISCONNECT, MSG_NEWKEYS):
                # Behind NEWKEYS the peer understands nothing before our key is set.
                self._said_disconnect = True
            elif self._holding and kind >= FIRST_HELD_MESSAGE:
                if len(self._held) >= HELD_MESSAGES_MAX:
                    self._overrun("the peer asks on and on, and ends no key exchange")
                self._held.append(data)
                return
            self._send(data)

    def _send(self, data: Message) -> None:
        if self._seals and self._engine is not None:
            payload = data.asbytes()
            if self.get_hexdump():
                self._dump("OUT", payload[0], payload[1:])
            try:
                self._engine.send(payload)
            except BufferError:
                self._overrun("the peer does not read what it asks for")
            except MemoryError:
                self._overrun("out of memory", DisconnectCode.BY_APPLICATION)
        else:
            super().send_message(data)
            self._sequence_out += 1

    def write_all(self, out: Buffer) -> None:
        """Write to the socket. Blocks while it is full, but not for a dead peer.

        The thread that keeps watch over the peer may be the one that waits here, or
        for the lock. So who takes nothing is dead after the time that he may be silent.
        Raises `PeerDead`; EOFError when the connection is over.
        """
        # TCP keepalive and TCP_USER_TIMEOUT see nothing wrong with a window of 0.
        rest = bytes(out)
        looked_s, waited_s = time.monotonic(), 0.0
        while rest:
            if isinstance(self._fault, PeerDead):
                raise self._fault  # another thread has waited
            try:
                sent = self._socket.send(rest)
            except (TimeoutError, BlockingIOError):
                sent = None
            except paramiko.ProxyCommandFailure:
                raise  # says why
            except Exception as error:  # the socket may be anything that sends
                raise EOFError(str(error)) from error
            if sent:
                rest = rest[sent:]
                looked_s, waited_s = time.monotonic(), 0.0
                continue
            if sent == 0 or self.closed:
                raise EOFError
            # In a longer wait than the socket's we were stopped, not the peer.
            now_s = time.monotonic()
            waited_s += min(now_s - looked_s, ANSWER_GRACE_S)
            looked_s = now_s
            if self._keepalive is not None and waited_s > self._keepalive.limit_s:
                self._fault = PeerDead(
                    f"the peer has taken nothing for {self._keepalive.limit_s:g} s: "
                    "the network or the peer is down"
                )

    # Receiving.

    def read_message(self) -> tuple[int, Message]:
        """Return the next message that is not for a pumped channel. Blocks.

        Raises NeedRekeyException when it is time for a key exchange, EOFError when
        the connection ended, PeerFault (SSH_DISCONNECT_PROTOCOL_ERROR, MAC_ERROR) when
        the peer broke the protocol.
        """
        engine = self._engine
        if engine is None or not self._opens:
            return self._read_in_python()
        while True:
            self._check_faults()
            event, detail = engine.next(self._wait_ms())
            if event == _engine.PACKET:
                kind, body, sequence = detail
                if kind in REPLIES and self._is_pumped(body):
                    self.on_reply(int.from_bytes(body[:4], "big"), kind == REPLIES[0])
                    continue
                if kind == MSG_CHANNEL_REQUEST and self._is_pumped(body):
                    self._pass_request(int.from_bytes(body[:4], "big"), body[4:])
                    continue
                if self.get_hexdump():
                    self._dump("IN", kind, body)
                message = PeerMessage(body)
                message.seqno = sequence
                return kind, message
            if event == _engine.ENDED:
                self._report_ended(engine)
            elif event in (_engine.TIMEOUT, _engine.WOKEN):
                self._check_timers()
            elif event == _engine.REKEY:
                self._rekey_due = True
                raise NeedRekeyException
            elif event == _engine.FAULT:
                self._fail(PeerFault(detail[1], DisconnectCode(detail[0])))
            elif event == _engine.ERROR:
                raise OSError(detail, os.strerror(detail))
            else:
                raise EOFError

    def _read_in_python(self) -> tuple[int, Message]:
        self._check_faults()
        payload, sequence = self._reader.next()
        if sequence == 2**32 - 1 and not self._seal_keys:
            # The numbers may not come again before there are keys (Terrapin).
            raise PeerFault("the peer sent 2^32 packets and no keys")
        if not self._rekey_due and (
            self._reader.key_bytes >= self.REKEY_BYTES
            or self._reader.key_packets >= self.REKEY_PACKETS
        ):
            self._rekey_due = True
        if self.get_hexdump():
            self._dump("IN", payload[0], payload[1:])
        message = PeerMessage(payload[1:])
        message.seqno = sequence
        return payload[0], message

    def _read_timeout(self, timeout: float) -> bytes:
        """Read in front of the first packet, where nothing but lines may come."""
        data: bytes = _stock._read_timeout(self, timeout)
        self._line_bytes += len(data)
        if b"\n" in data:
            self._line_bytes = 0
        if self._line_bytes > BANNER_LINE_MAX_BYTES:
            raise PeerFault(f"a line of more than {BANNER_LINE_MAX_BYTES} bytes")
        return data

    @staticmethod
    def _is_pumped(body: bytes) -> bool:
        return bool(int.from_bytes(body[:4], "big") & _engine.CHANNEL_ID_BASE)

    def _pass_request(self, local_id: int, body: bytes) -> None:
        try:
            self.on_request(local_id, body)
        except ProtocolError as error:
            self._fail(PeerFault(str(error), DisconnectCode.PROTOCOL_ERROR))

    def _report_ended(self, engine: _engine.Engine) -> None:
        ended = engine.take_ended()
        if self.on_ended is not None:
            self.on_ended(ended)

    def _fail(self, error: PeerFault | PeerDead) -> NoReturn:
        """End the connection with DISCONNECT, then raise. Transport's thread."""
        say_disconnect(self._send_packet, error)
        raise error

    def _send_packet(self, packet: bytes) -> None:
        self.send_message(Message(packet))

    def _overrun(
        self, why: str, code: DisconnectCode = DisconnectCode.PROTOCOL_ERROR
    ) -> NoReturn:
        """Refuse to send; the transport's thread ends the connection for it."""
        fault = self._fault = PeerFault(why, code)
        if self._engine is not None:
            self._engine.wake()
        raise fault

    def _check_faults(self) -> None:
        if self._fault is not None:
            self._fail(self._fault)
        if (
            self._kex_since_s is not None
            and time.monotonic() >= self._kex_since_s + self.kex_timeout_s
        ):
            self._kex_since_s = None
            self._fail(
                PeerFault(
                    f"the peer ended no key exchange in {self.kex_timeout_s:g} s",
                    DisconnectCode.KEY_EXCHANGE_FAILED,
                )
            )

    # Dumps, for `Transport.set_hexdump`. The bytes of pumped channels are not in them.

    def set_log(self, log: logging.Logger) -> None:
        """Log here from now on."""
        super().set_log(log)
        self._dump_log = log

    def _dump(self, direction: str, kind: int, body: bytes) -> None:
        name = MSG_NAMES.get(kind, f"message {kind}")
        self._dump_log.debug("%s: %s, %d bytes", direction, name, len(body) + 1)
        for line in format_binary(bytes([kind]) + body, f"{direction}: "):
            self._dump_log.debug("%s", line)

    # Timers.

    def watch_peer(self, keepalive: Keepalive | None, ask: Callable[[], None]) -> None:
        """Ask after silence, and end the connection if no answer comes."""
        self._ask = ask
        self._keepalive = keepalive
        if self._engine is not None:
            self._engine.wake()  # it may be waiting for ever

    @property
    def heard_bytes(self) -> int:
        """A number that grows with what arrives."""
        if self._opens and self._engine is not None:
            heard: int = self._engine.stats()[0]
            return heard
        return self._reader.sequence

    def _wait_ms(self) -> int:
        now_s = time.monotonic()
        wait_s = self.rekey_s
        if not self._rekey_due:
            wait_s = self._keys_since_s + self.rekey_s - now_s
        if self._keepalive is not None:
            wait_s = min(wait_s, self._keepalive.next_s(now_s))
        if self._kex_since_s is not None:
            wait_s = min(wait_s, self._kex_since_s + self.kex_timeout_s - now_s)
        return max(int(wait_s * 1000) + 1, 1)

    def _check_keepalive(self) -> None:
        # paramiko calls this when a read of the socket timed out.
        self._check_faults()
        if self._seal_keys and not self._rekey_due and self._keys_are_old():
            self._rekey_due = True
            _stock._trigger_rekey(self)  # the read ends before the next packet
        if self._keepalive is None:
            _stock._check_keepalive(self)
        elif not self._holding:
            self._check_peer(self._keepalive)

    def _check_timers(self) -> None:
        if self._was_closed:
            raise EOFError
        if self._keepalive is not None:
            self._check_peer(self._keepalive)
        if not self._rekey_due and self._keys_are_old():
            self._rekey_due = True
            raise NeedRekeyException

    def _check_peer(self, keepalive: Keepalive) -> None:
        verdict = keepalive.judge(time.monotonic(), self.heard_bytes)
        if verdict is Verdict.ASK and self._ask is not None:
            self._ask()
        elif verdict is Verdict.DEAD:
            self._fail(
                PeerDead(
                    f"the peer has not answered for {keepalive.limit_s:g} s: "
                    "the network or the peer is down"
                )
            )

    # The end.

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._was_closed or bool(super().closed)

    def drain(self) -> None:
        """Let the last messages leave, for a moment. Not on the transport's thread."""
        if self._engine is not None:
            self._engine.drain(DRAIN_MS)

    def close(self) -> None:
        """End the connection; the transport's thread closes the socket.

        Closing the socket here would pull it from under the loop, and its number could
        be another file's by the time the loop looks.
        """
        self.say_last_words()
        self.leave()
        if self._engine is None:
            return
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EBADF):
                raise

    def say_last_words(self) -> None:
        """Send DISCONNECT if the transport's thread gives up, and has not said why."""
        fault = None if self._said_disconnect else self.last_words()
        if fault is not None:
            say_disconnect(self._send_packet, fault)

    def leave(self) -> None:
        """Stop here, as `close`, but leave the socket's connection as it is."""
        self._was_closed = True
        if self._engine is None:
            super().close()
        else:
            self._engine.close()

    def finish(self) -> None:
        """The transport's thread has ended: give back what the engine holds."""
        self.complete_handshake()  # ends paramiko's timer, which is a thread
        if self._engine is not None:
            self._engine.finish()

    def leave_to_parent(self) -> None:
        """Stop in the child of a fork, where no other thread is left.

        The engine is not touched any more, nor freed: its lock may be held for ever,
        and its local sockets are the parent's, which freeing would reset.
        """
        self._was_closed = True
        if self._engine is not None:
            _left_to_parent.append(self._engine)
        self._engine = None


def why_no_engine(sock: Any) -> str | None:
    """Return why the engine cannot run on this socket here, or None if it can."""
    misfit = seams.engine_misfit()
    if misfit is not None:
        return misfit
    if not sys.platform.startswith("linux"):
        return "the engine needs Linux (epoll)"
    if not isinstance(sock, socket.socket) or sock.type != socket.SOCK_STREAM:
        return "the connection is not a kernel socket"
    try:
        _engine.load_libcrypto(os.environ.get("RTUNNEL_LIBCRYPTO") or None)
    except _engine.LibcryptoUnavailable as error:
        return str(error)
    return None
