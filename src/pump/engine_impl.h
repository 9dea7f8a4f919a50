/* What engine.c (the loop and its lock) and messages.c (what the messages of a channel
 * do) share. No other file includes this. */
#ifndef RT_ENGINE_IMPL_H
#define RT_ENGINE_IMPL_H

#include "channels.h"
#include "engine.h"
#include "packets.h"
#include "path.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

/* Packets of one channel that go to its socket in one call; Linux takes 1024. */
#define RT_GATHER_PACKETS 64
/* One turn of one channel: more would keep the others waiting, and a local socket that
 * has not grown its buffers holds little more. */
#define RT_TURN_BYTES (32u * 1024)
/* Of one that is alone, if the path takes it at once: system calls and wake-ups cost
 * less a byte, and more than this falls out of the caches. */
#define RT_TURN_ALONE_BYTES (512u * 1024)
/* From so many bytes without a pause on, what the peer sends is a stream: */
#define RT_STREAM_BYTES (16u * 1024 * 1024)
/* the loop wakes up for portions of this size, */
#define RT_STREAM_WAKE_BYTES (512 * 1024)
/* or after this time, which is a pause. */
#define RT_STREAM_WAIT_MS 1
/* Largest data of one packet that we send: what every peer must take (RFC 4254,
 * section 5.2), whatever more it offers. */
#define RT_SEND_DATA_BYTES 32768u
/* CHANNEL_FAILURE replies that a peer may make us owe before it is cut. */
#define RT_MAX_FAILURES_DUE 1024u

/* SSH message numbers (RFC 4250, section 4.1.2). */
enum {
    MSG_KEXINIT = 20,
    MSG_CHANNEL_OPEN_CONFIRMATION = 91,
    MSG_CHANNEL_WINDOW_ADJUST = 93,
    MSG_CHANNEL_DATA = 94,
    MSG_CHANNEL_EXTENDED_DATA = 95,
    MSG_CHANNEL_EOF = 96,
    MSG_CHANNEL_CLOSE = 97,
    MSG_CHANNEL_REQUEST = 98,
    MSG_CHANNEL_SUCCESS = 99,
    MSG_CHANNEL_FAILURE = 100,
};

typedef struct rt_limit rt_limit;

struct rt_engine {
    /* Locks. `lock` guards everything below it but the atomics. The loop holds it
     * while it works and drops it to wait; so does rt_engine_send for its wait. A mutex
     * is not fair, and a busy loop would win it back each time: the others count
     * themselves in `contenders` first, and the loop steps back while there are any. */
    pthread_mutex_t lock;
    pthread_cond_t room; /* the send queue fell below RT_SEND_QUEUE_BYTES, or it is over */
    atomic_int contenders;

    int epoll_fd;
    int wake_fd;

    rt_packets packets;
    rt_channel_table channels;

    /* Heads of the scheduler's rings. */
    rt_channel urgent;
    rt_channel run_queue;
    rt_channel held_back;
    rt_channel *ended_first, *ended_last;
    rt_limit *limits; /* of live channels */

    uint8_t hold;      /* between our KEXINIT and the new seal key */
    uint8_t peer_kex;  /* between the peer's KEXINIT and the new open key */
    uint8_t closing;   /* rt_engine_close was called */
    uint8_t woken;     /* rt_engine_wake was called */
    uint8_t rekey_due; /* told, until both keys are new */
    uint8_t new_keys;  /* bit 1: open key, bit 2: seal key, since rekey_due */
    uint64_t rekey_bytes, rekey_packets;

    /* Data of one channel that was received in a row, not yet written: it still lies
     * in the receive buffer, so that it has to be written before the next recv. */
    struct {
        rt_channel *channel;
        struct iovec parts[RT_GATHER_PACKETS];
        int count;
        size_t bytes;
    } gathered;

    uint32_t turn_alone; /* RT_TURN_BYTES to RT_TURN_ALONE_BYTES */
    uint64_t streamed;   /* bytes received without a pause */
    uint64_t streamed_at_us;

    uint64_t now_us; /* read once a turn */
    rt_path path;
    uint64_t shared_until_us; /* an interactive channel was active */
    uint64_t bulk_out;        /* bulk data sealed so far */
    uint64_t bulk_arrived;    /* of it, known to have arrived */
    uint64_t bulk_sized_at_us;
    uint32_t bulk_limit; /* may be under way while shared */

    int fault_code; /* SSH_DISCONNECT_*, with fault_why: told at the next return */
    const char *fault_why;
};

/* Epoll data of the two fds that are no channel; local ids are above. */
#define RT_DATA_SSH 0u
#define RT_DATA_WAKE 1u

static inline uint64_t rt_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static inline int rt_send_queue_has_room(const rt_engine *e)
{
    return rt_packets_unsent(&e->packets) < RT_SEND_QUEUE_BYTES;
}

/* messages.c: all under `lock`. */

/* A message of the peer. 1: it is for the owner; 0: done; -1: fault set. */
int rt_on_message(rt_engine *e, const uint8_t *payload, size_t len);
/* Write what was gathered to its socket. */
void rt_write_gathered(rt_engine *e);
/* Write what is buffered for the socket of `c`, as far as it takes it and may have it. */
void rt_write_pending(rt_engine *e, rt_channel *c);
/* The socket of `c` has events (EPOLL*). */
void rt_on_socket(rt_engine *e, rt_channel *c, uint32_t events);
/* Send what is due on `c` and pump its socket. */
typedef enum {
    RT_RAN,       /* nothing more to do before the next event */
    RT_RAN_MORE,  /* there is more to do at once */
    RT_RAN_LATER, /* its data has to wait (schedule.h) */
} rt_ran;
rt_ran rt_run_channel(rt_engine *e, rt_channel *c);
/* End both directions at once; `error` is the errno that did it, or 0. */
void rt_reset_channel(rt_engine *e, rt_channel *c, int error);
/* The connection is over: finish or reset the socket of `c`. */
void rt_lose_channel(rt_engine *e, rt_channel *c);

/* engine.c */
void rt_fault(rt_engine *e, int code, const char *why);
/* The local side of `c` is over: close its socket, and tell the owner: of a reset at
 * once, of an orderly end when the peer's CLOSE has come. */
void rt_end_channel(rt_engine *e, rt_channel *c, int reset);
/* Tell the owner of the end of `c`, once. */
void rt_report_end(rt_engine *e, rt_channel *c);
/* Forget `c` if the owner and the peer are both done with it. */
void rt_forget_if_done(rt_engine *e, rt_channel *c);
int rt_watch_writable(rt_engine *e, rt_channel *c);
void rt_flush(rt_engine *e);

#endif
