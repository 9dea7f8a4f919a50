/* Theory of operation
 *
 * One epoll set holds the SSH socket, every local socket and an eventfd. All of them
 * are registered once, edge-triggered, and never changed but for EPOLLOUT of a local
 * socket that once was full: readiness lives in flags (`readable`, `writable`) that an
 * event sets and EAGAIN clears. So an idle channel costs nothing, and a busy one no
 * epoll_ctl.
 *
 * The traps of edge-triggered epoll, and how each is met:
 *
 * - A short read leaves the socket empty, so that EAGAIN need not be fetched; but an
 *   end of stream that was announced before the read brings no further edge. Hence
 *   `hung_up`: from then on the socket is read until it says so itself. The same goes
 *   for a local socket with urgent data, at which every read stops short (tcp(7)).
 * - An event may be for a channel that ended since. Events carry the local id, which
 *   holds a generation (channels.h).
 * - Work that is left because the send queue is full brings no edge. Such channels
 *   stay on the run queue, and the loop comes back once the queue has room.
 *
 * A stream from the peer wakes the loop for every packet, which costs the peer as much
 * as us. So once RT_STREAM_BYTES came without a pause, and nobody interactive is
 * there, the SSH socket is told to become readable for large portions only
 * (SO_RCVLOWAT); a wait that brings none ends the stream, and takes what there is.
 *
 * One turn of the loop: open what was received; write it to the local sockets; run the
 * channels on the run queue; send; receive once; poll. The poll waits only if nothing
 * is left to do.
 */
#include "engine_impl.h"
#include "limiter.h"
#include "schedule.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS_PER_POLL 256
/* Turns that the loop steps back for waiting threads before it goes on anyway. */
#define MAX_YIELDS 1000
/* Turns that may go to what the SSH socket brings before the others are looked at. */
#define MAX_TURNS_UNPOLLED 4

static void lock_from_loop(rt_engine *e)
{
    for (int i = 0; atomic_load(&e->contenders) > 0 && i < MAX_YIELDS; i++)
        sched_yield();
    pthread_mutex_lock(&e->lock);
}

static int rekey_is_due(rt_engine *e)
{
    const rt_packets *p = &e->packets;
    if (e->hold || e->peer_kex) /* the keys over their limit are on their way out */
        return 0;
    if (e->rekey_due || (p->key_bytes_in < e->rekey_bytes &&
                         p->key_bytes_out < e->rekey_bytes &&
                         p->key_packets_in < e->rekey_packets &&
                         p->key_packets_out < e->rekey_packets))
        return 0;
    e->rekey_due = 1;
    e->new_keys = 0;
    return 1;
}

/* Open packets until one is for the owner. 1: `event` is set. */
static int open_received(rt_engine *e, rt_event *event)
{
    uint8_t *payload;
    size_t len;
    for (;;) {
        switch (rt_packets_next(&e->packets, &payload, &len)) {
        case RT_NEXT_NONE:
            return 0;
        case RT_NEXT_BAD_LENGTH:
            rt_fault(e, 2, "the peer sent a bad packet length");
            return 0;
        case RT_NEXT_BAD_TAG:
            rt_fault(e, 5, "a packet failed its integrity check");
            return 0;
        case RT_NEXT_BAD_PADDING:
            rt_fault(e, 2, "the peer sent bad padding");
            return 0;
        case RT_NEXT_PACKET:
            break;
        }
        int result = rt_on_message(e, payload, len);
        if (result < 0)
            return 0;
        if (result > 0) {
            event->kind = RT_EV_PACKET;
            event->payload = payload;
            event->len = len;
            event->sequence = e->packets.sequence_in - 1;
            return 1;
        }
    }
}

/* Interactive channels have room of their own behind what is queued. */
static int can_run(const rt_engine *e)
{
    if (e->hold)
        return 0;
    if (e->urgent.next != &e->urgent)
        return rt_packets_unsent(&e->packets) < 2 * RT_SEND_QUEUE_BYTES;
    return e->run_queue.next != &e->run_queue && rt_send_queue_has_room(e);
}

/* Give the channels on the run queue a turn each. What the send queue has no room for
 * stays: the edge of the SSH socket brings the loop back. */
static void run_queued(rt_engine *e)
{
    rt_channel *last = e->run_queue.prev;
    for (int was_last = 0; !was_last && e->fault_why == NULL;) {
        if (!can_run(e))
            rt_flush(e);
        if (!can_run(e))
            return;
        rt_channel *c = rt_dequeue(e);
        was_last = c == last;
        rt_ran ran = rt_run_channel(e, c);
        if (ran == RT_RAN_MORE)
            rt_requeue(e, c);
        else if (ran == RT_RAN_LATER && c->queued == RT_NOT_QUEUED)
            rt_wait_turn(e, c);
        rt_forget_if_done(e, c);
    }
}

static void on_ssh_socket(rt_engine *e, uint32_t events)
{
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        e->packets.readable = 1;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        e->packets.hung_up = 1;
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        e->packets.writable = 1;
}

/* Wait for events with the lock dropped, then take them. Returns how many. */
static int poll_events(rt_engine *e, int timeout_ms)
{
    struct epoll_event events[EVENTS_PER_POLL];
    if (timeout_ms != 0)
        rt_packets_acknowledge(&e->packets);
    int step_back = timeout_ms != 0 || atomic_load(&e->contenders) > 0;
    if (step_back)
        pthread_mutex_unlock(&e->lock);
    int n = epoll_wait(e->epoll_fd, events, EVENTS_PER_POLL, timeout_ms);
    if (step_back)
        lock_from_loop(e);
    for (int i = 0; i < n; i++) {
        uint64_t data = events[i].data.u64;
        if (data == RT_DATA_SSH) {
            on_ssh_socket(e, events[i].events);
        } else if (data == RT_DATA_WAKE) {
            uint64_t count;
            ssize_t got = read(e->wake_fd, &count, sizeof count);
            (void)got;
        } else {
            rt_channel *c = rt_channel_find(&e->channels, (uint32_t)data);
            if (c != NULL)
                rt_on_socket(e, c, events[i].events);
        }
    }
    return n;
}

/* Receive once. 1: some bytes came; -1: `event` is set, the connection is over. */
static int receive(rt_engine *e, rt_event *event)
{
    switch (rt_packets_receive(&e->packets)) {
    case RT_RECEIVE_EOF:
        event->kind = RT_EV_EOF;
        return -1;
    case RT_RECEIVE_ERROR:
        event->kind = RT_EV_ERROR;
        event->error = errno;
        return -1;
    case RT_RECEIVE_SOME:
        return 1;
    default:
        return 0;
    }
}

static int is_streaming(const rt_engine *e)
{
    return e->packets.wake_at > 1;
}

static void end_stream(rt_engine *e)
{
    e->streamed = 0;
    if (!is_streaming(e))
        return;
    rt_packets_wake_at(&e->packets, 1);
    e->packets.readable = 1; /* less than a portion brought no edge */
}

static void note_stream(rt_engine *e, uint64_t bytes)
{
    if (e->now_us - e->streamed_at_us > RT_STREAM_WAIT_MS * 1000u)
        e->streamed = 0;
    e->streamed_at_us = e->now_us;
    e->streamed += bytes;
    if (rt_is_shared(e))
        end_stream(e);
    else if (e->streamed >= RT_STREAM_BYTES)
        rt_packets_wake_at(&e->packets, RT_STREAM_WAKE_BYTES);
}

static int wait_ms(const rt_engine *e, uint64_t deadline_us)
{
    if (is_streaming(e))
        return RT_STREAM_WAIT_MS;
    uint64_t due_us = e->limits == NULL ? UINT64_MAX : rt_limits_due_us(e);
    if (e->held_back.next != &e->held_back &&
        due_us > e->now_us + RT_HELD_BACK_POLL_MS * 1000u)
        due_us = e->now_us + RT_HELD_BACK_POLL_MS * 1000u;
    if (due_us < deadline_us)
        deadline_us = due_us;
    if (deadline_us == UINT64_MAX)
        return -1;
    if (deadline_us <= e->now_us)
        return 0;
    uint64_t left_ms = (deadline_us - e->now_us + 999) / 1000;
    return left_ms > INT_MAX ? INT_MAX : (int)left_ms;
}

void rt_engine_next(rt_engine *e, int timeout_ms, rt_event *event)
{
    int polled = 0; /* once at least, whatever the timeout */
    int unpolled = 0;
    memset(event, 0, sizeof *event);
    lock_from_loop(e);
    e->now_us = rt_now_us();
    uint64_t deadline_us =
        timeout_ms < 0 ? UINT64_MAX : e->now_us + (uint64_t)timeout_ms * 1000;
    for (;; e->now_us = rt_now_us()) {
        if (e->closing) {
            event->kind = RT_EV_EOF;
            break;
        }
        int for_owner = open_received(e, event);
        rt_write_gathered(e);
        rt_release_held_back(e);
        if (e->limits != NULL)
            rt_limits_call(e);
        run_queued(e);
        rt_flush(e);
        if (e->fault_why != NULL) {
            event->kind = RT_EV_FAULT;
            event->code = e->fault_code;
            event->why = e->fault_why;
            break;
        }
        if (for_owner)
            break;
        if (e->ended_first != NULL) {
            event->kind = RT_EV_ENDED;
            break;
        }
        if (e->woken) {
            e->woken = 0;
            event->kind = RT_EV_WOKEN;
            break;
        }
        if (rekey_is_due(e)) {
            event->kind = RT_EV_REKEY;
            break;
        }
        int received = 0;
        if (e->packets.readable) {
            uint64_t before = e->packets.bytes_in;
            received = receive(e, event);
            if (received < 0)
                break;
            if (received)
                note_stream(e, e->packets.bytes_in - before);
        }
        if (e->packets.send_error && !e->packets.readable) {
            event->kind = RT_EV_ERROR;
            event->error = e->packets.send_error;
            break;
        }
        if (e->now_us >= deadline_us && polled) {
            event->kind = RT_EV_TIMEOUT;
            break;
        }
        /* What was just received comes first: most of it wants an answer. */
        if (received && ++unpolled < MAX_TURNS_UNPOLLED)
            continue;
        unpolled = 0;
        int busy = received || e->packets.readable || can_run(e);
        int timeout = busy ? 0 : wait_ms(e, deadline_us);
        if (poll_events(e, timeout) == 0 && !busy)
            end_stream(e);
        polled = 1;
    }
    pthread_mutex_unlock(&e->lock);
}
