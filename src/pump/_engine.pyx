"""The engine of `rtunnel.Transport`: packets, keys and pumped channels in C.

Private. `rtunnel.ssh.packetizer` drives it; src/pump/engine.h is the contract. Every
call gives up the GIL; errors of the C layer become Python exceptions here and nowhere
else.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stddef cimport size_t

cimport cython

cdef extern from "gcm.h" nogil:
    int rt_gcm_load(const char *path, char *why, size_t why_len)
    const char *rt_gcm_library()
    const char *rt_gcm_version()

cdef extern from "channels.h" nogil:
    int RT_CHANNEL_ID_BASE

cdef extern from "engine.h" nogil:
    ctypedef struct rt_engine:
        pass
    ctypedef struct rt_event:
        int kind
        const uint8_t *payload
        size_t len
        uint32_t sequence
        int error
        int code
        const char *why
    ctypedef struct rt_peer_side:
        uint32_t remote_id
        uint32_t window_bytes
        uint32_t max_packet_bytes
    ctypedef struct rt_ended:
        uint32_t local_id
        uint64_t bytes_in
        uint64_t bytes_out
        int error
        int was_reset
    ctypedef struct rt_channel_stats:
        uint64_t bytes_in
        uint64_t bytes_out
        uint32_t send_window
        size_t buffered
    ctypedef struct rt_engine_stats:
        uint64_t bytes_in
        uint64_t bytes_out
        uint32_t channels
        size_t unsent
        uint64_t rtt_us
        uint64_t rtt_min_us
    ctypedef enum rt_priority:
        RT_PRIORITY_AUTO
        RT_PRIORITY_INTERACTIVE
        RT_PRIORITY_BULK
    ctypedef struct rt_rate_of:
        uint64_t key
        uint64_t bytes_per_s
    int RT_EGONE, RT_ENOMEM, RT_ECLOSED, RT_EINVAL, RT_EFULL
    int RT_EV_TIMEOUT, RT_EV_PACKET, RT_EV_ENDED, RT_EV_WOKEN, RT_EV_REKEY
    int RT_EV_EOF, RT_EV_ERROR, RT_EV_FAULT
    rt_engine *rt_engine_new(int fd)
    void rt_engine_free(rt_engine *e)
    int rt_engine_set_open_key(rt_engine *e, const uint8_t *key, size_t n,
                               const uint8_t *iv)
    int rt_engine_set_seal_key(rt_engine *e, const uint8_t *key, size_t n,
                               const uint8_t *iv)
    void rt_engine_set_sequence_in(rt_engine *e, uint32_t sequence)
    void rt_engine_set_sequence_out(rt_engine *e, uint32_t sequence)
    void rt_engine_hold(rt_engine *e)
    void rt_engine_set_rekey_limits(rt_engine *e, uint64_t n_bytes, uint64_t packets)
    void rt_engine_next(rt_engine *e, int timeout_ms, rt_event *event)
    size_t rt_engine_take_ended(rt_engine *e, rt_ended *out, size_t max)
    void rt_engine_wake(rt_engine *e)
    void rt_engine_close(rt_engine *e)
    void rt_engine_end_channels(rt_engine *e)
    void rt_engine_finish(rt_engine *e)
    int rt_engine_wait_room(rt_engine *e)
    int rt_engine_send(rt_engine *e, const uint8_t *payload, size_t n)
    int rt_engine_drain(rt_engine *e, int timeout_ms)
    int rt_engine_accept_limited(rt_engine *e, int fd, const rt_peer_side *peer,
                                 uint32_t window_bytes, uint32_t max_packet_bytes,
                                 rt_priority priority, const rt_rate_of *rate,
                                 uint32_t *local_id)
    int rt_engine_reserve(rt_engine *e, uint32_t window_bytes,
                          uint32_t max_packet_bytes, rt_priority priority,
                          uint32_t *local_id)
    int rt_engine_confirm(rt_engine *e, uint32_t local_id, int fd,
                          const rt_peer_side *peer)
    int rt_engine_cancel(rt_engine *e, uint32_t local_id)
    int rt_engine_pass_requests(rt_engine *e, uint32_t local_id)
    int rt_engine_reset(rt_engine *e, uint32_t local_id)
    int rt_engine_channel_stats(rt_engine *e, uint32_t local_id, rt_channel_stats *out)
    void rt_engine_stats_now(rt_engine *e, rt_engine_stats *out)

cdef extern from "live.h" nogil:
    ctypedef enum rt_live_kind:
        pass
    int RT_DEBUG, RT_LIVE_KINDS
    int rt_live_count(rt_live_kind kind)
    const char *rt_live_name(rt_live_kind kind)

TIMEOUT = RT_EV_TIMEOUT
PACKET = RT_EV_PACKET
ENDED = RT_EV_ENDED
WOKEN = RT_EV_WOKEN
REKEY = RT_EV_REKEY
EOF = RT_EV_EOF
ERROR = RT_EV_ERROR
FAULT = RT_EV_FAULT

# Numbers of pumped channels have this bit, those of paramiko do not.
CHANNEL_ID_BASE = RT_CHANNEL_ID_BASE

PRIORITIES = {
    "auto": RT_PRIORITY_AUTO,
    "interactive": RT_PRIORITY_INTERACTIVE,
    "bulk": RT_PRIORITY_BULK,
}

cdef enum:
    ENDED_PER_CALL = 64


class LibcryptoUnavailable(Exception):
    """No usable libcrypto: none found, too old, or it failed the self-test."""


def load_libcrypto(path=None):
    """Load libcrypto and run its self-test; return (file name, version).

    The first call in the process decides; `path` of later ones is not looked at.
    Raises LibcryptoUnavailable with the reason.
    """
    cdef char why[256]
    cdef bytes encoded = b"" if path is None else path.encode()
    cdef const char *c_path = encoded
    cdef int result
    with nogil:
        result = rt_gcm_load(c_path, why, sizeof(why))
    if result != 0:
        raise LibcryptoUnavailable(why.decode("utf-8", "replace"))
    return rt_gcm_library().decode(), rt_gcm_version().decode()


def live():
    """Return how many objects of this module live, by kind; None if nobody counts.

    Only debug builds count (src/pump/live.h). All are 0 once everything is closed. Call
    from any thread.
    """
    if not RT_DEBUG:
        return None
    return {
        rt_live_name(<rt_live_kind>kind).decode(): rt_live_count(<rt_live_kind>kind)
        for kind in range(RT_LIVE_KINDS)
    }


cdef int check(int result) except -1:
    if result == 0:
        return 0
    if result == RT_ENOMEM:
        raise MemoryError("the engine is out of memory or of channel ids")
    if result == RT_ECLOSED:
        raise EOFError("the connection is closed")
    if result == RT_EGONE:
        raise KeyError("no such channel")
    if result == RT_EFULL:
        raise BufferError("the peer does not read what it asks for")
    raise ValueError("the engine refused an argument")


@cython.final
cdef class Engine:
    """One SSH connection's packets and pumped channels.

    `fd` is the connected SSH socket; it stays the caller's, open until `close`.
    """

    cdef rt_engine *_engine

    def __cinit__(self, int fd):
        self._engine = rt_engine_new(fd)
        if self._engine is NULL:
            raise OSError(errno, "cannot set up the engine")

    def __dealloc__(self):
        if self._engine is not NULL:
            rt_engine_free(self._engine)

    def set_open_key(self, bytes key not None, bytes iv not None):
        """Open packets with this AES-GCM key from here on. Transport thread."""
        cdef const uint8_t *k = key
        cdef const uint8_t *v = iv
        if len(iv) != 12:
            raise ValueError("the IV has to be 12 bytes")
        check(rt_engine_set_open_key(self._engine, k, len(key), v))

    def set_seal_key(self, bytes key not None, bytes iv not None):
        """Seal packets with this AES-GCM key from here on, and end the hold."""
        cdef const uint8_t *k = key
        cdef const uint8_t *v = iv
        if len(iv) != 12:
            raise ValueError("the IV has to be 12 bytes")
        check(rt_engine_set_seal_key(self._engine, k, len(key), v))

    def set_sequence_in(self, uint32_t sequence):
        rt_engine_set_sequence_in(self._engine, sequence)

    def set_sequence_out(self, uint32_t sequence):
        rt_engine_set_sequence_out(self._engine, sequence)

    def hold(self):
        """Let no message of a pumped channel leave until the next seal key."""
        with nogil:
            rt_engine_hold(self._engine)

    def set_rekey_limits(self, uint64_t limit_bytes, uint64_t limit_packets):
        rt_engine_set_rekey_limits(self._engine, limit_bytes, limit_packets)

    def next(self, int timeout_ms):
        """Run the loop; return (kind, detail). Transport thread; blocks.

        The detail is (message number, body, sequence number) of a PACKET, the errno of
        an ERROR, (disconnect code, text) of a FAULT, else None.
        """
        cdef rt_event event
        with nogil:
            rt_engine_next(self._engine, timeout_ms, &event)
        if event.kind == RT_EV_PACKET:
            return event.kind, (
                event.payload[0],
                PyBytes_FromStringAndSize(
                    <const char *> event.payload + 1, <Py_ssize_t> event.len - 1
                ),
                event.sequence,
            )
        if event.kind == RT_EV_ERROR:
            return event.kind, event.error
        if event.kind == RT_EV_FAULT:
            return event.kind, (event.code, event.why.decode())
        return event.kind, None

    def take_ended(self):
        """Return [(local_id, bytes_in, bytes_out, errno, was_reset)] since last time."""
        cdef rt_ended ended[ENDED_PER_CALL]
        cdef size_t n, i
        taken = []
        while True:
            with nogil:
                n = rt_engine_take_ended(self._engine, ended, ENDED_PER_CALL)
            for i in range(n):
                taken.append((
                    ended[i].local_id,
                    ended[i].bytes_in,
                    ended[i].bytes_out,
                    ended[i].error,
                    bool(ended[i].was_reset),
                ))
            if n < ENDED_PER_CALL:
                return taken

    def wake(self):
        with nogil:
            rt_engine_wake(self._engine)

    def close(self):
        """Make `next` return EOF and senders give up. Any thread."""
        with nogil:
            rt_engine_close(self._engine)

    def end_channels(self):
        """Finish or reset every local socket: the connection is over."""
        with nogil:
            rt_engine_end_channels(self._engine)

    def finish(self):
        """Give back descriptors, keys and buffers: `next` will not be called again."""
        with nogil:
            rt_engine_finish(self._engine)

    def wait_room(self):
        """Wait until the send queue has room. Not for the transport thread.

        Raises EOFError if the connection is over.
        """
        cdef int result
        with nogil:
            result = rt_engine_wait_room(self._engine)
        check(result)

    def send(self, const uint8_t[::1] payload not None):
        """Seal and send one message. Never blocks.

        Raises EOFError if the connection is over, BufferError if the send queue is at
        its maximum, MemoryError without memory for it, ValueError if it is empty or too
        large for a packet.
        """
        cdef int result
        cdef size_t n = <size_t> payload.shape[0]
        if n == 0:
            raise ValueError("a message has at least one byte")
        with nogil:
            result = rt_engine_send(self._engine, &payload[0], n)
        check(result)

    def drain(self, int timeout_ms):
        """Wait until all messages have left; return whether they have."""
        cdef int result
        with nogil:
            result = rt_engine_drain(self._engine, timeout_ms)
        return result == 0

    def accept(self, int fd, uint32_t remote_id, uint32_t send_window_bytes,
               uint32_t send_max_packet_bytes, uint32_t window_bytes,
               uint32_t max_packet_bytes, str priority not None="auto",
               uint64_t rate_key=0, uint64_t rate_bytes_per_s=0):
        """Confirm a channel that the peer opened and pump it to `fd`; return its id.

        Channels with the same rate and key keep that rate together, in each direction
        by itself; 0 is no rate. Owns `fd` at success only.
        """
        cdef rt_rate_of rate
        cdef rt_peer_side peer
        cdef uint32_t local_id = 0
        cdef int result
        cdef rt_priority first = PRIORITIES[priority]
        peer.remote_id = remote_id
        peer.window_bytes = send_window_bytes
        peer.max_packet_bytes = send_max_packet_bytes
        rate.key = rate_key
        rate.bytes_per_s = rate_bytes_per_s
        with nogil:
            result = rt_engine_accept_limited(
                self._engine, fd, &peer, window_bytes, max_packet_bytes, first,
                &rate if rate.bytes_per_s != 0 else NULL, &local_id,
            )
        check(result)
        return local_id

    def reserve(self, uint32_t window_bytes, uint32_t max_packet_bytes,
                str priority not None="auto"):
        """Return an id for a channel that we open."""
        cdef uint32_t local_id = 0
        cdef int result
        cdef rt_priority first = PRIORITIES[priority]
        with nogil:
            result = rt_engine_reserve(self._engine, window_bytes, max_packet_bytes,
                                       first, &local_id)
        check(result)
        return local_id

    def confirm(self, uint32_t local_id, int fd, uint32_t remote_id,
                uint32_t send_window_bytes, uint32_t send_max_packet_bytes):
        """Pump a channel that the peer confirmed to `fd`; owns it at success only."""
        cdef rt_peer_side peer
        cdef int result
        peer.remote_id = remote_id
        peer.window_bytes = send_window_bytes
        peer.max_packet_bytes = send_max_packet_bytes
        with nogil:
            result = rt_engine_confirm(self._engine, local_id, fd, &peer)
        check(result)

    def cancel(self, uint32_t local_id):
        """Forget a reserved id: the peer refused."""
        with nogil:
            rt_engine_cancel(self._engine, local_id)

    def pass_requests(self, uint32_t local_id):
        """Return the peer's requests on this channel as packets, from now on.

        Only for the thread that calls `next`, right behind `accept`.
        """
        with nogil:
            rt_engine_pass_requests(self._engine, local_id)

    def reset(self, uint32_t local_id):
        """Send CLOSE at once and reset the local socket; return whether it lived."""
        cdef int result
        with nogil:
            result = rt_engine_reset(self._engine, local_id)
        return result == 0

    def channel_stats(self, uint32_t local_id):
        """Return (bytes_in, bytes_out, send_window, buffered), or None if it ended."""
        cdef rt_channel_stats stats
        cdef int result
        with nogil:
            result = rt_engine_channel_stats(self._engine, local_id, &stats)
        if result != 0:
            return None
        return stats.bytes_in, stats.bytes_out, stats.send_window, stats.buffered

    def stats(self):
        """Return (wire bytes in, wire bytes out, channels, unsent bytes)."""
        cdef rt_engine_stats stats
        with nogil:
            rt_engine_stats_now(self._engine, &stats)
        return stats.bytes_in, stats.bytes_out, stats.channels, stats.unsent

    def path(self):
        """Return the round trip of the last probe and of the best one, in us; or 0, 0.

        Probes are sent while data moves.
        """
        cdef rt_engine_stats stats
        with nogil:
            rt_engine_stats_now(self._engine, &stats)
        return stats.rtt_us, stats.rtt_min_us
