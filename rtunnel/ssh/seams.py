"""Every private name of paramiko that is used, in one place.

The names exist, with the meaning given here, in paramiko 3.5.1 and 5.1.0; a test
checks each of them on every supported version. `packetizer_class` of the
constructor and `_handler_table` ("for easier per-instance manipulation and subclass
twiddling", says paramiko) are meant to be used; the others are not promised.

So they are looked at before they are used. Where what the engine alone stands on is not
as it was, it does not run, and a portable backend does (`engine_misfit`). Without what
every backend stands on there is no connection, and the error says why (`require`).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Final, Protocol

import paramiko
from paramiko.message import Message
from paramiko.packet import Packetizer

from rtunnel.errors import BackendUnavailable
from rtunnel.wire import Reader, u32

log = logging.getLogger("rtunnel.ssh")

# What the stubs of paramiko do not know is reached through this alias.
AnyTransport = Any
AnySftp = Any

MSG_DISCONNECT: Final = 1
MSG_UNIMPLEMENTED: Final = 3
MSG_GLOBAL_REQUEST: Final = 80
MSG_REQUEST_SUCCESS: Final = 81
MSG_REQUEST_FAILURE: Final = 82
MSG_CHANNEL_OPEN: Final = 90
MSG_CHANNEL_OPEN_CONFIRMATION: Final = 91
MSG_CHANNEL_OPEN_FAILURE: Final = 92
MSG_CHANNEL_WINDOW_ADJUST: Final = 93
MSG_CHANNEL_DATA: Final = 94
MSG_CHANNEL_EXTENDED_DATA: Final = 95
MSG_CHANNEL_EOF: Final = 96
MSG_CHANNEL_CLOSE: Final = 97
MSG_CHANNEL_REQUEST: Final = 98
MSG_CHANNEL_SUCCESS: Final = 99
MSG_CHANNEL_FAILURE: Final = 100

# SFTP (draft-ietf-secsh-filexfer-02, section 3).
SFTP_VERSION: Final = 3
CMD_INIT: Final = 1
CMD_VERSION: Final = 2
CMD_EXTENDED: Final = 200

Handler = Callable[[Message], None]
ChannelHandler = Callable[[Any, Message], None]

TRANSPORT_NAMES: Final = (
    "_channel_handler_table",
    "_ensure_authed",
    "_log",
    "_next_channel",
    "_parse_debug",
    "_parse_disconnect",
    "_parse_newkeys",
    "_queue_incoming_channel",
    "_sanitize_packet_size",
    "_sanitize_window_size",
    "_send_message",
    "_send_user_message",
)
TRANSPORT_ATTRIBUTES: Final = (
    "_channels",
    "_handler_table",
    "_tcp_handler",
    "channel_events",
    "channels_seen",
    "clear_to_send",
    "clear_to_send_timeout",
    "lock",
    "saved_exception",
    "server_accepts",
)
CHANNEL_NAMES: Final = (
    "_check_add_window",
    "_event_pending",
    "_set_remote_channel",
    "_set_transport",
    "_set_window",
    "_unlink",
    "_wait_for_event",
)

CHANNEL_ATTRIBUTES: Final = (
    "event",
    "in_buffer",
    "in_max_packet_size",
    "in_stderr_buffer",
    "in_window_size",
    "in_window_sofar",
    "out_window_size",
    "remote_chanid",
)

SFTP_NAMES: Final = ("_convert_status", "_read_packet", "_request", "_send_packet")
SFTP_ATTRIBUTES: Final = ("_expecting", "_lock", "request_number")


class MapEntry(Protocol):
    """What paramiko asks of an object in its map of channels."""

    def _unlink(self) -> None:
        """Called when the connection ended: by its thread, or by `close()`."""


def handler_table(transport: AnyTransport) -> dict[int, Handler]:
    """Return the instance's message handlers; replacing entries is foreseen."""
    table: dict[int, Handler] = transport._handler_table
    return table


def payload(message: Message) -> bytes:
    """Return what of a message has not been read yet: everything after its type."""
    return message.get_remainder()


def rewind(message: Message) -> Message:
    """Make a message be read from its start again, as a handler expects it."""
    message.rewind()
    return message


class _ChannelTable(dict[int, ChannelHandler]):
    """Channel messages: ours to the owner of the channel, the rest to paramiko.

    paramiko finds the channel in its map, then calls `table[type](channel, message)`.
    """

    def __init__(
        self, originals: Mapping[int, ChannelHandler], ours: type[Any]
    ) -> None:
        super().__init__(
            {kind: self._route(kind, call, ours) for kind, call in originals.items()}
        )

    @staticmethod
    def _route(kind: int, original: ChannelHandler, ours: type[Any]) -> ChannelHandler:
        def route(channel: Any, message: Message) -> None:
            if isinstance(channel, ours):
                channel.handle(kind, message)
            else:
                original(channel, message)

        return route


def route_channel_messages(transport: AnyTransport, ours: type[Any]) -> None:
    """Send messages for channels of the class `ours` to their `handle`."""
    transport._channel_handler_table = _ChannelTable(
        transport._channel_handler_table, ours
    )


def check_channel_messages(
    transport: AnyTransport,
    checks: Mapping[int, Callable[[paramiko.Channel, Reader], bool]],
) -> None:
    """Let messages for channels of paramiko's pass only where their check says so."""

    def checked(
        check: Callable[[paramiko.Channel, Reader], bool], original: ChannelHandler
    ) -> ChannelHandler:
        def handle(channel: Any, message: Message) -> None:
            fields = Reader(payload(message))
            if not isinstance(channel, paramiko.Channel) or check(channel, fields):
                original(channel, message)

        return handle

    table = transport._channel_handler_table
    for kind, check in checks.items():
        table = table | {kind: checked(check, table[kind])}
    transport._channel_handler_table = table


class _EveryNumber:
    """In the place of the table of all channels there ever were.

    A message for a channel that is not there is dropped, whether it ever was. (paramiko
    ends the connection at one for a channel that never was, without a word, and its
    table never shrinks.)
    """

    def __contains__(self, number: object) -> bool:
        return True

    def __setitem__(self, number: int, seen: bool) -> None:
        pass


def take_every_channel_for_seen(transport: AnyTransport) -> None:
    """Have messages for unknown channels dropped, and no channel remembered."""
    transport.channels_seen = _EveryNumber()


def is_opening(transport: AnyTransport, number: int) -> bool:
    """Say whether an open of paramiko's own waits for its answer."""
    return number in transport.channel_events


def mark_questions(transport: AnyTransport) -> None:
    """Let `awaits_reply` hold for channels of paramiko's that are made from here on.

    The event of a channel is cleared by a request that wants a reply, and set by the
    reply and by the end; what is missing is that it begins set.
    """
    channels = transport._channels
    original = channels.put

    def put(number: int, channel: Any) -> None:
        if isinstance(channel, paramiko.Channel):
            made: Any = channel
            made.event.set()
        original(number, channel)

    channels.put = put


def awaits_reply(channel: Any) -> bool:
    """Say whether a request on a channel of paramiko's waits for its reply."""
    return not channel.event.is_set()


def accept_queue_length(transport: AnyTransport) -> int:
    """Return how many channels wait for `transport.accept()`."""
    return len(transport.server_accepts)


def receive_limits(channel: Any) -> tuple[int, int]:
    """Return the window that the peer was given, and its largest packet."""
    return channel.in_window_size, channel.in_max_packet_size


def uncredited_bytes(channel: Any) -> int:
    """Return what arrived on a channel and was not credited, at least."""
    unread = len(channel.in_buffer) + len(channel.in_stderr_buffer)
    return unread + int(channel.in_window_sofar)


def send_window_bytes(channel: Any) -> int:
    """Return what may be sent on a channel."""
    return int(channel.out_window_size)


def credit(channel: Any, count: int) -> None:
    """Give back what nobody will read of a channel's window. Transport's thread."""
    due = channel._check_add_window(count)
    if due:
        packet = bytes([MSG_CHANNEL_WINDOW_ADJUST])
        send_now(channel.transport, packet + u32(channel.remote_chanid) + u32(due))


def send_unimplemented(transport: AnyTransport, message: Any) -> None:
    """Answer a message of the peer with UNIMPLEMENTED."""
    send_now(transport, bytes([MSG_UNIMPLEMENTED]) + u32(message.seqno))


def after_channel_requests(
    transport: AnyTransport, then: Callable[[Any], object]
) -> None:
    """Call `then` with a channel whenever paramiko has answered a request on it.

    What is sent by then is behind the answer. On the transport's thread. To be called
    behind `route_channel_messages`.
    """
    table = dict(transport._channel_handler_table)
    original = table[MSG_CHANNEL_REQUEST]

    def handle(channel: Any, message: Message) -> None:
        try:
            original(channel, message)
        finally:
            then(channel)

    transport._channel_handler_table = table | {MSG_CHANNEL_REQUEST: handle}


def register_channel(transport: AnyTransport, channel: MapEntry) -> int:
    """Take the next free channel number for `channel`, which the caller keeps alive.

    paramiko's map is weak: an entry lives as long as somebody else holds the object.
    """
    with transport.lock:
        number: int = transport._next_channel()
        transport._channels.put(number, channel)
        # Else a late message for the number would end the connection.
        transport.channels_seen[number] = True
    return number


def unregister_channel(transport: AnyTransport, number: int) -> None:
    """Free a channel number: both sides have sent CLOSE."""
    transport._channels.delete(number)


# A number that no peer can name: channel numbers have 32 bits.
_WATCH_NUMBER: Final = 1 << 32


class _Watch:
    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end

    def _unlink(self) -> None:
        self._on_end()


def watch_end(transport: AnyTransport, on_end: Callable[[], None]) -> object:
    """Have `on_end` called when the connection ends; keep what is returned alive.

    It may be called more than once, and from the transport's thread or from the one
    that calls `transport.close()`.
    """
    watch = _Watch(on_end)
    transport._channels.put(_WATCH_NUMBER, watch)
    return watch


def has_stock_channels(transport: AnyTransport) -> bool:
    """Say whether a channel of paramiko's own is open: exec, SFTP and the like."""
    return any(isinstance(c, paramiko.Channel) for c in transport._channels.values())


def is_over(transport: AnyTransport) -> bool:
    """Say whether the connection has ended, and its channels for that reason.

    paramiko's thread closes the channels first, and says that it is not active after
    that: a channel that has just closed may have done so on its own, or with all.
    """
    threads: Any = paramiko.transport
    return not transport.is_active() or transport not in threads._active_threads


def end_of(transport: AnyTransport) -> BaseException | None:
    """Return the exception that ended the transport's thread, if any."""
    error: BaseException | None = transport.saved_exception
    return error


def shadow(transport: AnyTransport, name: str, function: Callable[..., Any]) -> Any:
    """Put `function` before a method of this one transport; return the original."""
    original = getattr(transport, name)
    setattr(transport, name, function)
    return original


def send(transport: AnyTransport, packet: bytes) -> None:
    """Send one message, after a key exchange that is under way.

    Blocks while one is, and while the socket is full: never for the transport's
    thread, which has to finish the key exchange.
    """
    transport._send_user_message(Message(packet))


def send_now(transport: AnyTransport, packet: bytes) -> None:
    """Send one message, key exchange or not: for DISCONNECT, and as paramiko does.

    May block while the socket is full.
    """
    transport._send_message(Message(packet))


def abort(transport: AnyTransport) -> None:
    """Cut the connection under its thread, which then ends it. Never blocks."""
    # shutdown wakes the thread; close alone would leave it in recv on a number that
    # may be another file by then.
    with contextlib.suppress(OSError, AttributeError):
        transport.sock.shutdown(socket.SHUT_RDWR)
    transport.packetizer.close()


def tcp_handler(transport: AnyTransport) -> Callable[..., None] | None:
    """Return the handler of paramiko's own `request_port_forward`, if any."""
    handler: Callable[..., None] | None = transport._tcp_handler
    return handler


def queue_channel(transport: AnyTransport, channel: paramiko.Channel) -> None:
    """Give a channel to whoever calls `transport.accept()`."""
    transport._queue_incoming_channel(channel)


def make_channel(
    transport: AnyTransport, remote_id: int, window_bytes: int, max_packet_bytes: int
) -> paramiko.Channel:
    """Make a paramiko channel for an open of the peer, as paramiko does itself."""
    channel: Any = paramiko.Channel(0)
    channel.chanid = number = register_channel(transport, channel)
    channel._name = str(number)
    with transport.lock:
        channel._set_transport(transport)
        channel._set_window(
            transport.default_window_size, transport.default_max_packet_size
        )
        channel._set_remote_channel(remote_id, window_bytes, max_packet_bytes)
    made: paramiko.Channel = channel
    return made


def request_on_channel(channel: Any, fields: bytes, wait: bool) -> None:
    """Send CHANNEL_REQUEST; with `wait`, wait for the reply as paramiko's own do."""
    message = Message()
    message.add_byte(bytes([MSG_CHANNEL_REQUEST]))
    message.add_int(channel.remote_chanid)
    message.add_bytes(fields)
    if wait:
        channel._event_pending()
    channel.transport._send_user_message(message)
    if wait:
        channel._wait_for_event()


class SftpTransfer(Protocol):
    """What paramiko asks of an object that waits for replies of an SFTP server."""

    def _async_response(self, kind: int, message: Message, number: int) -> None:
        """Called with a reply that somebody else has read."""


def agree_on_sftp_version(client: AnySftp) -> tuple[int, set[str]]:
    """Say which version of SFTP is spoken; return the server's and its extensions.

    (draft-ietf-secsh-filexfer-02, section 4)
    """
    hello = Message()
    hello.add_int(SFTP_VERSION)
    client._send_packet(CMD_INIT, hello)
    kind, data = client._read_packet()
    if kind != CMD_VERSION or len(data) < 4:
        raise paramiko.SFTPError("Incompatible sftp protocol")
    message = Message(data)
    version = message.get_int()
    extensions: set[str] = set()
    while message.get_remainder():
        extensions.add(message.get_binary().decode("utf-8", "replace"))
        message.get_binary()
    return version, extensions


def request_of_sftp(client: AnySftp, name: str) -> tuple[int, Message]:
    """Send an extended request without arguments; return type and text of the reply."""
    reply: tuple[int, Message] = client._request(CMD_EXTENDED, name)
    return reply


def next_sftp_request(client: AnySftp, owner: SftpTransfer) -> int:
    """Take the next number of a request, whose reply is for `owner`.

    Its table is weak: the entry goes with the owner.
    """
    with client._lock:
        number: int = client.request_number
        client.request_number += 1
        client._expecting[number] = owner
    return number


def forget_sftp_request(client: AnySftp, number: int) -> None:
    """Have nobody wait for the reply to a request any more."""
    with client._lock:
        client._expecting.pop(number, None)


def dispatch_sftp_reply(client: AnySftp, kind: int, number: int, body: bytes) -> None:
    """Give a reply to whom paramiko would give it; drop it if that is nobody."""
    with client._lock:
        owner = client._expecting.pop(number, None)
    if owner is not None and owner is not type(None):
        owner._async_response(kind, Message(body), number)


def check_sftp_status(client: AnySftp, message: Message) -> None:
    """Raise what a status says: OSError, or EOFError at the end of a file."""
    client._convert_status(message)


def missing_names() -> Iterator[str]:
    """Yield each name above that this paramiko does not have."""
    for name in TRANSPORT_NAMES:
        if not hasattr(paramiko.Transport, name):
            yield f"Transport.{name}"
    if not hasattr(paramiko.transport, "_active_threads"):
        yield "transport._active_threads"
    for name in CHANNEL_NAMES:
        if not hasattr(paramiko.Channel, name):
            yield f"Channel.{name}"
    for name in SFTP_NAMES:
        if not hasattr(paramiko.SFTPClient, name):
            yield f"SFTPClient.{name}"


@cache
def require() -> None:
    """Raise BackendUnavailable where paramiko lacks what every backend stands on."""
    missing = ", ".join(missing_names())
    if missing:
        raise BackendUnavailable(
            f"paramiko {paramiko.__version__} has no {missing}, which rtunnel needs: "
            "install a version that it supports (pip install 'paramiko>=3.5,<6')"
        )


_KEYS: Final = "block_engine block_size mac_engine mac_size mac_key"
# What the engine replaces in paramiko, with the arguments that it is called with.
ENGINE_CALLS: Final = (
    (paramiko.Transport, "_get_engine", "name key iv operation aead"),
    (Packetizer, "set_outbound_cipher", f"{_KEYS} sdctr etm aead iv_out"),
    (Packetizer, "set_inbound_cipher", f"{_KEYS} etm aead iv_in"),
    (Packetizer, "reset_seqno_out", ""),
    (Packetizer, "reset_seqno_in", ""),
    (Packetizer, "need_rekey", ""),
    (Packetizer, "read_message", ""),
    (Packetizer, "send_message", "data"),
    (Packetizer, "_check_keepalive", ""),
    (Packetizer, "_trigger_rekey", ""),
)


@cache
def engine_misfit() -> str | None:
    """Return why the engine does not fit into this paramiko, or None; log it once."""
    for owner, name, arguments in ENGINE_CALLS:
        call = getattr(owner, name, None)
        if call is None:
            what = "is gone"
        elif [*inspect.signature(call).parameters][1:] != arguments.split():
            what = "has other arguments"
        else:
            continue
        reason = f"{owner.__name__}.{name} of paramiko {paramiko.__version__} {what}"
        log.warning("the engine does not run, a portable backend does: %s", reason)
        return reason
    return None
