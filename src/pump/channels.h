/* The channel table: what one connection knows of each channel that the engine pumps.
 *
 * A channel is found by the local id, which the peer puts into every message. The id
 * is checked, never trusted: it holds the slot's index and its generation, so that a
 * late message for a channel that ended does not reach the one that came after it.
 *
 * Local ids start at RT_CHANNEL_ID_BASE. paramiko numbers its own channels below
 * 2^24, so the two never meet.
 */
#ifndef RT_CHANNELS_H
#define RT_CHANNELS_H

#include "buffer.h"
#include "engine.h"
#include "share.h"

#include <stdint.h>

#define RT_CHANNEL_ID_BASE 0x40000000u
#define RT_CHANNEL_INDEX_BITS 20
#define RT_CHANNEL_GENERATION_BITS 10
#define RT_MAX_CHANNELS (1u << RT_CHANNEL_INDEX_BITS)

/* 10 % over the window is forgiven, as OpenSSH does (channels.c, channel_input_data). */
#define RT_WINDOW_GRACE_DIVISOR 10
/* Credit goes in portions: each is a packet that the peer has to wake up for (OpenSSH
 * gives one for every three packets). A quarter of the window keeps the peer sending
 * all the time, also where the window is small. */
#define RT_CREDIT_DIVISOR 4
#define RT_CREDIT_MAX_BYTES (512 * 1024)

/* Where a channel stands as a whole. */
typedef enum {
    RT_OPENING, /* id taken; the open is not confirmed, nothing moves */
    RT_OPEN,    /* both sides may send */
    RT_CLOSING, /* our CLOSE is sent or due; waiting for the peer's */
} rt_channel_state;

/* Peer to local socket: the "output" of OpenSSH's nchan. */
typedef enum {
    RT_IN_OPEN,    /* data arrives and is written */
    RT_IN_DRAIN,   /* EOF or CLOSE arrived; what is buffered is still written */
    RT_IN_DISCARD, /* the socket takes no more: consume and credit, write nothing */
    RT_IN_SHUT,    /* EOF was passed on */
} rt_in_state;

/* Local socket to peer: the "input" of OpenSSH's nchan. */
typedef enum {
    RT_OUT_OPEN, /* the socket is read */
    RT_OUT_EOF,  /* the socket ended; our EOF message is due */
    RT_OUT_DONE, /* EOF was sent, or may no longer be */
} rt_out_state;

enum { RT_NOT_QUEUED, RT_QUEUED, RT_HELD_BACK };

typedef struct rt_channel {
    uint32_t local_id;
    uint32_t remote_id;
    int fd; /* owned; -1 before attach and after the socket is closed */
    rt_channel_state state;
    rt_in_state in;
    rt_out_state out;

    /* Readiness as told by edge-triggered epoll, cleared by EAGAIN. */
    uint8_t readable;
    uint8_t writable;
    uint8_t hung_up;   /* a short read is not the last: read until EAGAIN or EOF */
    uint8_t out_armed; /* EPOLLOUT is in the interest set */

    /* Messages that are due, and what was seen. */
    uint8_t confirm_due;
    uint8_t close_sent;
    uint8_t close_seen;
    uint8_t eof_seen;
    uint8_t owner_answers; /* requests of the peer go to the owner */
    uint8_t ended;    /* the local side is over, its socket closed */
    uint8_t listed;   /* for the owner to take */
    uint8_t reported; /* the owner has taken it */
    uint8_t was_reset;
    uint8_t queued; /* on which ring of the scheduler */
    int error;      /* errno that ended it, 0 if none */
    uint32_t failures_due; /* CHANNEL_FAILURE replies owed */

    uint32_t send_window;
    uint32_t send_max_packet;
    int64_t recv_window;        /* the peer may send; below 0 within the grace */
    uint32_t recv_window_least; /* as it was asked for */
    uint32_t recv_window_size;  /* grown to what the path needs (sizing.h) */
    uint32_t recv_window_shared; /* the same beside interactive channels */
    uint32_t recv_max_packet;

    rt_buffer pending; /* received, not yet written to fd; at most the window */

    uint64_t received;  /* from the peer */
    uint64_t bytes_in;  /* written to fd */
    uint64_t bytes_out; /* sent to the peer */

    /* Who goes first (schedule.h). */
    rt_priority priority;
    uint32_t burst; /* bytes moved of late */
    uint64_t burst_at_us;
    uint64_t moved_at_us;
    uint32_t turn_left;  /* bytes of its turn that it has not sent yet */
    uint32_t turn_saved; /* of the turn before, when its socket ran empty */
    /* Probes (path.h). */
    uint64_t probed_at_us;
    uint64_t probed_in, probed_out; /* received, bytes_out when the last one left */
    uint64_t sized_at_us;           /* its windows were set anew */
    uint32_t probes;                /* not answered */

    /* The rate that it keeps together with others (limiter.h); NULL: none. */
    struct rt_limit *limit;
    rt_taker take_in, take_out;

    struct rt_channel *next, *prev; /* run queue */
    struct rt_channel *next_ended;
} rt_channel;

typedef struct {
    rt_channel **slots;
    uint16_t *generations;
    uint32_t *free_list;
    uint32_t capacity;
    uint32_t free_count;
    uint32_t live;
} rt_channel_table;

void rt_channels_init(rt_channel_table *t);
/* Frees the table and every channel in it; closes no fd. */
void rt_channels_free(rt_channel_table *t);

/* A new channel in state RT_OPENING, or NULL: out of memory or of ids. Owned by the
 * table until rt_channel_remove. */
rt_channel *rt_channel_add(rt_channel_table *t);
void rt_channel_remove(rt_channel_table *t, rt_channel *c);

/* The channel with this id, or NULL: never was, or is no more. O(1). */
rt_channel *rt_channel_find(const rt_channel_table *t, uint32_t local_id);

/* Move one part of a channel's state. Returns 0, or -1 and changes nothing where the
 * table in channels.c has no such step. */
int rt_channel_set_state(rt_channel *c, rt_channel_state to);
int rt_channel_set_in(rt_channel *c, rt_in_state to);
int rt_channel_set_out(rt_channel *c, rt_out_state to);

/* Window arithmetic (RFC 4254, section 5.2). Each returns 0, or -1 if the peer broke
 * the rule, and then changes nothing. */
int rt_channel_charge(rt_channel *c, size_t n); /* the peer sent n bytes */
int rt_channel_adjust(rt_channel *c, uint32_t n); /* the peer gave n bytes */

/* Bring the peer's window up to `target`, less what is buffered: returns the credit to
 * send and counts it, or 0 while it is three packets at most and the peer has half of
 * the target (OpenSSH, channel_check_window). What was received and is neither buffered
 * nor credited has been consumed. */
uint32_t rt_channel_take_credit(rt_channel *c, uint32_t target);

/* Let the window grow or shrink to `size`; memory follows. */
void rt_channel_size_window(rt_channel *c, uint32_t size);

#endif
