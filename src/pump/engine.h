/* The engine: the SSH socket, its packets, and the channels that are pumped in C.
 *
 * One thread (paramiko's transport thread) calls rt_engine_next, which is the event
 * loop: it moves the bytes of attached channels and comes back for everything else.
 * All other calls may come from any thread and never block, but rt_engine_wait_room and
 * rt_engine_drain. No call needs the interpreter.
 *
 * Calls that return int give 0, or a negative RT_E* code. A local id that is no more
 * gives RT_EGONE and does nothing: channels end by themselves at any time.
 */
#ifndef RT_ENGINE_H
#define RT_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define RT_EGONE (-1)   /* no such channel */
#define RT_ENOMEM (-2)  /* out of memory or of channel ids */
#define RT_ECLOSED (-3) /* the connection is over */
#define RT_EINVAL (-4)  /* an argument that the peer or caller may not use */
#define RT_EFULL (-5)   /* the send queue is at its maximum: the peer does not read */

typedef struct rt_engine rt_engine;

typedef enum {
    RT_EV_TIMEOUT, /* timeout_ms passed */
    RT_EV_PACKET,  /* a message that is not for the engine */
    RT_EV_ENDED,   /* channels ended: take them with rt_engine_take_ended */
    RT_EV_WOKEN,   /* rt_engine_wake was called */
    RT_EV_REKEY,   /* a rekey limit was reached; told once for each pair of keys */
    RT_EV_EOF,     /* the peer closed the socket, or rt_engine_close was called */
    RT_EV_ERROR,   /* the socket failed: `error` is the errno */
    RT_EV_FAULT,   /* the peer broke the protocol: `code` and `why` */
} rt_event_kind;

typedef struct {
    rt_event_kind kind;
    const uint8_t *payload; /* RT_EV_PACKET: valid until the next rt_engine_next */
    size_t len;
    uint32_t sequence;
    int error;
    int code;        /* SSH_DISCONNECT_* (RFC 4253, section 11.1) */
    const char *why; /* static text */
} rt_event;

/* What the other side said of its half of a channel. */
typedef struct {
    uint32_t remote_id;
    uint32_t window_bytes;
    uint32_t max_packet_bytes;
} rt_peer_side;

/* Who goes first on a connection that several share. */
typedef enum {
    RT_PRIORITY_AUTO, /* as it behaves */
    RT_PRIORITY_INTERACTIVE,
    RT_PRIORITY_BULK,
} rt_priority;

/* A rate for each direction: channels with the same key and rate keep it together. */
typedef struct {
    uint64_t key;
    uint64_t bytes_per_s;
} rt_rate_of;

typedef struct {
    uint32_t local_id;
    uint64_t bytes_in, bytes_out;
    int error;     /* errno, 0 if none */
    int was_reset; /* ended by a reset of either side, not by EOF both ways */
} rt_ended;

typedef struct {
    uint64_t bytes_in, bytes_out;
    uint32_t send_window; /* 0 with data waiting: stalled by the peer */
    size_t buffered;      /* received, not yet taken by the local socket */
} rt_channel_stats;

typedef struct {
    uint64_t bytes_in, bytes_out; /* on the wire */
    uint32_t channels;
    size_t unsent;
    uint64_t rtt_us;     /* by the last probe; 0: there was none yet */
    uint64_t rtt_min_us; /* by the best one: the path without queues */
} rt_engine_stats;

/* `fd` is a connected stream socket; it stays the caller's, open until
 * rt_engine_close. NULL: errno. */
rt_engine *rt_engine_new(int fd);
/* No other call may be under way. Local sockets that are left are reset. */
void rt_engine_free(rt_engine *e);

/* Keys for all packets from here on (RFC 4253, section 7.3). RT_EINVAL: the length is
 * not 16 or 32. RT_ENOMEM: so it is, or libcrypto refused. A seal key also ends the hold. Transport thread. */
int rt_engine_set_open_key(rt_engine *e, const uint8_t *key, size_t key_len,
                           const uint8_t iv[12]);
int rt_engine_set_seal_key(rt_engine *e, const uint8_t *key, size_t key_len,
                           const uint8_t iv[12]);
/* Packet numbers continue from here (strict key exchange sets them to 0). */
void rt_engine_set_sequence_in(rt_engine *e, uint32_t sequence);
void rt_engine_set_sequence_out(rt_engine *e, uint32_t sequence);

/* From our KEXINIT until the new seal key no message of a channel may leave (RFC 4253,
 * section 7.1). Messages of rt_engine_send go on: the caller holds its own. */
void rt_engine_hold(rt_engine *e);

/* Tell RT_EV_REKEY after so many bytes or packets in one direction. */
void rt_engine_set_rekey_limits(rt_engine *e, uint64_t bytes, uint64_t packets);

/* Run until something is for the caller, at most `timeout_ms` (-1: for ever). */
void rt_engine_next(rt_engine *e, int timeout_ms, rt_event *event);
/* Take up to `max` ended channels; returns how many. Their ids are then forgotten
 * once the peer has closed them too. */
size_t rt_engine_take_ended(rt_engine *e, rt_ended *out, size_t max);

/* Make rt_engine_next return RT_EV_WOKEN soon. */
void rt_engine_wake(rt_engine *e);
/* End: rt_engine_next returns RT_EV_EOF, senders stop waiting, `fd` is not touched any
 * more once rt_engine_next has returned. */
void rt_engine_close(rt_engine *e);
/* Reset or finish every local socket: the connection is over. Transport thread. */
void rt_engine_end_channels(rt_engine *e);

/* Wait until the send queue has room. The transport thread must not: it makes the
 * room. 0, or RT_ECLOSED. */
int rt_engine_wait_room(rt_engine *e);
/* Give back descriptors, keys and buffers: rt_engine_next will not be called again.
 * All other calls stay safe, and give RT_ECLOSED or RT_EGONE. */
void rt_engine_finish(rt_engine *e);

/* Seal and send one message; never blocks. RT_EFULL: the queue is at its maximum.
 * RT_EINVAL: empty, or too large for a packet. */
int rt_engine_send(rt_engine *e, const uint8_t *payload, size_t len);
/* Wait until all that was sealed has left, at most `timeout_ms`. 0, or RT_ECLOSED. */
int rt_engine_drain(rt_engine *e, int timeout_ms);

/* Take a channel that the peer opened: answers CHANNEL_OPEN_CONFIRMATION, then pumps.
 * Owns `fd` (a connected stream socket) at success only. */
int rt_engine_accept(rt_engine *e, int fd, const rt_peer_side *peer,
                     uint32_t window_bytes, uint32_t max_packet_bytes,
                     rt_priority priority, uint32_t *local_id);
/* The same with a rate. RT_EINVAL: it is 0, or over RT_RATE_MAX. */
int rt_engine_accept_limited(rt_engine *e, int fd, const rt_peer_side *peer,
                             uint32_t window_bytes, uint32_t max_packet_bytes,
                             rt_priority priority, const rt_rate_of *rate,
                             uint32_t *local_id);
/* Take an id for a channel that we open; the caller sends CHANNEL_OPEN with it. */
int rt_engine_reserve(rt_engine *e, uint32_t window_bytes, uint32_t max_packet_bytes,
                      rt_priority priority, uint32_t *local_id);
/* The peer confirmed: pump. Owns `fd` at success only. Transport thread. */
int rt_engine_confirm(rt_engine *e, uint32_t local_id, int fd,
                      const rt_peer_side *peer);
/* The peer refused: forget the id. */
int rt_engine_cancel(rt_engine *e, uint32_t local_id);
/* Give the peer's requests on this channel (RFC 4254, section 5.4) to the owner, who
 * answers them; without this the answer is FAILURE. Transport thread, before the peer
 * can have sent one: right behind accept. */
int rt_engine_pass_requests(rt_engine *e, uint32_t local_id);
/* CLOSE at once, reset the local socket. If both are closed in order, and only the peer's
 * CLOSE is missing, stop waiting for it: was_reset. RT_EGONE: its end is told already. */
int rt_engine_reset(rt_engine *e, uint32_t local_id);

int rt_engine_channel_stats(rt_engine *e, uint32_t local_id, rt_channel_stats *out);
void rt_engine_stats_now(rt_engine *e, rt_engine_stats *out);

#endif
