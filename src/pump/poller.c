#include "poller.h"

#include "live.h"
#include "relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <unistd.h>

int rt_poller_init(rt_poller *poller, rt_poller_kind kind)
{
    memset(poller, 0, sizeof *poller);
    poller->kind = kind;
    poller->epoll_fd = -1;
    if (kind != RT_EPOLL)
        return 0;
    poller->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (poller->epoll_fd < 0)
        return -errno;
    rt_born(RT_LIVE_DESCRIPTOR);
    return 0;
}

void rt_poller_free(rt_poller *poller)
{
    if (poller->epoll_fd >= 0) {
        close(poller->epoll_fd);
        rt_gone(RT_LIVE_DESCRIPTOR);
    }
    free(poller->watched);
    free(poller->keys);
    poller->epoll_fd = -1;
    poller->watched = NULL;
    poller->keys = NULL;
    poller->count = poller->capacity = 0;
}

int rt_poller_add(rt_poller *poller, int fd, uint64_t key)
{
    if (poller->kind == RT_SELECT && fd >= FD_SETSIZE)
        return -ERANGE;
    if (poller->kind != RT_EPOLL)
        return 0;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    event.data.u64 = key;
    return epoll_ctl(poller->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

void rt_poller_remove(rt_poller *poller, int fd)
{
    if (poller->kind == RT_EPOLL && fd >= 0)
        (void)epoll_ctl(poller->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

static int poller_grow(rt_poller *poller)
{
    size_t capacity = poller->capacity == 0 ? 64 : poller->capacity * 2;
    struct pollfd *watched = realloc(poller->watched, capacity * sizeof *watched);
    if (watched == NULL)
        return -ENOMEM;
    poller->watched = watched;
    uint64_t *keys = realloc(poller->keys, capacity * sizeof *keys);
    if (keys == NULL)
        return -ENOMEM;
    poller->keys = keys;
    poller->capacity = capacity;
    return 0;
}

int rt_poller_watch(rt_poller *poller, int fd, unsigned bits, uint64_t key)
{
    if (poller->kind == RT_EPOLL)
        return 0;
    if (poller->count == poller->capacity) {
        int error = poller_grow(poller);
        if (error != 0) {
            poller->count = 0; /* no wait will: the list is made anew */
            return error;
        }
    }
    short mask = (short)((bits & RT_EVENT_IN ? POLLIN : 0) |
                         (bits & RT_EVENT_OUT ? POLLOUT : 0));
    poller->watched[poller->count] = (struct pollfd){.fd = fd, .events = mask};
    poller->keys[poller->count++] = key;
    return 0;
}

static int wait_epoll(const rt_poller *poller, int timeout_ms, const sigset_t *signals,
                      rt_event *events)
{
    struct epoll_event found[RT_EVENTS_PER_WAIT];
    int n = epoll_pwait(poller->epoll_fd, found, (int)RT_EVENTS_PER_WAIT, timeout_ms, signals);
    if (n < 0)
        return -errno;
    for (int i = 0; i < n; i++) {
        uint32_t mask = found[i].events;
        events[i].key = found[i].data.u64;
        events[i].bits = (mask & EPOLLIN ? (unsigned)RT_EVENT_IN : 0) |
                         (mask & EPOLLOUT ? (unsigned)RT_EVENT_OUT : 0) |
                         (mask & (EPOLLERR | EPOLLHUP) ? (unsigned)RT_EVENT_BROKEN : 0);
    }
    return n;
}

/* Let select(2) fill in what poll(2) would. It has no way to tell a hang-up; that shows
 * as readable or writable to whoever waits for it. */
static int select_into_pollfds(rt_poller *poller, const struct timespec *timeout,
                               const sigset_t *signals)
{
    fd_set read_set, write_set;
    int highest = -1;
    FD_ZERO(&read_set);
    FD_ZERO(&write_set);
    for (size_t i = 0; i < poller->count; i++) {
        const struct pollfd *p = &poller->watched[i];
        if (p->fd < 0 || p->fd >= FD_SETSIZE)
            continue; /* never: rt_poller_add refused it */
        if (p->events & POLLIN)
            FD_SET(p->fd, &read_set);
        if (p->events & POLLOUT)
            FD_SET(p->fd, &write_set);
        if (p->fd > highest)
            highest = p->fd;
    }
    int n = pselect(highest + 1, &read_set, &write_set, NULL, timeout, signals);
    if (n < 0)
        return -1;
    for (size_t i = 0; i < poller->count; i++) {
        struct pollfd *p = &poller->watched[i];
        p->revents = 0;
        if (p->fd < 0 || p->fd >= FD_SETSIZE)
            continue;
        if (FD_ISSET(p->fd, &read_set))
            p->revents = POLLIN;
        if (FD_ISSET(p->fd, &write_set))
            p->revents = (short)(p->revents | POLLOUT);
    }
    return n;
}

int rt_poller_wait(rt_poller *poller, int timeout_ms, const sigset_t *signals,
                   rt_event *events)
{
    if (poller->kind == RT_EPOLL)
        return wait_epoll(poller, timeout_ms, signals, events);
    const struct timespec limit = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
    const struct timespec *timeout = timeout_ms < 0 ? NULL : &limit;
    int n = poller->kind == RT_POLL
                ? ppoll(poller->watched, (nfds_t)poller->count, timeout, signals)
                : select_into_pollfds(poller, timeout, signals);
    size_t count = poller->count;
    poller->count = 0;
    if (n < 0)
        return -errno;
    unsigned found = 0;
    for (size_t i = 0; i < count && n > 0 && found < RT_EVENTS_PER_WAIT; i++) {
        short mask = poller->watched[i].revents;
        if (mask == 0)
            continue;
        events[found].key = poller->keys[i];
        events[found].bits =
            (mask & POLLIN ? (unsigned)RT_EVENT_IN : 0) |
            (mask & POLLOUT ? (unsigned)RT_EVENT_OUT : 0) |
            (mask & (POLLERR | POLLHUP | POLLNVAL) ? (unsigned)RT_EVENT_BROKEN : 0);
        found++;
    }
    return (int)found;
}
