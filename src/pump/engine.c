/* The engine as its owner sees it: life, keys, messages, channels and figures. Each call
 * takes the lock; the loop is in loop.c. */
#include "engine_impl.h"
#include "limiter.h"
#include "live.h"
#include "schedule.h"
#include "sizing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* Input thrown away before a close: 1 MiB, for a target that never stops sending. */
#define MAX_UNREAD_CHUNKS 64

/* ---- lock ---- */

static void lock_from_outside(rt_engine *e)
{
    atomic_fetch_add(&e->contenders, 1);
    pthread_mutex_lock(&e->lock);
    atomic_fetch_sub(&e->contenders, 1);
}

static void unlock(rt_engine *e)
{
    pthread_mutex_unlock(&e->lock);
}

/* ---- what the loop and the messages call ---- */

void rt_fault(rt_engine *e, int code, const char *why)
{
    if (e->fault_why != NULL)
        return;
    e->fault_code = code;
    e->fault_why = why;
}

static void signal_wake_fd(rt_engine *e)
{
    uint64_t one = 1;
    ssize_t n = write(e->wake_fd, &one, sizeof one);
    (void)n; /* full means that it is set already */
}

static void close_socket(int fd, int reset)
{
    if (reset) {
        struct linger hard = {.l_onoff = 1, .l_linger = 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    } else {
        /* With unread input, close would reset the connection, and what the target has
         * not fetched yet would be gone. */
        char unread[16384];
        shutdown(fd, SHUT_WR);
        for (int i = 0; i < MAX_UNREAD_CHUNKS; i++)
            if (recv(fd, unread, sizeof unread, MSG_DONTWAIT) <= 0)
                break;
    }
    close(fd); /* also leaves the epoll set: nobody else has this description */
    rt_gone(RT_LIVE_DESCRIPTOR);
}

void rt_report_end(rt_engine *e, rt_channel *c)
{
    if (c->listed)
        return;
    c->listed = 1;
    c->next_ended = NULL;
    if (e->ended_last != NULL)
        e->ended_last->next_ended = c;
    else
        e->ended_first = c;
    e->ended_last = c;
}

void rt_end_channel(rt_engine *e, rt_channel *c, int reset)
{
    if (c->listed)
        return;
    if (c->fd >= 0) {
        close_socket(c->fd, reset);
        c->fd = -1;
    }
    rt_buffer_free(&c->pending);
    rt_limit_leave(c);
    c->readable = c->writable = 0;
    if (reset)
        c->was_reset = 1;
    c->ended = 1;
    /* An orderly end is one when the peer has said CLOSE too: until then the last bytes
     * may still be on their way. */
    if (c->was_reset || c->close_seen)
        rt_report_end(e, c);
}

void rt_forget_if_done(rt_engine *e, rt_channel *c)
{
    if (!c->reported || !c->close_sent || !c->close_seen)
        return;
    rt_queue_remove(c);
    rt_limit_part(e, c);
    rt_channel_remove(&e->channels, c);
}

int rt_watch_writable(rt_engine *e, rt_channel *c)
{
    if (c->out_armed)
        return 0;
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET,
        .data.u64 = c->local_id,
    };
    if (epoll_ctl(e->epoll_fd, EPOLL_CTL_MOD, c->fd, &event) != 0)
        return -1;
    c->out_armed = 1;
    return 0;
}

void rt_flush(rt_engine *e)
{
    if (e->closing) /* the caller may have closed the socket: its number is not ours */
        return;
    if (rt_packets_unsent(&e->packets) >= RT_TURN_BYTES) {
        rt_packets_flush(&e->packets);
        rt_turn_sent(e);
    } else {
        rt_packets_flush(&e->packets);
    }
    if (e->packets.send_error)
        signal_wake_fd(e); /* the socket may have no event for it */
    if (rt_send_queue_has_room(e))
        pthread_cond_broadcast(&e->room);
}

/* ---- life ---- */

static int watch(rt_engine *e, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

rt_engine *rt_engine_new(int fd)
{
    rt_engine *e = calloc(1, sizeof *e);
    if (e == NULL)
        return NULL;
    rt_born(RT_LIVE_ENGINE);
    pthread_mutex_init(&e->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&e->room, &attributes);
    pthread_condattr_destroy(&attributes);
    atomic_init(&e->contenders, 0);
    e->urgent.next = e->urgent.prev = &e->urgent;
    e->run_queue.next = e->run_queue.prev = &e->run_queue;
    e->held_back.next = e->held_back.prev = &e->held_back;
    e->now_us = rt_now_us();
    e->bulk_limit = RT_SHARED_START_BYTES;
    e->turn_alone = RT_TURN_BYTES;
    rt_channels_init(&e->channels);
    e->rekey_bytes = e->rekey_packets = UINT64_MAX;
    int failed = rt_packets_init(&e->packets, fd);
    e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rt_live_add(RT_LIVE_DESCRIPTOR, (e->epoll_fd >= 0) + (e->wake_fd >= 0));
    if (failed || e->epoll_fd < 0 || e->wake_fd < 0 ||
        watch(e, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, RT_DATA_SSH) != 0 ||
        watch(e, e->wake_fd, EPOLLIN, RT_DATA_WAKE) != 0) {
        int error = failed ? ENOMEM : errno;
        rt_engine_free(e);
        errno = error;
        return NULL;
    }
    return e;
}

static void close_fd(int *fd)
{
    if (*fd < 0)
        return;
    close(*fd);
    *fd = -1;
    rt_gone(RT_LIVE_DESCRIPTOR);
}

void rt_engine_finish(rt_engine *e)
{
    lock_from_outside(e);
    e->closing = 1;
    pthread_cond_broadcast(&e->room);
    for (uint32_t i = 0; i < e->channels.capacity; i++) {
        rt_channel *c = e->channels.slots[i];
        if (c != NULL && c->fd >= 0) {
            close_socket(c->fd, 1);
            c->fd = -1;
        }
    }
    rt_packets_free(&e->packets);
    close_fd(&e->epoll_fd);
    close_fd(&e->wake_fd);
    unlock(e);
}

void rt_engine_free(rt_engine *e)
{
    rt_engine_finish(e);
    rt_channels_free(&e->channels);
    rt_limits_free(e);
    pthread_cond_destroy(&e->room);
    pthread_mutex_destroy(&e->lock);
    free(e);
    rt_gone(RT_LIVE_ENGINE);
}

/* ---- keys ---- */

static void keys_changed(rt_engine *e, uint8_t which)
{
    e->new_keys |= which;
    if (e->new_keys == 3)
        e->new_keys = e->rekey_due = 0;
}

int rt_engine_set_open_key(rt_engine *e, const uint8_t *key, size_t key_len,
                           const uint8_t iv[12])
{
    if (key_len != 16 && key_len != 32)
        return RT_EINVAL;
    rt_gcm *gcm = rt_gcm_new(key, key_len, iv, 0);
    if (gcm == NULL)
        return RT_ENOMEM;
    lock_from_outside(e);
    rt_packets_set_open_key(&e->packets, gcm);
    e->peer_kex = 0;
    keys_changed(e, 1);
    unlock(e);
    return 0;
}

int rt_engine_set_seal_key(rt_engine *e, const uint8_t *key, size_t key_len,
                           const uint8_t iv[12])
{
    if (key_len != 16 && key_len != 32)
        return RT_EINVAL;
    rt_gcm *gcm = rt_gcm_new(key, key_len, iv, 1);
    if (gcm == NULL)
        return RT_ENOMEM;
    lock_from_outside(e);
    rt_packets_set_seal_key(&e->packets, gcm);
    e->hold = 0;
    keys_changed(e, 2);
    unlock(e);
    return 0;
}

void rt_engine_set_sequence_in(rt_engine *e, uint32_t sequence)
{
    lock_from_outside(e);
    e->packets.sequence_in = sequence;
    unlock(e);
}

void rt_engine_set_sequence_out(rt_engine *e, uint32_t sequence)
{
    lock_from_outside(e);
    e->packets.sequence_out = sequence;
    unlock(e);
}

void rt_engine_hold(rt_engine *e)
{
    lock_from_outside(e);
    e->hold = 1;
    unlock(e);
}

void rt_engine_set_rekey_limits(rt_engine *e, uint64_t bytes, uint64_t packets)
{
    lock_from_outside(e);
    e->rekey_bytes = bytes;
    e->rekey_packets = packets;
    unlock(e);
}

size_t rt_engine_take_ended(rt_engine *e, rt_ended *out, size_t max)
{
    size_t n = 0;
    lock_from_outside(e);
    while (n < max && e->ended_first != NULL) {
        rt_channel *c = e->ended_first;
        e->ended_first = c->next_ended;
        if (e->ended_first == NULL)
            e->ended_last = NULL;
        out[n].local_id = c->local_id;
        out[n].bytes_in = c->bytes_in;
        out[n].bytes_out = c->bytes_out;
        out[n].error = c->error;
        out[n].was_reset = c->was_reset;
        n++;
        c->reported = 1;
        rt_forget_if_done(e, c);
    }
    unlock(e);
    return n;
}

void rt_engine_wake(rt_engine *e)
{
    lock_from_outside(e);
    e->woken = 1;
    signal_wake_fd(e);
    unlock(e);
}

void rt_engine_close(rt_engine *e)
{
    lock_from_outside(e);
    e->closing = 1;
    signal_wake_fd(e);
    pthread_cond_broadcast(&e->room);
    unlock(e);
}

void rt_engine_end_channels(rt_engine *e)
{
    lock_from_outside(e);
    e->closing = 1;
    pthread_cond_broadcast(&e->room);
    for (uint32_t i = 0; i < e->channels.capacity; i++)
        if (e->channels.slots[i] != NULL)
            rt_lose_channel(e, e->channels.slots[i]);
    unlock(e);
}

/* ---- messages of the owner ---- */

int rt_engine_wait_room(rt_engine *e)
{
    lock_from_outside(e);
    while (!rt_send_queue_has_room(e) && !e->closing && !e->packets.send_error)
        pthread_cond_wait(&e->room, &e->lock);
    int result = e->closing || e->packets.send_error ? RT_ECLOSED : 0;
    unlock(e);
    return result;
}

int rt_engine_send(rt_engine *e, const uint8_t *payload, size_t len)
{
    int result = 0;
    lock_from_outside(e);
    if (e->closing || e->packets.send_error) {
        result = RT_ECLOSED;
    } else if (len == 0 || len > RT_MAX_PAYLOAD_BYTES) {
        result = RT_EINVAL; /* every peer would refuse it */
    } else {
        uint8_t *room = rt_packets_begin(&e->packets, len);
        if (room == NULL) {
            result = rt_packets_is_full(&e->packets, len) ? RT_EFULL : RT_ENOMEM;
        } else {
            memcpy(room, payload, len);
            if (rt_packets_finish(&e->packets, len) != 0)
                result = RT_EINVAL;
            rt_flush(e);
        }
    }
    unlock(e);
    return result;
}

int rt_engine_drain(rt_engine *e, int timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    lock_from_outside(e);
    int timed_out = 0;
    rt_flush(e);
    while (rt_packets_unsent(&e->packets) > 0 && !e->closing &&
           !e->packets.send_error && !timed_out)
        timed_out = pthread_cond_timedwait(&e->room, &e->lock, &until) == ETIMEDOUT;
    int left = rt_packets_unsent(&e->packets) == 0 && !e->packets.send_error;
    int result = left ? 0 : RT_ECLOSED;
    unlock(e);
    return result;
}

/* ---- channels ---- */

static int attach(rt_engine *e, rt_channel *c, int fd, const rt_peer_side *peer)
{
    if (peer->max_packet_bytes == 0)
        return RT_EINVAL; /* nothing could ever be sent */
    uint32_t events = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET;
    if (watch(e, fd, events, c->local_id) != 0)
        return errno == ENOMEM || errno == ENOSPC ? RT_ENOMEM : RT_EINVAL;
    c->fd = fd;
    rt_born(RT_LIVE_DESCRIPTOR);
    c->writable = 1;
    c->remote_id = peer->remote_id;
    c->send_window = peer->window_bytes;
    c->send_max_packet = peer->max_packet_bytes;
    rt_channel_set_state(c, RT_OPEN);
    return 0;
}

static rt_channel *add_channel(rt_engine *e, uint32_t window_bytes,
                               uint32_t max_packet_bytes, rt_priority priority)
{
    rt_channel *c = rt_channel_add(&e->channels);
    if (c == NULL)
        return NULL;
    c->recv_window = c->recv_window_least = window_bytes;
    c->recv_window_shared = RT_SHARED_START_BYTES;
    c->recv_max_packet = max_packet_bytes;
    c->priority = priority;
    rt_buffer_init(&c->pending, 0);
    rt_channel_size_window(c, window_bytes);
    return c;
}

/* From any thread: send at once what is due; the loop does the rest. */
static void kick(rt_engine *e, rt_channel *c)
{
    e->now_us = rt_now_us();
    rt_enqueue(e, c);
    if (e->hold || !rt_send_queue_has_room(e)) {
        if (e->ended_first != NULL)
            signal_wake_fd(e); /* the loop can tell of the end before CLOSE can leave */
        return;
    }
    rt_queue_remove(c);
    if (rt_run_channel(e, c) != RT_RAN)
        rt_enqueue(e, c);
    rt_flush(e);
    if (e->ended_first != NULL || c->queued || c->take_out.next || e->fault_why != NULL)
        signal_wake_fd(e);
    rt_forget_if_done(e, c);
}

int rt_engine_accept(rt_engine *e, int fd, const rt_peer_side *peer,
                     uint32_t window_bytes, uint32_t max_packet_bytes,
                     rt_priority priority, uint32_t *local_id)
{
    return rt_engine_accept_limited(e, fd, peer, window_bytes, max_packet_bytes, priority,
                                    NULL, local_id);
}

int rt_engine_accept_limited(rt_engine *e, int fd, const rt_peer_side *peer,
                             uint32_t window_bytes, uint32_t max_packet_bytes,
                             rt_priority priority, const rt_rate_of *rate,
                             uint32_t *local_id)
{
    int result = RT_ECLOSED;
    lock_from_outside(e);
    if (!e->closing) {
        rt_channel *c = add_channel(e, window_bytes, max_packet_bytes, priority);
        result = c == NULL ? RT_ENOMEM : 0;
        e->now_us = rt_now_us();
        if (result == 0 && rate != NULL)
            result = rt_limit_join(e, c, rate);
        if (result == 0)
            result = attach(e, c, fd, peer);
        if (result == 0) {
            *local_id = c->local_id;
            c->confirm_due = 1;
            kick(e, c);
        } else if (c != NULL) {
            rt_limit_part(e, c);
            rt_channel_remove(&e->channels, c);
        }
    }
    unlock(e);
    return result;
}

int rt_engine_reserve(rt_engine *e, uint32_t window_bytes, uint32_t max_packet_bytes,
                      rt_priority priority, uint32_t *local_id)
{
    int result = RT_ECLOSED;
    lock_from_outside(e);
    if (!e->closing) {
        rt_channel *c = add_channel(e, window_bytes, max_packet_bytes, priority);
        result = c == NULL ? RT_ENOMEM : 0;
        if (c != NULL)
            *local_id = c->local_id;
    }
    unlock(e);
    return result;
}

static rt_channel *find_opening(rt_engine *e, uint32_t local_id)
{
    rt_channel *c = rt_channel_find(&e->channels, local_id);
    return c != NULL && c->state == RT_OPENING ? c : NULL;
}

int rt_engine_confirm(rt_engine *e, uint32_t local_id, int fd, const rt_peer_side *peer)
{
    lock_from_outside(e);
    rt_channel *c = find_opening(e, local_id);
    int result = c == NULL ? RT_EGONE : attach(e, c, fd, peer);
    unlock(e);
    return result;
}

int rt_engine_cancel(rt_engine *e, uint32_t local_id)
{
    lock_from_outside(e);
    rt_channel *c = find_opening(e, local_id);
    if (c != NULL)
        rt_channel_remove(&e->channels, c);
    unlock(e);
    return c == NULL ? RT_EGONE : 0;
}

int rt_engine_pass_requests(rt_engine *e, uint32_t local_id)
{
    lock_from_outside(e);
    rt_channel *c = rt_channel_find(&e->channels, local_id);
    if (c != NULL)
        c->owner_answers = 1;
    unlock(e);
    return c == NULL ? RT_EGONE : 0;
}

int rt_engine_reset(rt_engine *e, uint32_t local_id)
{
    lock_from_outside(e);
    rt_channel *c = rt_channel_find(&e->channels, local_id);
    int live = c != NULL && !c->listed && c->state != RT_OPENING;
    if (live) {
        rt_reset_channel(e, c, 0);
        kick(e, c);
    }
    unlock(e);
    return live ? 0 : RT_EGONE;
}

/* ---- figures ---- */

int rt_engine_channel_stats(rt_engine *e, uint32_t local_id, rt_channel_stats *out)
{
    lock_from_outside(e);
    rt_channel *c = rt_channel_find(&e->channels, local_id);
    if (c != NULL) {
        out->bytes_in = c->bytes_in;
        out->bytes_out = c->bytes_out;
        out->send_window = c->send_window;
        out->buffered = rt_buffer_len(&c->pending);
    }
    unlock(e);
    return c == NULL ? RT_EGONE : 0;
}

void rt_engine_stats_now(rt_engine *e, rt_engine_stats *out)
{
    lock_from_outside(e);
    out->bytes_in = e->packets.bytes_in;
    out->bytes_out = e->packets.bytes_out;
    out->channels = e->channels.live;
    out->unsent = rt_packets_unsent(&e->packets);
    out->rtt_us = e->path.rtt_us;
    out->rtt_min_us = e->path.rtt_min_us;
    unlock(e);
}
