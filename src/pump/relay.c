#include "relay.h"

#include "live.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

uint64_t rt_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * RT_NS + (uint64_t)now.tv_nsec;
}

/* Shared means: pipes, scratch, SIGPIPE. */

void rt_io_init(rt_io *io, int epoll_fd)
{
    memset(io, 0, sizeof *io);
    io->epoll_fd = epoll_fd;
}

void rt_io_free(rt_io *io)
{
    while (io->spares != 0) {
        const rt_pipe *spare = &io->spare[--io->spares];
        close(spare->read_fd);
        close(spare->write_fd);
        rt_live_add(RT_LIVE_DESCRIPTOR, -2);
    }
    free(io->scratch);
    io->scratch = NULL;
}

void rt_io_enter(rt_io *io)
{
    if (io->entered)
        return;
    sigset_t block;
    sigfillset(&block);
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&block, faults[i]);
    if (pthread_sigmask(SIG_BLOCK, &block, &io->saved_mask) != 0)
        return;
    io->wait_mask = io->saved_mask;
    sigaddset(&io->wait_mask, SIGPIPE);
    io->entered = true;
}

void rt_io_leave(rt_io *io)
{
    if (!io->entered)
        return;
    io->entered = false;
    /* Blocked before: whoever did that deals with it. */
    if (io->broken_pipe && sigismember(&io->saved_mask, SIGPIPE) == 0) {
        sigset_t pipe_only;
        const struct timespec at_once = {0, 0};
        sigemptyset(&pipe_only);
        sigaddset(&pipe_only, SIGPIPE);
        (void)sigtimedwait(&pipe_only, NULL, &at_once);
    }
    io->broken_pipe = false;
    pthread_sigmask(SIG_SETMASK, &io->saved_mask, NULL);
}

static uint8_t *io_scratch(rt_io *io)
{
    if (io->scratch == NULL)
        io->scratch = malloc(RT_PIPE_BYTES);
    return io->scratch;
}

static bool io_take_pipe(rt_io *io, rt_pipe *pipe_out)
{
    if (io->spares != 0) {
        *pipe_out = io->spare[--io->spares];
        return true;
    }
    int fds[2];
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0)
        return false;
    rt_live_add(RT_LIVE_DESCRIPTOR, 2);
    /* Refused over the user's pipe-user-pages-soft: the default size works as well. */
    (void)fcntl(fds[1], F_SETPIPE_SZ, (int)RT_PIPE_BYTES);
    *pipe_out = (rt_pipe){fds[0], fds[1]};
    return true;
}

/* Give a pipe back. One that still holds bytes must not be met by another pair. */
static void io_return_pipe(rt_io *io, rt_pipe *pipe_in, bool empty)
{
    if (pipe_in->read_fd < 0)
        return;
    if (empty && io->spares < RT_SPARE_PIPES) {
        io->spare[io->spares++] = *pipe_in;
    } else {
        close(pipe_in->read_fd);
        close(pipe_in->write_fd);
        rt_live_add(RT_LIVE_DESCRIPTOR, -2);
    }
    *pipe_in = (rt_pipe){-1, -1};
}

/* Ends. */

static int fd_prepare(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
        return -errno;
    return 0;
}

int rt_end_prepare(const rt_end *end)
{
    int error = fd_prepare(end->read_fd);
    if (error == 0 && end->write_fd != end->read_fd)
        error = fd_prepare(end->write_fd);
    if (error == 0 && end->is_socket) {
        int on = 1; /* fails for what is not TCP, and need not work for it */
        (void)setsockopt(end->read_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    return error;
}

int rt_end_descriptors(const rt_end *end)
{
    return (end->read_fd >= 0) + (end->write_fd >= 0 && end->write_fd != end->read_fd);
}

void rt_end_close(rt_end *end, bool reset)
{
    if (reset && end->is_socket && end->read_fd >= 0) {
        const struct linger now = {.l_onoff = 1, .l_linger = 0};
        (void)setsockopt(end->read_fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    rt_live_add(RT_LIVE_DESCRIPTOR, -rt_end_descriptors(end));
    if (end->read_fd >= 0)
        close(end->read_fd);
    if (end->write_fd >= 0 && end->write_fd != end->read_fd)
        close(end->write_fd);
    end->read_fd = end->write_fd = -1;
}

/* Take the pending error of a socket that the poller calls broken. */
static int end_error(const rt_end *end)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (!end->is_socket || end->read_fd < 0)
        return 0;
    if (getsockopt(end->read_fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
        return errno;
    return error;
}

/* Turn the events of one end into hints. Returns the socket's pending error, or 0. */
int rt_entry_note(rt_entry *entry, unsigned index, unsigned events)
{
    rt_end *end = &entry->ends[index];
    int error = 0;
    for (unsigned half = 0; half < 2; half++) {
        unsigned which = 2 * index + half;
        unsigned bits = events >> (RT_EVENT_BITS * which);
        /* A socket's events come at the even number and are about both directions. */
        bool reads = end->is_socket || half == 0;
        bool writes = end->is_socket || half == 1;
        if (reads && bits & (RT_EVENT_IN | RT_EVENT_BROKEN))
            end->readable = true;
        if (writes && bits & (RT_EVENT_OUT | RT_EVENT_BROKEN))
            end->writable = true;
        if (bits & RT_EVENT_BROKEN) {
            entry->hung_up |= (uint8_t)(1u << which);
            error = end_error(end);
        }
    }
    return error;
}

/* Pairs. */

static void flow_init(rt_flow *flow, rt_end *source, rt_end *sink, uint64_t rate, uint64_t now_ns)
{
    flow->source = source;
    flow->sink = sink;
    flow->state = RT_FLOW_OPEN;
    flow->splice = true;
    flow->pipe = (rt_pipe){-1, -1};
    rt_ring_init(&flow->ring, RT_PIPE_BYTES);
    rt_bucket_init(&flow->bucket, rate, now_ns);
}

rt_pair *rt_pair_new(rt_end a, rt_end b, uint64_t rate, uint64_t now_ns, void *owner)
{
    rt_pair *pair = calloc(1, sizeof *pair);
    if (pair == NULL)
        return NULL;
    rt_born(RT_LIVE_PAIR);
    rt_live_add(RT_LIVE_DESCRIPTOR, rt_end_descriptors(&a) + rt_end_descriptors(&b));
    pair->entry.kind = RT_PAIR;
    pair->entry.owner = owner;
    pair->entry.ends[0] = a;
    pair->entry.ends[1] = b;
    for (int i = 0; i < 2; i++)
        pair->entry.ends[i].readable = pair->entry.ends[i].writable = true;
    flow_init(&pair->ab, &pair->entry.ends[0], &pair->entry.ends[1], rate, now_ns);
    flow_init(&pair->ba, &pair->entry.ends[1], &pair->entry.ends[0], rate, now_ns);
    return pair;
}

/* The one place that changes a flow's state. Returns 0, or -EPROTO if that transition
 * is not in the table. */
static int flow_set(rt_flow *flow, rt_flow_state state)
{
    static const unsigned allowed[] = {
        [RT_FLOW_OPEN] = 1u << RT_FLOW_DRAIN | 1u << RT_FLOW_BROKEN,
        [RT_FLOW_DRAIN] = 1u << RT_FLOW_DONE | 1u << RT_FLOW_BROKEN,
        [RT_FLOW_DONE] = 0,
        [RT_FLOW_BROKEN] = 0,
    };
    if (!(allowed[flow->state] & 1u << state))
        return -EPROTO;
    flow->state = state;
    return 0;
}

static bool flow_ended(const rt_flow *flow)
{
    return flow->state == RT_FLOW_DONE || flow->state == RT_FLOW_BROKEN;
}

static bool flow_empty(const rt_flow *flow)
{
    return flow->piped == 0 && flow->ring.len == 0;
}

static void flow_drop(rt_flow *flow, rt_io *io)
{
    io_return_pipe(io, &flow->pipe, flow->piped == 0);
    flow->piped = 0;
    rt_ring_clear(&flow->ring);
}

static ssize_t splice_retry(int from, int to, size_t n)
{
    ssize_t moved;
    do {
        moved = splice(from, NULL, to, NULL, n, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    } while (moved < 0 && errno == EINTR);
    return moved < 0 ? -errno : moved;
}

static ssize_t read_retry(int fd, void *into, size_t n)
{
    ssize_t got;
    do {
        got = read(fd, into, n);
    } while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

/* The sink cannot be spliced to: take the pipe's bytes back into memory. */
static int flow_unpipe(rt_flow *flow, rt_io *io)
{
    uint8_t *scratch = io_scratch(io);
    flow->splice = false;
    while (flow->piped != 0) {
        ssize_t n = scratch == NULL ? -ENOMEM
                                    : read_retry(flow->pipe.read_fd, scratch, RT_PIPE_BYTES);
        if (n <= 0)
            return n < 0 ? (int)n : -EIO;
        int error = rt_ring_put(&flow->ring, scratch, (size_t)n);
        if (error != 0)
            return error;
        flow->piped -= (size_t)n;
    }
    return 0;
}

/* Account for a write to the sink. Returns how many bytes it took (0: none now), or
 * -errno. */
static ssize_t flow_wrote(rt_flow *flow, ssize_t n)
{
    if (n == -EAGAIN) {
        flow->sink->writable = false;
        return 0;
    }
    if (n > 0)
        atomic_fetch_add_explicit(&flow->bytes, (uint64_t)n, memory_order_relaxed);
    return n;
}

/* Write buffered bytes. Returns as flow_wrote. */
static ssize_t flow_write(rt_flow *flow, rt_io *io)
{
    if (!flow->sink->writable)
        return 0;
    if (flow->piped != 0) {
        ssize_t n = splice_retry(flow->pipe.read_fd, flow->sink->write_fd, flow->piped);
        if (n != -EINVAL) {
            flow->piped -= n > 0 ? (size_t)n : 0;
            return flow_wrote(flow, n);
        }
        int error = flow_unpipe(flow, io);
        if (error != 0)
            return error;
    }
    return flow_wrote(flow, rt_ring_write(&flow->ring, flow->sink->write_fd,
                                          flow->sink->is_socket));
}

/* Copy once: what the sink does not take at once waits in the ring. */
static ssize_t flow_copy(rt_flow *flow, rt_io *io, size_t limit)
{
    uint8_t *scratch = io_scratch(io);
    if (scratch == NULL)
        return -ENOMEM;
    ssize_t n = read_retry(flow->source->read_fd, scratch, limit);
    if (n <= 0)
        return n;
    ssize_t sent = 0;
    if (flow->sink->writable) {
        struct iovec piece = {scratch, (size_t)n};
        sent = flow_wrote(
            flow, rt_writev(flow->sink->write_fd, flow->sink->is_socket, &piece, 1));
        if (sent < 0)
            return sent;
    }
    int error = rt_ring_put(&flow->ring, scratch + sent, (size_t)(n - sent));
    return error != 0 ? error : n;
}

/* Read at most `limit` bytes into the empty flow. Returns how many, 0 at the end of the
 * stream, or -errno (-EAGAIN: nothing there now). */
static ssize_t flow_read(rt_flow *flow, rt_io *io, size_t limit)
{
    if (limit > RT_PIPE_BYTES)
        limit = RT_PIPE_BYTES;
    if (flow->splice && (flow->pipe.read_fd >= 0 || io_take_pipe(io, &flow->pipe))) {
        ssize_t n = splice_retry(flow->source->read_fd, flow->pipe.write_fd, limit);
        if (n > 0)
            flow->piped = (size_t)n;
        if (n != -EINVAL)
            return n;
        flow->splice = false;
    }
    /* Also without a pipe, as when descriptors run out. */
    return flow_copy(flow, io, limit);
}

/* The source has ended and its last byte is written: pass the end on. */
static int flow_pass_end_on(rt_flow *flow, rt_io *io)
{
    rt_end *sink = flow->sink;
    if (sink->is_socket) {
        /* ENOTCONN: a reset came in between, so the last bytes may be lost. */
        if (shutdown(sink->write_fd, SHUT_WR) != 0)
            return errno == ENOTCONN ? -ECONNRESET : -errno;
    } else {
        if (io->epoll_fd >= 0)
            (void)epoll_ctl(io->epoll_fd, EPOLL_CTL_DEL, sink->write_fd, NULL);
        close(sink->write_fd);
        sink->write_fd = -1;
        rt_gone(RT_LIVE_DESCRIPTOR);
    }
    return flow_set(flow, RT_FLOW_DONE);
}

/* Move up to RT_STEP_BYTES. Returns 0, RT_STEP_MORE, RT_STEP_WAIT, or -errno. */
static int flow_step(rt_flow *flow, rt_io *io, uint64_t now_ns)
{
    size_t budget = RT_STEP_BYTES;
    for (;;) {
        if (!flow_empty(flow)) {
            ssize_t n = flow_write(flow, io);
            if (n <= 0)
                return (int)n;
        } else if (flow->state == RT_FLOW_DRAIN) {
            return flow_pass_end_on(flow, io);
        } else if (flow->state != RT_FLOW_OPEN || !flow->source->readable) {
            return 0;
        } else if (budget == 0) {
            return RT_STEP_MORE;
        } else {
            uint64_t allowed = rt_bucket_available(&flow->bucket, now_ns);
            if (allowed == 0)
                return RT_STEP_WAIT;
            ssize_t n = flow_read(flow, io, allowed < budget ? (size_t)allowed : budget);
            if (n == -EAGAIN) {
                flow->source->readable = false;
                return 0;
            }
            if (n < 0)
                return (int)n;
            if (n == 0 && flow_set(flow, RT_FLOW_DRAIN) != 0)
                return -EPROTO;
            budget -= (size_t)n;
            rt_bucket_spend(&flow->bucket, (uint64_t)n);
        }
    }
}

static int pair_flow(rt_pair *pair, rt_flow *flow, rt_io *io, uint64_t now_ns)
{
    int outcome = flow_step(flow, io, now_ns);
    if (outcome == -EPIPE) {
        /* The sink takes no more, but may still have something to say: let it. */
        io->broken_pipe = true;
        flow_drop(flow, io);
        outcome = flow_set(flow, RT_FLOW_BROKEN);
    }
    if (outcome < 0) {
        pair->entry.error = -outcome;
        return 0;
    }
    if (flow->piped == 0)
        io_return_pipe(io, &flow->pipe, true);
    if (outcome == RT_STEP_WAIT) {
        uint64_t due_ns = rt_bucket_ready_at(&flow->bucket);
        if (pair->entry.due_ns == 0 || due_ns < pair->entry.due_ns)
            pair->entry.due_ns = due_ns;
    }
    return outcome;
}

int rt_pair_step(rt_pair *pair, unsigned events, rt_io *io, uint64_t now_ns)
{
    rt_entry *entry = &pair->entry;
    int outcome = 0;
    entry->due_ns = 0;
    entry->error = atomic_load_explicit(&entry->abort, memory_order_acquire);
    for (unsigned i = 0; i < 2; i++) {
        int error = rt_entry_note(entry, i, events);
        /* EPIPE is what TCP says of a reset behind the peer's FIN: what the peer sent
         * is whole. The write that is in vain will find out. */
        if (error != 0 && error != EPIPE && entry->error == 0)
            entry->error = error;
    }
    rt_io_enter(io);
    if (entry->error == 0)
        outcome |= pair_flow(pair, &pair->ab, io, now_ns);
    if (entry->error == 0)
        outcome |= pair_flow(pair, &pair->ba, io, now_ns);
    if (entry->error == 0 && flow_ended(&pair->ab) && flow_ended(&pair->ba)) {
        /* A direction that lost bytes must not look like one that ended. */
        if (pair->ab.state == RT_FLOW_BROKEN || pair->ba.state == RT_FLOW_BROKEN)
            entry->error = EPIPE;
        outcome = RT_STEP_ENDED;
    }
    if (entry->error != 0 || outcome == RT_STEP_ENDED) {
        flow_drop(&pair->ab, io);
        flow_drop(&pair->ba, io);
        return RT_STEP_ENDED;
    }
    return outcome;
}

/* What both kinds share. */

void rt_pair_close(rt_pair *pair, rt_io *io)
{
    flow_drop(&pair->ab, io);
    flow_drop(&pair->ba, io);
    rt_entry_close(&pair->entry, io);
}

void rt_entry_close(rt_entry *entry, const rt_io *io)
{
    for (unsigned which = 0; which < RT_ENTRY_FDS && io->epoll_fd >= 0; which++) {
        /* Closing alone would not do: a copy of the descriptor keeps the entry. */
        int fd = rt_entry_fd(entry, which);
        if (fd >= 0)
            (void)epoll_ctl(io->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    }
    rt_end_close(&entry->ends[0], entry->error != 0);
    rt_end_close(&entry->ends[1], entry->error != 0);
}

unsigned rt_entry_blocked_on(const rt_entry *entry, unsigned which)
{
    const rt_end *end = &entry->ends[which >> 1 & 1];
    unsigned bits = 0;
    if (!end->readable && (end->is_socket || (which & 1) == 0))
        bits |= RT_EVENT_IN;
    if (!end->writable && (end->is_socket || (which & 1) == 1))
        bits |= RT_EVENT_OUT;
    return bits;
}

void rt_entry_hand_back(const rt_entry *entry)
{
    if (entry->reactor != NULL) /* it was taken up, and has to be closed by now */
        return;
    rt_live_add(RT_LIVE_DESCRIPTOR, -rt_end_descriptors(&entry->ends[0]));
    rt_live_add(RT_LIVE_DESCRIPTOR, -rt_end_descriptors(&entry->ends[1]));
}

void rt_pair_free(rt_pair *pair)
{
    rt_entry_hand_back(&pair->entry);
    free(pair);
    rt_gone(RT_LIVE_PAIR);
}
