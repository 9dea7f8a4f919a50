/* Theory of operation
 *
 * Messages come in (rt_on_message), the socket has events (rt_on_socket); both only
 * move states and buffers and put the channel on the run queue. Everything that goes
 * out is built in one place, rt_run_channel, in this order: confirmation, replies,
 * credit, data, EOF, CLOSE. So nothing can leave before the confirmation, after EOF or
 * after CLOSE, and a hold (rekey) has one door to shut.
 *
 * Credit follows consumption: a byte is credited when the local socket has taken it,
 * or when it is thrown away because the socket takes no more (without that the peer
 * would wait for ever; OpenSSH says so in channel_input_data). So the memory of a
 * channel is bounded by its window whatever its target does.
 */
#include "engine_impl.h"
#include "limiter.h"
#include "schedule.h"
#include "wire.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define CODE_PROTOCOL_ERROR 2
#define CODE_BY_APPLICATION 11

/* ---- inbound: peer to local socket ---- */

/* Both directions are through: time for CLOSE. */
static void close_when_done(rt_engine *e, rt_channel *c)
{
    int in_done = c->in == RT_IN_SHUT || c->in == RT_IN_DISCARD;
    if (!in_done || c->out != RT_OUT_DONE || c->state != RT_OPEN)
        return;
    rt_channel_set_state(c, RT_CLOSING);
    rt_enqueue(e, c);
    rt_end_channel(e, c, 0);
}

/* The buffer ran empty after the peer's EOF or CLOSE: pass the end on. */
static void finish_in(rt_engine *e, rt_channel *c)
{
    rt_channel_set_in(c, RT_IN_SHUT);
    if (c->close_seen) {
        rt_end_channel(e, c, 0);
        return;
    }
    shutdown(c->fd, SHUT_WR); /* fails only where the socket is dead already */
    close_when_done(e, c);
}

/* The socket takes no more bytes. Its other direction may still have some for us. */
static void discard_in(rt_engine *e, rt_channel *c)
{
    rt_buffer_free(&c->pending);
    rt_channel_set_in(c, RT_IN_DISCARD);
    if (c->eof_seen)
        rt_channel_set_in(c, RT_IN_SHUT);
    c->readable = 1;
    if (c->close_seen)
        rt_end_channel(e, c, 1);
    else
        close_when_done(e, c);
    rt_enqueue(e, c);
}

/* Write `parts`, which are all that is to be written, to the socket. Returns how many
 * bytes it took; sets `writable`. A dead socket discards, and takes everything. */
static size_t write_parts(rt_engine *e, rt_channel *c, struct iovec *parts, int count,
                          size_t bytes)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    ssize_t n;
    do
        n = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
        if (errno == EPIPE)
            discard_in(e, c);
        else /* a reset, told once: the next read would give the end of the stream */
            rt_reset_channel(e, c, errno);
        return bytes;
    }
    size_t taken = n < 0 ? 0 : (size_t)n;
    c->bytes_in += taken;
    if (taken < bytes) {
        c->writable = 0;
        if (rt_watch_writable(e, c) != 0) { /* nothing would ever tell of room */
            rt_reset_channel(e, c, errno);
            return bytes;
        }
    }
    rt_enqueue(e, c); /* credit may be due */
    return taken;
}

void rt_write_pending(rt_engine *e, rt_channel *c)
{
    while (rt_buffer_len(&c->pending) > 0 && c->fd >= 0 && c->writable) {
        size_t most = rt_buffer_len(&c->pending);
        if (c->limit != NULL)
            most = rt_limit_ask_in(e, c, most);
        if (most == 0)
            return;
        struct iovec part = {.iov_base = rt_buffer_at(&c->pending), .iov_len = most};
        size_t taken = write_parts(e, c, &part, 1, most);
        if (c->limit != NULL)
            rt_share_spend(&c->limit->in, taken);
        if (c->in == RT_IN_DISCARD || c->fd < 0)
            return;
        rt_buffer_consume(&c->pending, taken, 0);
        if (rt_buffer_len(&c->pending) == 0 && c->in == RT_IN_DRAIN)
            finish_in(e, c);
    }
}

void rt_write_gathered(rt_engine *e)
{
    rt_channel *c = e->gathered.channel;
    if (c == NULL)
        return;
    struct iovec *parts = e->gathered.parts;
    int count = e->gathered.count;
    size_t bytes = e->gathered.bytes;
    e->gathered.channel = NULL;
    e->gathered.count = 0;
    e->gathered.bytes = 0;
    if (c->in != RT_IN_OPEN) { /* the socket died under an earlier part */
        rt_enqueue(e, c);
        return;
    }
    size_t taken = 0;
    if (rt_buffer_len(&c->pending) == 0 && c->writable && c->limit == NULL)
        taken = write_parts(e, c, parts, count, bytes);
    if (taken == bytes || c->in != RT_IN_OPEN)
        return;
    for (int i = 0; i < count; i++) {
        size_t skip = taken < parts[i].iov_len ? taken : parts[i].iov_len;
        taken -= skip;
        if (rt_buffer_append(&c->pending, (uint8_t *)parts[i].iov_base + skip,
                             parts[i].iov_len - skip) != 0) {
            rt_reset_channel(e, c, ENOMEM); /* its bytes are lost, and nobody else's */
            return;
        }
    }
    if (c->limit != NULL)
        rt_write_pending(e, c);
}

/* Count what the peer sent on a channel. 0, or -1: fault set. */
static int charge(rt_engine *e, rt_channel *c, size_t len)
{
    if (rt_channel_charge(c, len) == 0)
        return 0;
    rt_fault(e, CODE_PROTOCOL_ERROR,
             len > c->recv_max_packet ? "the peer sent more than the maximum packet"
                                      : "the peer ignored the channel window");
    return -1;
}

/* Payload:
 *     byte      SSH_MSG_CHANNEL_DATA
 *     uint32    recipient channel
 *     string    data                                        (RFC 4254, section 5.2) */
static int on_data(rt_engine *e, rt_channel *c, const uint8_t *data, size_t len)
{
    if (charge(e, c, len) != 0)
        return -1;
    if (len == 0 || c->eof_seen) /* data behind EOF is dropped, as OpenSSH does */
        return 0;
    rt_note_traffic(e, c, len);
    if (c->in != RT_IN_OPEN) {
        rt_enqueue(e, c);
        return 0;
    }
    if (e->gathered.channel != c || e->gathered.count == RT_GATHER_PACKETS)
        rt_write_gathered(e);
    e->gathered.channel = c;
    /* sendmsg takes iovecs that are not const; it does not write through them. */
    e->gathered.parts[e->gathered.count].iov_base = (void *)(uintptr_t)data;
    e->gathered.parts[e->gathered.count].iov_len = len;
    e->gathered.count++;
    e->gathered.bytes += len;
    return 0;
}

static void on_eof(rt_engine *e, rt_channel *c)
{
    if (c->eof_seen)
        return;
    c->eof_seen = 1;
    if (c->in == RT_IN_DISCARD) {
        rt_channel_set_in(c, RT_IN_SHUT);
        close_when_done(e, c);
    } else if (c->in == RT_IN_OPEN) {
        rt_channel_set_in(c, RT_IN_DRAIN);
        if (rt_buffer_len(&c->pending) == 0)
            finish_in(e, c);
    }
}

static void on_close(rt_engine *e, rt_channel *c)
{
    if (c->close_seen)
        return;
    c->close_seen = 1;
    rt_forget_probes(e, c);
    if (c->out != RT_OUT_DONE)
        rt_channel_set_out(c, RT_OUT_DONE);
    if (c->state == RT_OPEN)
        rt_channel_set_state(c, RT_CLOSING);
    rt_enqueue(e, c); /* our CLOSE, unless it was sent */
    if (c->ended) {
        rt_report_end(e, c);
        rt_forget_if_done(e, c);
        return;
    }
    if (c->in == RT_IN_OPEN)
        rt_channel_set_in(c, RT_IN_DRAIN);
    if (c->in == RT_IN_DISCARD || c->in == RT_IN_SHUT)
        rt_end_channel(e, c, 0);
    else if (rt_buffer_len(&c->pending) == 0)
        finish_in(e, c);
}

static int malformed(rt_engine *e)
{
    rt_fault(e, CODE_PROTOCOL_ERROR, "the peer sent a malformed channel message");
    return -1;
}

int rt_on_message(rt_engine *e, const uint8_t *payload, size_t len)
{
    uint8_t type = payload[0];
    if (type == MSG_KEXINIT)
        e->peer_kex = 1;
    /* While the peer exchanges keys it may send no channel message: let the owner, who
     * knows what it waits for, see it. */
    if (type < MSG_CHANNEL_WINDOW_ADJUST || type > MSG_CHANNEL_FAILURE || e->peer_kex)
        return 1;
    rt_reader r = rt_reader_over(payload + 1, len - 1);
    uint32_t local_id = rt_read32(&r);
    if (!r.ok)
        return malformed(e);
    if (!(local_id & RT_CHANNEL_ID_BASE))
        return 1;
    rt_channel *c = rt_channel_find(&e->channels, local_id);
    if (c == NULL || c->close_seen)
        return 0; /* late, or never ours: dropped, and leaves nothing behind */
    if (c->state == RT_OPENING)
        return malformed(e);

    size_t n = 0;
    const uint8_t *data;
    switch (type) {
    case MSG_CHANNEL_DATA:
        data = rt_read_string(&r, &n);
        return r.ok ? on_data(e, c, data, n) : malformed(e);
    case MSG_CHANNEL_EXTENDED_DATA:
        rt_read32(&r);
        rt_read_string(&r, &n);
        if (!r.ok)
            return malformed(e);
        if (charge(e, c, n) != 0)
            return -1;
        rt_enqueue(e, c); /* a forward has no stderr: dropped, and credited */
        return 0;
    case MSG_CHANNEL_WINDOW_ADJUST:
        n = rt_read32(&r);
        if (!r.ok)
            return malformed(e);
        if (rt_channel_adjust(c, (uint32_t)n) != 0) {
            rt_fault(e, CODE_PROTOCOL_ERROR, "the peer's window went over 2^32-1");
            return -1;
        }
        rt_enqueue(e, c);
        return 0;
    case MSG_CHANNEL_EOF:
        rt_write_gathered(e);
        on_eof(e, c);
        return 0;
    case MSG_CHANNEL_CLOSE:
        rt_write_gathered(e);
        on_close(e, c);
        return 0;
    case MSG_CHANNEL_REQUEST:
        if (c->owner_answers && c->state == RT_OPEN)
            return 1;
        rt_read_string(&r, &n);
        if (rt_read8(&r)) {
            if (c->failures_due >= RT_MAX_FAILURES_DUE) {
                rt_fault(e, CODE_PROTOCOL_ERROR, "the peer floods with requests");
                return -1;
            }
            c->failures_due++;
            rt_enqueue(e, c);
        }
        return r.ok ? 0 : malformed(e);
    default: /* SUCCESS or FAILURE: of a probe, or of a request of the owner's */
        return rt_probe_answered(e, c) ? 0 : 1;
    }
}

/* ---- the local socket ---- */

void rt_on_socket(rt_engine *e, rt_channel *c, uint32_t events)
{
    if (c->fd < 0)
        return;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI))
        c->hung_up = 1;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI)) {
        c->readable = 1;
        rt_enqueue(e, c);
    }
    if ((events & EPOLLERR) && c->out != RT_OUT_OPEN) {
        /* Nobody reads this socket any more, so that no read would tell. */
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
            error = errno; /* there is one, whichever it was */
        if (error != 0) {
            rt_reset_channel(e, c, error);
            return;
        }
    }
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        c->writable = 1;
        rt_write_pending(e, c);
    }
}

void rt_reset_channel(rt_engine *e, rt_channel *c, int error)
{
    if (c->out != RT_OUT_DONE)
        rt_channel_set_out(c, RT_OUT_DONE);
    if (c->in == RT_IN_DRAIN || c->in == RT_IN_OPEN || c->in == RT_IN_DISCARD)
        rt_channel_set_in(c, RT_IN_SHUT);
    if (c->error == 0)
        c->error = error;
    if (c->state == RT_OPEN)
        rt_channel_set_state(c, RT_CLOSING);
    rt_enqueue(e, c);
    rt_end_channel(e, c, 1);
}

void rt_lose_channel(rt_engine *e, rt_channel *c)
{
    if (c->ended) /* without the peer's CLOSE nobody knows that our last bytes arrived */
        rt_end_channel(e, c, 1);
    if (c->fd < 0)
        return;
    rt_limit_part(e, c); /* whoever waited for the rest has waited long enough */
    rt_write_pending(e, c);
    /* The stream is whole only if the peer had ended it and all of it was taken. */
    if (c->fd >= 0)
        rt_end_channel(e, c, c->in != RT_IN_SHUT || c->out != RT_OUT_DONE);
    rt_report_end(e, c);
}

/* ---- outbound: local socket to peer ---- */

static int send_message(rt_engine *e, uint8_t type, const uint32_t *words, int count)
{
    size_t len = 1 + 4 * (size_t)count;
    uint8_t *p = rt_packets_begin(&e->packets, len);
    if (p == NULL) {
        if (rt_packets_is_full(&e->packets, len))
            rt_fault(e, CODE_PROTOCOL_ERROR, "the peer does not read what it asks for");
        else
            rt_fault(e, CODE_BY_APPLICATION, "out of memory");
        return -1;
    }
    p[0] = type;
    for (int i = 0; i < count; i++)
        rt_put32(p + 1 + 4 * i, words[i]);
    if (rt_packets_finish(&e->packets, len) != 0) {
        rt_fault(e, CODE_BY_APPLICATION, "libcrypto could not seal a packet");
        return -1;
    }
    return 0;
}

#define DATA_HEADER_BYTES 9 /* type, recipient channel, length of the string */

/* The peer's window is used up, but the end of the stream takes none (RFC 4254, section
 * 5.3), and the peer has no reason to give more to a stream that it has all of. */
static rt_ran look_for_end(rt_engine *e, rt_channel *c)
{
    uint8_t byte;
    ssize_t n;
    do
        n = recv(c->fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
    while (n < 0 && errno == EINTR);
    if (n == 0)
        rt_channel_set_out(c, RT_OUT_EOF);
    else if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
        rt_reset_channel(e, c, errno);
    return RT_RAN;
}

/* Read the socket straight into the places that packets of the send queue will have,
 * several with one call, then seal each. */
static rt_ran send_data(rt_engine *e, rt_channel *c)
{
    rt_packets *p = &e->packets;
    if (c->send_window == 0)
        return c->hung_up ? look_for_end(e, c) : RT_RAN;
    uint32_t turn = rt_turn_bytes(e);
    if (c->turn_left == 0) {
        c->turn_left = turn + c->turn_saved;
        c->turn_saved = 0;
    } else if (c->turn_left > 2 * turn) { /* it is not alone any more */
        c->turn_left = turn;
    }
    size_t budget = rt_turn_budget(e, c);
    if (budget == 0)
        return RT_RAN_LATER;
    size_t window = c->send_window < budget ? c->send_window : budget;
    if (c->limit != NULL) {
        window = rt_limit_ask_out(e, c, window);
        if (window == 0)
            return RT_RAN; /* until it is called */
    }
    size_t data_max = c->send_max_packet < RT_SEND_DATA_BYTES ? c->send_max_packet
                                                              : RT_SEND_DATA_BYTES;
    size_t whole = rt_packet_wire_bytes(DATA_HEADER_BYTES + data_max);
    size_t slots = (window + data_max - 1) / data_max;
    if (slots > RT_GATHER_PACKETS)
        slots = RT_GATHER_PACKETS;

    uint8_t *base = rt_buffer_reserve(&p->unsent, slots * whole);
    if (base == NULL) {
        rt_fault(e, CODE_BY_APPLICATION, "out of memory");
        return RT_RAN;
    }
    struct iovec parts[RT_GATHER_PACKETS];
    size_t want = 0;
    for (size_t i = 0; i < slots; i++) {
        size_t room = window - want < data_max ? window - want : data_max;
        parts[i].iov_base =
            base + i * whole + RT_PACKET_HEADER_BYTES + DATA_HEADER_BYTES;
        parts[i].iov_len = room;
        want += room;
    }
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = slots};
    ssize_t n;
    do
        n = recvmsg(c->fd, &message, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        c->readable = 0;
        return RT_RAN;
    }
    if (n < 0) {
        rt_reset_channel(e, c, errno);
        return RT_RAN;
    }
    if (n == 0) {
        rt_channel_set_out(c, RT_OUT_EOF);
        return RT_RAN;
    }
    size_t left = (size_t)n;
    for (size_t i = 0; left > 0; i++) {
        size_t len = left < parts[i].iov_len ? left : parts[i].iov_len;
        uint8_t *payload = rt_packets_begin(p, DATA_HEADER_BYTES + len);
        payload[0] = MSG_CHANNEL_DATA;
        rt_put32(payload + 1, c->remote_id);
        rt_put32(payload + 5, (uint32_t)len);
        if (rt_packets_finish(p, DATA_HEADER_BYTES + len) != 0) {
            rt_fault(e, CODE_BY_APPLICATION, "libcrypto could not seal a packet");
            return RT_RAN;
        }
        left -= len;
    }
    if (c->limit != NULL)
        rt_share_spend(&c->limit->out, (uint64_t)n);
    c->send_window -= (uint32_t)n;
    c->bytes_out += (uint64_t)n;
    c->turn_left -= (uint32_t)n < c->turn_left ? (uint32_t)n : c->turn_left;
    rt_note_traffic(e, c, (size_t)n);
    if (!rt_is_interactive(c, e->now_us))
        e->bulk_out += (uint64_t)n;
    /* A short read emptied the socket: the next byte brings an edge. The end of the
     * stream does not if it was announced before, hence hung_up. */
    if ((size_t)n < want && !c->hung_up) {
        c->readable = 0;
        /* Its sender may be just about to send more: what is left of a turn is added
         * to the next one, but nobody saves up more than one. */
        c->turn_saved = c->turn_left < RT_TURN_BYTES ? c->turn_left : RT_TURN_BYTES;
        c->turn_left = 0;
    }
    if (c->send_window == 0 && c->hung_up)
        return look_for_end(e, c);
    return c->readable && c->send_window > 0 ? RT_RAN_MORE : RT_RAN;
}

/* Payload:
 *     byte      SSH_MSG_CHANNEL_REQUEST
 *     uint32    recipient channel
 *     string    request type
 *     boolean   want reply = true                           (RFC 4254, section 5.4)
 * sshd asks its clients for life with a request of this name, so that every peer has
 * met it; those that do not know it say FAILURE, which is an answer too. */
static int send_probe(rt_engine *e, rt_channel *c)
{
    static const char name[] = "keepalive@openssh.com";
    size_t len = 1 + 4 + 4 + (sizeof name - 1) + 1;
    uint8_t *p = rt_packets_begin(&e->packets, len);
    if (p == NULL)
        return 0; /* the next turn asks again */
    p[0] = MSG_CHANNEL_REQUEST;
    rt_put32(p + 1, c->remote_id);
    rt_put32(p + 5, sizeof name - 1);
    memcpy(p + 9, name, sizeof name - 1);
    p[len - 1] = 1;
    if (rt_packets_finish(&e->packets, len) != 0)
        return -1;
    rt_probe_sent(e, c);
    return 0;
}

static rt_ran run_open_channel(rt_engine *e, rt_channel *c)
{
    if (c->confirm_due) {
        /* Beside interactive channels a whole window at once would be too much. More
         * than the window is never promised: no memory stands behind it. */
        uint32_t window = c->recv_window_size;
        if (rt_is_shared(e) && c->priority != RT_PRIORITY_INTERACTIVE &&
            c->recv_window_shared < window)
            window = c->recv_window_shared;
        uint32_t words[] = {c->remote_id, c->local_id, window, c->recv_max_packet};
        if (send_message(e, MSG_CHANNEL_OPEN_CONFIRMATION, words, 4) != 0)
            return RT_RAN;
        c->recv_window = window;
        c->confirm_due = 0;
    }
    for (; c->failures_due > 0; c->failures_due--)
        if (send_message(e, MSG_CHANNEL_FAILURE, &c->remote_id, 1) != 0)
            return RT_RAN;
    if (c->state == RT_OPEN && !c->eof_seen) {
        uint32_t credit = rt_channel_take_credit(c, rt_window_target(e, c));
        uint32_t words[] = {c->remote_id, credit};
        if (credit > 0 && send_message(e, MSG_CHANNEL_WINDOW_ADJUST, words, 2) != 0)
            return RT_RAN;
    }
    rt_ran ran = RT_RAN;
    if (c->out == RT_OUT_OPEN && c->readable && c->fd >= 0)
        ran = send_data(e, c);
    if (rt_wants_probe(e, c) && send_probe(e, c) != 0)
        rt_fault(e, CODE_BY_APPLICATION, "libcrypto could not seal a packet");
    if (c->out == RT_OUT_EOF) {
        if (send_message(e, MSG_CHANNEL_EOF, &c->remote_id, 1) != 0)
            return RT_RAN;
        rt_channel_set_out(c, RT_OUT_DONE);
        close_when_done(e, c);
    }
    return ran;
}

rt_ran rt_run_channel(rt_engine *e, rt_channel *c)
{
    rt_ran ran = RT_RAN;
    if (!c->close_sent && c->state != RT_OPENING)
        ran = run_open_channel(e, c);
    if (c->state == RT_CLOSING && !c->close_sent && e->fault_why == NULL) {
        ran = RT_RAN;
        if (send_message(e, MSG_CHANNEL_CLOSE, &c->remote_id, 1) != 0)
            return ran;
        c->close_sent = 1;
    }
    return ran;
}
