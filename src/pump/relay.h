/* What a reactor moves bytes for: a pair (two ends) or a port (memory and a socket).
 *
 * Theory of operation
 *
 * - Readiness is a hint that is kept: an end is taken to be readable and writable until
 *   the kernel answers EAGAIN; then the next edge of epoll (or the poller's emulation of
 *   it) sets the hint again. So nothing is ever asked twice and no interest changes.
 * - Events set hints and errors; a *step* acts on them. A step never blocks, moves a
 *   bounded number of bytes, and says by its outcome what it needs next.
 * - A pair belongs to the thread that steps it: no lock. Of a port, other threads write
 *   the output side (feed tries a direct write), so each has a mutex; it is held during
 *   non-blocking system calls, never during callbacks, and no other lock is taken
 *   inside it.
 * - Bytes of a pair go through a pipe by splice(2). The source is read only when the
 *   pipe is empty: so EAGAIN can only mean "source empty", never "pipe full". Where a
 *   kernel object answers EINVAL, they are copied through one scratch buffer that all
 *   share; only what the sink does not take at once goes into the direction's ring.
 * - Pipes are borrowed from a pool and held only while they hold bytes; rings give
 *   their memory back when empty. An idle pair costs its structure and nothing else.
 * - splice(2) to a socket that lost its reader raises SIGPIPE, and takes no
 *   MSG_NOSIGNAL. Steps run with signals blocked (rt_io_enter, rt_io_leave): SIGPIPE, to
 *   take it back; the others, so that one which comes between two waits interrupts the
 *   next instead of being lost on it.
 */
#ifndef RT_RELAY_H
#define RT_RELAY_H

#include "bucket.h"
#include "ring.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* TUNABLES */

/* What a pipe may hold, and what one copy moves: the size that socat's -b is used with,
 * and a quarter of the 1 MiB that an unprivileged pipe may have (pipe(7)). */
#define RT_PIPE_BYTES (256u * 1024)
/* Pipes that wait for use. More directions than this are seldom busy in one moment. */
#define RT_SPARE_PIPES 16u
/* What one direction may move before others get their turn. */
#define RT_STEP_BYTES (1024u * 1024)

/* CLOCK_MONOTONIC. */
uint64_t rt_now_ns(void);

/* What the steps of one thread share. */

typedef struct {
    int read_fd, write_fd;
} rt_pipe;

typedef struct {
    uint8_t *scratch; /* RT_PIPE_BYTES, owned; allocated when first copied through */
    rt_pipe spare[RT_SPARE_PIPES];
    unsigned spares;
    int epoll_fd; /* -1: another poller */
    bool entered;        /* between rt_io_enter and rt_io_leave */
    bool broken_pipe;    /* something answered EPIPE since: SIGPIPE may be pending */
    sigset_t saved_mask; /* of this thread, restored by rt_io_leave */
    sigset_t wait_mask;  /* the same with SIGPIPE: for the time of a wait */
} rt_io;

void rt_io_init(rt_io *io, int epoll_fd);
void rt_io_free(rt_io *io);

/* Block the signals of this thread that are not its own faults, once until rt_io_leave;
 * that takes back a SIGPIPE that came meanwhile and restores the mask. */
void rt_io_enter(rt_io *io);
void rt_io_leave(rt_io *io);

/* Entries. */

typedef enum { RT_PAIR, RT_PORT } rt_kind;

/* Events of one descriptor; four of these in rt_entry.events, RT_EVENT_BITS apart. */
enum { RT_EVENT_IN = 1, RT_EVENT_OUT = 2, RT_EVENT_BROKEN = 4, RT_EVENT_BITS = 4 };
#define RT_ENTRY_FDS 4u

/* What a step needs next; ENDED stands alone. */
enum { RT_STEP_MORE = 1, RT_STEP_ENDED = 2, RT_STEP_WAIT = 4 /* until due_ns */ };

typedef struct rt_end {
    int read_fd; /* owned, like write_fd; the same one of a socket; -1 when closed */
    int write_fd;
    bool is_socket;
    bool readable;
    bool writable;
} rt_end;

struct rt_reactor;

typedef struct rt_entry {
    rt_kind kind;
    void *owner; /* borrowed */
    struct rt_reactor *reactor;
    atomic_int abort; /* errno with which the owner wants it ended; 0: go on */

    /* Guarded by the reactor's lock. */
    struct rt_entry *previous, *next; /* in the ready list */
    uint32_t index;
    uint16_t events; /* that arrived since the last step */
    bool queued;     /* in the ready list */
    bool attached;   /* has a slot: may be queued */

    /* Written by the stepping thread only. */
    rt_end ends[2];
    uint8_t hung_up;    /* bit per descriptor: broken, nothing more to learn */
    int error;          /* why it ended */
    uint64_t due_ns;    /* of RT_STEP_WAIT */
    uint32_t throttled; /* 1 + position in the reactor's list, 0: not there */
} rt_entry;

/* The descriptor that event number `which` (0 to 3) belongs to; -1: none. A socket has
 * one for both directions, at the even number. */
static inline int rt_entry_fd(const rt_entry *entry, unsigned which)
{
    const rt_end *end = &entry->ends[which >> 1 & 1];
    if (end->is_socket)
        return which & 1 ? -1 : end->read_fd;
    return which & 1 ? end->write_fd : end->read_fd;
}

/* Make a stream descriptor fit for an end: non-blocking, CLOEXEC, TCP_NODELAY.
 * Returns 0 or -errno. */
int rt_end_prepare(const rt_end *end);

/* Close both descriptors; with `reset`, a TCP peer gets RST and unsent bytes are
 * dropped. (AF_UNIX knows no reset: its peer sees ECONNRESET only if it left bytes
 * unread, otherwise the end of the stream.) */
void rt_end_close(rt_end *end, bool reset);

/* How many descriptors it has: 0, 1 or 2. */
int rt_end_descriptors(const rt_end *end);

/* Turn events of ends[index] into hints. Returns the socket's pending error, or 0. */
int rt_entry_note(rt_entry *entry, unsigned index, unsigned events);

/* Take the descriptors out of epoll and close them; with entry.error, reset. */
void rt_entry_close(rt_entry *entry, const rt_io *io);

/* Before an entry is freed: descriptors of one that no reactor took up are the caller's
 * again. */
void rt_entry_hand_back(const rt_entry *entry);

/* What event number `which` is waited for: RT_EVENT_IN, RT_EVENT_OUT, both or 0. For
 * pollers without edges. */
unsigned rt_entry_blocked_on(const rt_entry *entry, unsigned which);

/* Pairs. */

typedef enum {
    RT_FLOW_OPEN,   /* bytes may come */
    RT_FLOW_DRAIN,  /* the source has ended; what is buffered is still written */
    RT_FLOW_DONE,   /* the end was passed on */
    RT_FLOW_BROKEN, /* the sink takes no more, though the source has more */
} rt_flow_state;

typedef struct {
    rt_end *source, *sink;
    rt_flow_state state;
    bool splice;     /* false once a side answered EINVAL */
    size_t piped;    /* bytes in the pipe; the ring is empty then */
    rt_pipe pipe;    /* held only while piped != 0 */
    rt_ring ring;    /* bytes that were copied and not taken */
    rt_bucket bucket;
    _Atomic uint64_t bytes; /* delivered */
} rt_flow;

typedef struct {
    rt_entry entry; /* first: a pair is an entry */
    rt_flow ab, ba;
} rt_pair;

/* Owns the descriptors of both ends if it returns a pair; NULL: out of memory.
 * `rate` is for each direction; 0: no limit. */
rt_pair *rt_pair_new(rt_end a, rt_end b, uint64_t rate, uint64_t now_ns, void *owner);

/* Move what can be moved. `events` are those since the last step. Returns RT_STEP_*;
 * with RT_STEP_ENDED, entry.error says why and the descriptors are still open. */
int rt_pair_step(rt_pair *pair, unsigned events, rt_io *io, uint64_t now_ns);

/* Drop what is buffered and close both ends; as rt_entry_close. */
void rt_pair_close(rt_pair *pair, rt_io *io);

/* Free a pair whose ends are closed, or that no reactor took up: then they are the
 * caller's. */
void rt_pair_free(rt_pair *pair);

#endif
