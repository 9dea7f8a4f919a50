#include "port.h"

#include "live.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

rt_rate *rt_rate_new(uint64_t bytes_per_s, uint64_t now_ns)
{
    rt_rate *rate = calloc(1, sizeof *rate);
    if (rate == NULL)
        return NULL;
    rt_born(RT_LIVE_RATE);
    atomic_init(&rate->references, 1);
    rt_share_init(&rate->in, bytes_per_s, now_ns);
    rt_share_init(&rate->out, bytes_per_s, now_ns);
    return rate;
}

void rt_rate_release(rt_rate *rate)
{
    if (atomic_fetch_sub_explicit(&rate->references, 1, memory_order_acq_rel) != 1)
        return;
    free(rate);
    rt_gone(RT_LIVE_RATE);
}

rt_port *rt_port_new(int fd, rt_rate *rate, void *owner)
{
    rt_port *port = calloc(1, sizeof *port);
    if (port == NULL)
        return NULL;
    if (pthread_mutex_init(&port->lock, NULL) != 0) {
        free(port);
        return NULL;
    }
    rt_born(RT_LIVE_PORT);
    rt_born(RT_LIVE_DESCRIPTOR);
    port->entry.kind = RT_PORT;
    port->entry.owner = owner;
    port->entry.ends[0] = (rt_end){fd, fd, true, true, true};
    port->entry.ends[1] = (rt_end){-1, -1, true, false, false};
    rt_ring_init(&port->queue, RT_PORT_BUFFER_MAX);
    port->rate = rate;
    port->in.owner = port->out.owner = port;
    if (rate != NULL)
        atomic_fetch_add_explicit(&rate->references, 1, memory_order_relaxed);
    return port;
}

static void port_failed(rt_port *port, int error)
{
    /* EPIPE: the output is gone, but what the peer sent is whole and still read. */
    if (error == EPIPE)
        port->output_done = true;
    else if (port->failure == 0)
        port->failure = error;
}

static void port_wrote(rt_port *port, ssize_t n)
{
    if (n == -EAGAIN) {
        port->entry.ends[0].writable = false;
    } else if (n < 0) {
        port_failed(port, (int)-n);
    } else {
        port->consumed += (uint64_t)n;
        atomic_fetch_add_explicit(&port->bytes_out, (uint64_t)n, memory_order_relaxed);
    }
}

static bool port_can_write(const rt_port *port)
{
    return port->entry.ends[0].writable && !port->output_done && port->failure == 0;
}

/* Returns 0, or RT_STEP_WAIT: for its rate. */
static int port_flush(rt_port *port, uint64_t now_ns)
{
    int outcome = 0;
    while (port->queue.len != 0 && port_can_write(port)) {
        uint64_t most = SIZE_MAX;
        if (port->rate != NULL)
            most = rt_share_ask(&port->rate->out, &port->out, now_ns);
        if (most == 0) {
            outcome = RT_STEP_WAIT;
            break;
        }
        ssize_t n = rt_ring_write_some(&port->queue, port->entry.ends[0].write_fd, true,
                                       (size_t)most);
        if (port->rate != NULL && n > 0)
            rt_share_spend(&port->rate->out, (uint64_t)n);
        port_wrote(port, n);
    }
    if (port->output_done) {
        port->consumed += port->queue.len;
        rt_ring_clear(&port->queue);
    }
    return outcome;
}

static void port_shutdown(rt_port *port)
{
    port->output_done = true;
    /* ENOTCONN: the connection is gone already; reading will say how. */
    if (shutdown(port->entry.ends[0].write_fd, SHUT_WR) != 0 && errno != ENOTCONN)
        port_failed(port, errno);
}

rt_report *rt_batch_add(rt_batch *batch, rt_report_kind kind, void *owner)
{
    rt_report *report = &batch->reports[batch->n++];
    memset(report, 0, sizeof *report);
    report->kind = kind;
    report->owner = owner;
    return report;
}

/* Read once within the grant and the rate; without a grant, look for the end of the
 * stream only. Returns 0, RT_STEP_MORE, or RT_STEP_WAIT: for its rate. */
static int port_read(rt_port *port, rt_batch *batch, uint64_t now_ns)
{
    rt_end *end = &port->entry.ends[0];
    uint8_t probe;
    uint8_t *into = &probe;
    size_t limit = 1;
    if (port->eof_read || !end->readable)
        return 0;
    if (port->granted != 0) {
        if (batch->arena == NULL)
            batch->arena = malloc(RT_BATCH_ARENA);
        if (batch->arena == NULL) {
            port_failed(port, ENOMEM);
            return 0;
        }
        into = batch->arena + batch->arena_used;
        limit = port->granted < RT_READ_BYTES ? (size_t)port->granted : RT_READ_BYTES;
        if (port->rate != NULL) {
            uint64_t most = rt_share_ask(&port->rate->in, &port->in, now_ns);
            if (most == 0)
                return RT_STEP_WAIT;
            limit = most < limit ? (size_t)most : limit;
        }
    }
    ssize_t n;
    do {
        n = recv(end->read_fd, into, limit, port->granted != 0 ? 0 : MSG_PEEK);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) {
        end->readable = false;
    } else if (n < 0) {
        port->failure = errno;
    } else if (n == 0) {
        port->eof_read = true;
    } else if (port->granted != 0) {
        rt_report *report = rt_batch_add(batch, RT_REPORT_READABLE, port->entry.owner);
        report->data = into;
        report->n = (uint64_t)n;
        batch->arena_used += (size_t)n;
        port->granted -= (uint64_t)n;
        if (port->rate != NULL)
            rt_share_spend(&port->rate->in, (uint64_t)n);
        atomic_fetch_add_explicit(&port->bytes_in, (uint64_t)n, memory_order_relaxed);
        return RT_STEP_MORE;
    }
    return 0;
}

/* Close behind the last byte, not in front of it: a TCP socket closed with bytes unread
 * sends a reset, which may overtake what was written. End our direction first, and take
 * what is there. */
static void port_discard_input(rt_port *port)
{
    uint8_t waste[4096];
    if (!port->output_done)
        port_shutdown(port);
    for (size_t taken = 0; taken < RT_CLOSE_DISCARD; taken += sizeof waste)
        if (recv(port->entry.ends[0].read_fd, waste, sizeof waste, MSG_DONTWAIT) <= 0)
            break;
    port->failure = 0; /* everything fed was written: the end is in order */
}

/* The part of a step that runs under the lock. */
static int port_step(rt_port *port, unsigned events, rt_batch *batch, uint64_t now_ns)
{
    rt_entry *entry = &port->entry;
    int error = rt_entry_note(entry, 0, events);
    int aborted = atomic_load_explicit(&entry->abort, memory_order_acquire);
    if (error != 0)
        port_failed(port, error);
    if (aborted != 0 && port->failure == 0)
        port->failure = aborted;
    int waits = port_flush(port, now_ns);
    if (port->consumed != 0) {
        rt_batch_add(batch, RT_REPORT_CONSUMED, entry->owner)->n = port->consumed;
        port->consumed = 0;
    }
    if (port->failure != 0)
        return RT_STEP_ENDED;
    if (port->close_wanted) {
        if (port->queue.len != 0)
            return waits;
        port_discard_input(port);
        return RT_STEP_ENDED;
    }
    if (port->eof_wanted && port->queue.len == 0 && !port->output_done)
        port_shutdown(port);
    int more = port_read(port, batch, now_ns);
    if (port->failure != 0)
        return RT_STEP_ENDED;
    if (port->eof_read && !port->eof_reported) {
        port->eof_reported = true;
        rt_batch_add(batch, RT_REPORT_EOF, entry->owner);
    }
    if (port->eof_read && port->eof_wanted && port->queue.len == 0)
        return RT_STEP_ENDED;
    return waits | more;
}

int rt_port_step(rt_port *port, unsigned events, rt_batch *batch, uint64_t now_ns)
{
    pthread_mutex_lock(&port->lock);
    int outcome = port_step(port, events, batch, now_ns);
    if (outcome == RT_STEP_ENDED) {
        port->ended = true;
        port->entry.error = port->failure;
        rt_ring_clear(&port->queue);
    }
    pthread_mutex_unlock(&port->lock);
    return outcome;
}

int rt_port_grant(rt_port *port, uint64_t n)
{
    int outcome = 1;
    pthread_mutex_lock(&port->lock);
    if (n > RT_GRANT_MAX - port->granted)
        outcome = -ERANGE;
    else if (n == 0 || port->ended)
        outcome = 0;
    else
        port->granted += n;
    pthread_mutex_unlock(&port->lock);
    return outcome;
}

static int port_feed(rt_port *port, const uint8_t *data, size_t n)
{
    if (port->eof_wanted)
        return -ESHUTDOWN;
    if (n == 0 || port->ended || port->close_wanted || port->failure != 0)
        return 0;
    if (n > RT_PORT_BUFFER_MAX - port->queue.len)
        return -ENOBUFS;
    size_t done = 0;
    if (port->queue.len == 0 && port_can_write(port) && port->rate == NULL) {
        struct iovec piece = {(void *)(uintptr_t)data, n};
        ssize_t written = rt_writev(port->entry.ends[0].write_fd, true, &piece, 1);
        port_wrote(port, written);
        done = written > 0 ? (size_t)written : 0;
    }
    if (port->output_done) {
        port->consumed += n - done;
        return 1;
    }
    int error = rt_ring_put(&port->queue, data + done, n - done);
    if (error != 0) /* out of memory in mid-stream: bytes are lost, so is the port */
        port_failed(port, -error);
    return 1;
}

int rt_port_feed(rt_port *port, const uint8_t *data, size_t n)
{
    pthread_mutex_lock(&port->lock);
    int outcome = port_feed(port, data, n);
    pthread_mutex_unlock(&port->lock);
    return outcome;
}

int rt_port_feed_eof(rt_port *port)
{
    pthread_mutex_lock(&port->lock);
    port->eof_wanted = true;
    int outcome = port->ended ? 0 : 1;
    pthread_mutex_unlock(&port->lock);
    return outcome;
}

int rt_port_close(rt_port *port)
{
    pthread_mutex_lock(&port->lock);
    port->close_wanted = true;
    int outcome = port->ended ? 0 : 1;
    pthread_mutex_unlock(&port->lock);
    return outcome;
}

size_t rt_port_buffered(rt_port *port)
{
    pthread_mutex_lock(&port->lock);
    size_t n = port->queue.len;
    pthread_mutex_unlock(&port->lock);
    return n;
}

void rt_port_end(rt_port *port, const rt_io *io)
{
    pthread_mutex_lock(&port->lock);
    port->ended = true;
    rt_ring_clear(&port->queue);
    rt_entry_close(&port->entry, io);
    rt_taker_leave(&port->in);
    rt_taker_leave(&port->out);
    pthread_mutex_unlock(&port->lock);
}

unsigned rt_port_blocked_on(rt_port *port)
{
    pthread_mutex_lock(&port->lock);
    unsigned bits = rt_entry_blocked_on(&port->entry, 0);
    pthread_mutex_unlock(&port->lock);
    return bits;
}

void rt_port_free(rt_port *port)
{
    pthread_mutex_destroy(&port->lock);
    if (port->rate != NULL)
        rt_rate_release(port->rate);
    rt_entry_hand_back(&port->entry);
    free(port);
    rt_gone(RT_LIVE_PORT);
}
