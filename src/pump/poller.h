/* Waiting for descriptors: epoll(7), poll(2) or select(2) behind one face.
 *
 * epoll is told of a descriptor once, edge-triggered, in both directions; a wait costs
 * what happened. The others are told before each wait what is blocked
 * (rt_poller_watch), and that costs what is registered: they are for systems and tests
 * without epoll. Belongs to one thread, except rt_poller_add.
 */
#ifndef RT_POLLER_H
#define RT_POLLER_H

#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { RT_EPOLL, RT_POLL, RT_SELECT } rt_poller_kind;

typedef struct {
    uint64_t key;  /* as given */
    unsigned bits; /* RT_EVENT_* */
} rt_event;

#define RT_EVENTS_PER_WAIT 256u

typedef struct {
    rt_poller_kind kind;
    int epoll_fd; /* owned; -1 for the other kinds */
    /* What the next wait watches; parallel arrays, owned. Not for epoll. */
    struct pollfd *watched;
    uint64_t *keys;
    size_t count, capacity;
} rt_poller;

/* Return 0 or -errno. */
int rt_poller_init(rt_poller *poller, rt_poller_kind kind);
void rt_poller_free(rt_poller *poller);

/* Take up a descriptor. epoll registers it; select refuses with -ERANGE what an fd_set
 * has no room for. Returns 0 or -errno. Any thread. */
int rt_poller_add(rt_poller *poller, int fd, uint64_t key);

/* Take a descriptor out of epoll, which a copy of it would keep there. */
void rt_poller_remove(rt_poller *poller, int fd);

/* Watch `fd` in the next wait for `bits`, or (poll only) just for hang-ups with 0.
 * Nothing to do for epoll. Returns 0, or -ENOMEM: then nothing is watched any more. */
int rt_poller_watch(rt_poller *poller, int fd, unsigned bits, uint64_t key);

/* Wait up to `timeout_ms`, -1 for ever, with the signal mask `signals` for that time.
 * Returns the number of events, at most RT_EVENTS_PER_WAIT, or -errno (-EINTR included).
 * What was watched is forgotten. */
int rt_poller_wait(rt_poller *poller, int timeout_ms, const sigset_t *signals,
                   rt_event *events);

#endif
