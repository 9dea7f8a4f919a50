"""The compiled pump: pairs and ports moved by one epoll loop, without the GIL.

Theory of operation: src/pump/{reactor,relay,port}.h for the C that moves the bytes. This
file owns. A Pair or Port object owns its C structure, and the Reactor keeps the object
alive from `add_*` until its end was reported (`_live`); so the borrowed `owner` pointers
in C are good whenever a report comes. A Pair or Port keeps its Reactor, so the C reactor
outlives them all unless the garbage collector takes the whole group at once, when
nothing is attached any more by the time the second of them goes.

Threads: whoever called `run()` is the single writer of what is not under a lock in C.
Every C call that may take a lock is made without the GIL: a thread that waits for the
lock must not keep the one who holds it from running.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc cimport errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free

import threading

from rtunnel._pump_types import (
    PairEnd,
    buffer_full,
    check_ends,
    check_rate,
    check_socket,
    closed_error,
    fed_after_eof,
    foreign_rate,
    grant_error,
    log,
    os_error,
    poller_error,
    relay_with,
    select_error,
)


cdef extern from "relay.h" nogil:
    ctypedef struct rt_end:
        int read_fd
        int write_fd
        bint is_socket
        bint readable
        bint writable

    ctypedef struct rt_entry:
        pass

    ctypedef struct rt_flow:
        uint64_t bytes

    ctypedef struct rt_pair:
        rt_entry entry
        rt_flow ab
        rt_flow ba

    uint64_t rt_now_ns()
    rt_pair *rt_pair_new(
        rt_end a, rt_end b, uint64_t rate, uint64_t now_ns, void *owner
    )
    void rt_pair_free(rt_pair *pair)


cdef extern from "port.h" nogil:
    uint64_t RT_GRANT_MAX

    ctypedef enum rt_report_kind:
        RT_REPORT_CONSUMED
        RT_REPORT_READABLE
        RT_REPORT_EOF
        RT_REPORT_PORT_END
        RT_REPORT_PAIR_END

    ctypedef struct rt_report:
        rt_report_kind kind
        int error
        void *owner
        const uint8_t *data
        uint64_t n
        uint64_t bytes_ab
        uint64_t bytes_ba

    ctypedef struct rt_batch:
        unsigned n
        uint8_t *arena
        rt_report *reports

    ctypedef struct rt_port:
        rt_entry entry
        uint64_t bytes_in
        uint64_t bytes_out

    ctypedef struct rt_rate:
        pass

    rt_rate *rt_rate_new(uint64_t bytes_per_s, uint64_t now_ns)
    void rt_rate_release(rt_rate *rate)
    rt_port *rt_port_new(int fd, rt_rate *rate, void *owner)
    void rt_port_free(rt_port *port)
    int rt_port_grant(rt_port *port, uint64_t n)
    int rt_port_feed(rt_port *port, const uint8_t *data, size_t n)
    int rt_port_feed_eof(rt_port *port)
    int rt_port_close(rt_port *port)
    size_t rt_port_buffered(rt_port *port)


cdef extern from "poller.h" nogil:
    ctypedef enum rt_poller_kind:
        RT_EPOLL
        RT_POLL
        RT_SELECT


cdef extern from "reactor.h" nogil:
    ctypedef struct rt_reactor:
        pass

    enum:
        RT_REACTOR_REPORTS
        RT_REACTOR_INTERRUPTED
        RT_REACTOR_CLOSED

    rt_reactor *rt_reactor_new(rt_poller_kind kind)
    void rt_reactor_free(rt_reactor *reactor)
    int rt_reactor_attach(rt_reactor *reactor, rt_entry *entry)
    void rt_reactor_detach(rt_reactor *reactor, rt_entry *entry)
    void rt_reactor_touch(rt_reactor *reactor, rt_entry *entry)
    void rt_reactor_abort(rt_reactor *reactor, rt_entry *entry)
    int rt_reactor_enter(rt_reactor *reactor)
    void rt_reactor_leave(rt_reactor *reactor)
    int rt_reactor_step(rt_reactor *reactor, rt_batch *batch, bint attentive)
    void rt_reactor_close(rt_reactor *reactor)


cdef extern from "live.h" nogil:
    ctypedef enum rt_live_kind:
        pass
    int RT_DEBUG, RT_LIVE_KINDS
    int rt_live_count(rt_live_kind kind)
    const char *rt_live_name(rt_live_kind kind)


cdef dict _POLLERS = {
    "auto": RT_EPOLL,
    "epoll": RT_EPOLL,
    "poll": RT_POLL,
    "select": RT_SELECT,
}


cdef object _PRIVATE = object()


cdef str _made_by(object token, str name):
    if token is not _PRIVATE:
        raise TypeError(f"made by {name}(), not by a call")


@cython.final
cdef class Pair:
    """Two ends whose bytes go to each other. Made by `Reactor.add_pair`."""

    cdef Reactor _reactor
    cdef rt_reactor *_loop  # of _reactor, which the garbage collector may clear first
    cdef rt_pair *_core
    cdef object _on_end

    def __cinit__(self, token=None):
        _made_by(token, "Reactor.add_pair")

    def __dealloc__(self):
        if self._core is not NULL:
            rt_reactor_detach(self._loop, &self._core.entry)
            rt_pair_free(self._core)

    @property
    def bytes_ab(self) -> int:
        """Bytes delivered from a to b."""
        return self._core.ab.bytes

    @property
    def bytes_ba(self) -> int:
        """Bytes delivered from b to a."""
        return self._core.ba.bytes

    def reset(self) -> None:
        """Drop what is buffered and reset both ends: the peers see ECONNRESET.

        Never blocks. Call from any thread. Does nothing once ended.
        """
        with nogil:
            rt_reactor_abort(self._loop, &self._core.entry)


@cython.final
cdef class Rate:
    """A rate that several ports keep together. Made by `Reactor.add_rate`."""

    cdef Reactor _reactor
    cdef rt_rate *_core

    def __cinit__(self, token=None):
        _made_by(token, "Reactor.add_rate")

    def __dealloc__(self):
        if self._core is not NULL:
            rt_rate_release(self._core)


@cython.final
cdef class Port:
    """Memory on one side, a socket on the other. Made by `Reactor.add_port`.

    Every method may be called from any thread and never blocks; on a port that has
    ended they do nothing.
    """

    cdef Reactor _reactor
    cdef rt_reactor *_loop
    cdef rt_port *_core
    cdef object _events

    def __cinit__(self, token=None):
        _made_by(token, "Reactor.add_port")

    def __dealloc__(self):
        if self._core is not NULL:
            rt_reactor_detach(self._loop, &self._core.entry)
            rt_port_free(self._core)

    @property
    def bytes_in(self) -> int:
        """Bytes read from the socket."""
        return self._core.bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes written to the socket; what was discarded is not counted."""
        return self._core.bytes_out

    @property
    def buffered_bytes(self) -> int:
        """Bytes fed that the socket has not taken yet."""
        cdef size_t n
        with nogil:
            n = rt_port_buffered(self._core)
        return n

    def grant(self, n: int) -> None:
        """Allow `n` more bytes to be read from the socket; a port starts with 0.

        Raises ValueError when negative or over 2^48 in sum.
        """
        cdef int outcome
        cdef uint64_t amount
        if not 0 <= n <= RT_GRANT_MAX:
            raise grant_error(n)
        amount = n
        with nogil:
            outcome = rt_port_grant(self._core, amount)
            if outcome > 0:
                rt_reactor_touch(self._loop, &self._core.entry)
        if outcome < 0:
            raise grant_error(n)

    def feed(self, data: bytes) -> None:
        """Queue bytes for the socket, written at once when nothing is queued.

        Raises RuntimeError after `feed_eof()`, and BufferError over 32 MiB: the
        caller keeps no window.
        """
        cdef int outcome
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        with nogil:
            outcome = rt_port_feed(self._core, <const uint8_t *>view.buf, <size_t>view.len)
            if outcome > 0:
                rt_reactor_touch(self._loop, &self._core.entry)
        PyBuffer_Release(&view)
        if outcome == -errno.ESHUTDOWN:
            raise fed_after_eof()
        if outcome < 0:
            raise buffer_full(self.buffered_bytes)

    def feed_eof(self) -> None:
        """End the output: shutdown(SHUT_WR) behind what was fed, once."""
        with nogil:
            if rt_port_feed_eof(self._core) > 0:
                rt_reactor_touch(self._loop, &self._core.entry)

    def reset(self) -> None:
        """Drop what is buffered and reset the socket: its peer sees ECONNRESET.

        Never blocks. Call from any thread. Does nothing once ended.
        """
        with nogil:
            rt_reactor_abort(self._loop, &self._core.entry)

    def close(self) -> None:
        """Write what was fed, then close the socket in order; reading stops."""
        with nogil:
            if rt_port_close(self._core) > 0:
                rt_reactor_touch(self._loop, &self._core.entry)


@cython.final
cdef class Reactor:
    """One loop that moves bytes for many pairs and ports.

    `run()` belongs to one thread of the owner; everything else may be called from any
    thread, and from callbacks, and never blocks.
    """

    cdef rt_reactor *_core
    cdef rt_batch *_batch
    cdef str _poller
    cdef set _live

    def __cinit__(self, poller: str = "auto"):
        cdef rt_poller_kind kind
        if poller not in _POLLERS:
            raise poller_error(poller)
        kind = _POLLERS[poller]
        self._poller = "epoll" if poller == "auto" else poller
        self._live = set()
        self._batch = <rt_batch *>calloc(1, sizeof(rt_batch))
        if self._batch is NULL:
            raise MemoryError
        self._core = rt_reactor_new(kind)
        if self._core is NULL:
            raise os_error(errno.errno)

    def __dealloc__(self):
        if self._core is not NULL:
            rt_reactor_free(self._core)
        if self._batch is not NULL:
            free(self._batch.arena)
            free(self._batch)

    @property
    def poller(self) -> str:
        """The name of the poller in use: "epoll", "poll" or "select"."""
        return self._poller

    def add_pair(self, a, b, on_end=None, rate_bytes_s=None) -> Pair:
        """Join two ends: each one's bytes, end of stream and reset go to the other.

        Owns and closes both from here on: a socket is detached from its object.
        `rate_bytes_s` limits each direction by itself. `on_end` is called once, on the
        reactor's thread. Raises RuntimeError when closed, TypeError and ValueError for
        ends that cannot be pumped; these remain the caller's.
        """
        cdef uint64_t rate = check_rate(rate_bytes_s)
        cdef Pair pair = Pair.__new__(Pair, _PRIVATE)
        checked_a, checked_b = check_ends(a, b)
        cdef rt_end end_a = _end_of(checked_a)
        cdef rt_end end_b = _end_of(checked_b)
        pair._reactor = self
        pair._loop = self._core
        pair._on_end = on_end
        pair._core = rt_pair_new(end_a, end_b, rate, rt_now_ns(), <void *>pair)
        if pair._core is NULL:
            raise MemoryError
        self._attach(pair, &pair._core.entry)
        _disown(a)
        _disown(b)
        return pair

    def add_rate(self, rate_bytes_s) -> Rate:
        """Return a rate for ports, which keep it together, in each direction by itself.

        Raises ValueError for a rate that cannot be kept.
        """
        cdef uint64_t bytes_per_s = check_rate(rate_bytes_s)
        cdef Rate rate = Rate.__new__(Rate, _PRIVATE)
        rate._reactor = self
        rate._core = rt_rate_new(bytes_per_s, rt_now_ns())
        if rate._core is NULL:
            raise MemoryError
        return rate

    def add_port(self, sock, events, Rate rate=None) -> Port:
        """Join a socket to memory: `Port.feed` writes, `events` tell what was read.

        Owns and closes the socket from here on. Nothing is read before `grant()`.
        Raises as `add_pair`, and ValueError for the rate of another reactor.
        """
        cdef Port port = Port.__new__(Port, _PRIVATE)
        cdef int fd = check_socket(sock)
        port._reactor = self
        port._loop = self._core
        port._events = events
        if rate is not None and rate._reactor is not self:
            raise foreign_rate()
        port._core = rt_port_new(
            fd, NULL if rate is None else rate._core, <void *>port
        )
        if port._core is NULL:
            raise MemoryError
        self._attach(port, &port._core.entry)
        _disown(sock)
        return port

    def run(self) -> None:
        """Move bytes and make callbacks on this thread until `close()`.

        Raises RuntimeError when it runs already. An exception that is no Exception,
        such as KeyboardInterrupt, comes out behind the callbacks that were due.
        """
        cdef int outcome
        with nogil:
            outcome = rt_reactor_enter(self._core)
        if outcome == -errno.EBUSY:
            raise RuntimeError("the reactor runs already")
        if outcome != 0:
            return
        try:
            self._run()
        finally:
            with nogil:
                rt_reactor_leave(self._core)

    def close(self) -> None:
        """Reset what is left, and end `run()`; `on_end` of each is still called.

        Never blocks: join the thread of `run()` to know that all is gone. Where it
        does not run, the callbacks are made here.
        """
        cdef int outcome
        with nogil:
            rt_reactor_close(self._core)
            outcome = rt_reactor_enter(self._core)
        if outcome != 0:
            return
        try:
            self._run()
        finally:
            with nogil:
                rt_reactor_leave(self._core)

    cdef _attach(self, entry, rt_entry *core):
        cdef int error
        # Before the loop can know it: its end may be reported at once.
        self._live.add(entry)
        with nogil:
            error = rt_reactor_attach(self._core, core)
        if error == 0:
            return
        self._live.discard(entry)
        if error == -errno.ESHUTDOWN:
            raise closed_error()
        if error == -errno.ERANGE:
            raise select_error()
        raise os_error(-error)

    cdef _run(self):
        cdef int outcome
        # Python runs signal handlers on the main thread, and only there.
        cdef bint attentive = threading.current_thread() is threading.main_thread()
        while True:
            with nogil:
                outcome = rt_reactor_step(self._core, self._batch, attentive)
            if outcome == RT_REACTOR_CLOSED:
                return
            if outcome < 0:
                raise os_error(-outcome)
            # Reports first: a handler that raises must not lose them.
            self._deliver()
            PyErr_CheckSignals()

    cdef _deliver(self):
        cdef unsigned i
        interrupt = None
        for i in range(self._batch.n):
            # Ours for the moment: with its end, `_live` lets go of it.
            entry = <object>self._batch.reports[i].owner
            try:
                self._call(&self._batch.reports[i])
            except Exception:
                log.exception("a callback of %r failed; it is reset", entry)
                entry.reset()
            except BaseException as exc:
                interrupt = exc
                entry.reset()
        if interrupt is not None:
            raise interrupt

    cdef _call(self, rt_report *report):
        cdef Port port
        cdef Pair pair
        if report.kind == RT_REPORT_PAIR_END:
            pair = <Pair>report.owner
            self._live.discard(pair)
            if pair._on_end is not None:
                pair._on_end(
                    PairEnd(report.bytes_ab, report.bytes_ba, _error(report.error))
                )
            return
        port = <Port>report.owner
        if report.kind == RT_REPORT_READABLE:
            port._events.on_readable(
                PyBytes_FromStringAndSize(<const char *>report.data, <Py_ssize_t>report.n)
            )
        elif report.kind == RT_REPORT_CONSUMED:
            port._events.on_consumed(report.n)
        elif report.kind == RT_REPORT_EOF:
            port._events.on_eof()
        else:
            self._live.discard(port)
            port._events.on_end(_error(report.error))


cdef object _error(int code):
    return os_error(code) if code else None


cdef rt_end _end_of(object checked) except *:
    cdef rt_end core
    core.read_fd, core.write_fd, core.is_socket = checked
    core.readable = core.writable = True
    return core


cdef _disown(object end):
    # Pipes are numbers; a socket object would close what is no longer its own.
    detach = getattr(end, "detach", None)
    if detach is not None:
        detach()


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


def relay(a, b, *, rate_bytes_s=None):
    """Move bytes between two ends until both directions have ended.

    Owns and closes both. The end of one direction is passed on behind its last byte,
    while the other goes on. `rate_bytes_s` limits each direction by itself. Blocks, with
    the GIL released.

    Raises OSError when a side broke; the other one was reset, too.
    """
    return relay_with(Reactor(), a, b, rate_bytes_s)
