/* A port: memory on one side, a socket on the other; and the reports of both kinds.
 *
 * Theory of operation: relay.h. The loop's thread reads and steps; feed, from any thread,
 * writes directly while nothing is queued. What is read goes into the batch's arena and
 * is reported; nothing is read beyond what was granted. Where the socket takes no more
 * (EPIPE), fed bytes are discarded and still reported as consumed: the sender's credit
 * has to go on, or the connection deadlocks (OpenSSH, channels.c: channel_input_data).
 * A port with a rate moves bytes in its steps only, when the rate allows it (share.h).
 */
#ifndef RT_PORT_H
#define RT_PORT_H

#include "relay.h"
#include "share.h"

#include <pthread.h>

/* One read of a port: as large as paramiko's and OpenSSH's reads get. */
#define RT_READ_BYTES (64u * 1024)
/* A window may grow to 15 MiB; the wall behind it (rtunnel._pump_types). */
#define RT_PORT_BUFFER_MAX (32u * 1024 * 1024)
#define RT_GRANT_MAX ((uint64_t)1 << 48)
/* What an orderly close reads and drops, so that it need not become a reset. */
#define RT_CLOSE_DISCARD (1024u * 1024)

/* Reports to the owner. */

typedef enum {
    RT_REPORT_CONSUMED, /* n */
    RT_REPORT_READABLE, /* data, n */
    RT_REPORT_EOF,
    RT_REPORT_PORT_END, /* error */
    RT_REPORT_PAIR_END, /* error, bytes_ab, bytes_ba */
} rt_report_kind;

typedef struct {
    rt_report_kind kind;
    int error;           /* errno, or 0 */
    void *owner;         /* as given to rt_pair_new or rt_port_new */
    const uint8_t *data; /* in the batch's arena: valid until it is reused */
    uint64_t n;
    uint64_t bytes_ab, bytes_ba;
} rt_report;

#define RT_BATCH_REPORTS 256u
#define RT_REPORTS_PER_STEP 4u /* consumed, readable, eof, end */
#define RT_BATCH_ARENA (8u * RT_READ_BYTES)

typedef struct {
    unsigned n;
    size_t arena_used;
    uint8_t *arena; /* owned; allocated when first read into */
    rt_report reports[RT_BATCH_REPORTS];
} rt_batch;

/* Whether one more step fits. */
static inline bool rt_batch_has_room(const rt_batch *batch)
{
    return batch->n + RT_REPORTS_PER_STEP <= RT_BATCH_REPORTS &&
           batch->arena_used + RT_READ_BYTES <= RT_BATCH_ARENA;
}

/* Append a report, zeroed but for its kind and owner. The caller has seen that there is
 * room. */
rt_report *rt_batch_add(rt_batch *batch, rt_report_kind kind, void *owner);

/* A rate that several ports of one reactor keep together, in each direction by itself.
 * It lives as long as somebody has a reference. */
typedef struct rt_rate {
    atomic_uint references;
    /* Of the loop's thread. */
    rt_share in, out;
    struct rt_rate *next; /* in the reactor's list, which has a reference */
    bool listed;
} rt_rate;

/* One reference is the caller's. NULL: out of memory. */
rt_rate *rt_rate_new(uint64_t bytes_per_s, uint64_t now_ns);
void rt_rate_release(rt_rate *rate);

/* Ports. Functions marked [any thread] take the port's lock. */

typedef struct {
    rt_entry entry; /* first: a port is an entry; ends[0] is its socket */
    pthread_mutex_t lock;

    /* Guarded by the lock, and so is ends[0]. */
    uint64_t granted;
    uint64_t consumed;  /* not reported yet */
    rt_ring queue;      /* fed and not written */
    int failure;        /* errno of a write; the next step ends the port */
    bool eof_wanted;    /* feed_eof was called */
    bool close_wanted;  /* close was called */
    bool output_done;   /* shut down, or the socket takes no more: discard */
    bool eof_read;
    bool eof_reported;
    bool ended;
    _Atomic uint64_t bytes_in, bytes_out;

    rt_rate *rate; /* a reference, or NULL; then nothing waits for it */
    rt_taker in, out; /* of the loop's thread */
} rt_port;

/* Owns `fd` if it returns a port; NULL: out of memory. `rate` may be NULL. */
rt_port *rt_port_new(int fd, rt_rate *rate, void *owner);

/* As rt_pair_step; appends at most RT_REPORTS_PER_STEP - 1 reports. RT_STEP_WAIT: until
 * its rate calls it. */
int rt_port_step(rt_port *port, unsigned events, rt_batch *batch, uint64_t now_ns);

/* Each returns 0, 1 when a step is needed, or -errno. [any thread] */
int rt_port_grant(rt_port *port, uint64_t n); /* -ERANGE: over RT_GRANT_MAX in sum */
int rt_port_feed(rt_port *port, const uint8_t *data, size_t n); /* -ESHUTDOWN: after
    feed_eof; -ENOBUFS: over RT_PORT_BUFFER_MAX; nothing is taken then */
int rt_port_feed_eof(rt_port *port);
int rt_port_close(rt_port *port);
size_t rt_port_buffered(rt_port *port);

/* Mark as ended, drop what is queued, close as rt_entry_close. [any thread] */
void rt_port_end(rt_port *port, const rt_io *io);

/* As rt_entry_blocked_on for its socket. [any thread] */
unsigned rt_port_blocked_on(rt_port *port);

/* Free a port whose socket is closed, or that no reactor took up: then it is the
 * caller's. */
void rt_port_free(rt_port *port);

#endif
