#include "faults.h"

#include "live.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_uint target; /* 0: not armed */
static atomic_uint chosen, counted, errors_of_target;
static atomic_bool everywhere, never_wait;
static char fired[64];
static _Thread_local unsigned depth;

void faults_arm(unsigned nth, unsigned which)
{
    fired[0] = '\0';
    atomic_store(&counted, 0);
    atomic_store(&errors_of_target, 0);
    atomic_store(&chosen, which);
    atomic_store(&target, nth);
}

unsigned faults_disarm(void)
{
    atomic_store(&target, 0);
    return atomic_load(&counted);
}

unsigned faults_errors(void)
{
    return atomic_load(&errors_of_target);
}

const char *faults_fired(void)
{
    return fired[0] != '\0' ? fired : NULL;
}

bool faults_fired_by(const char *call)
{
    return strncmp(fired, call, strlen(call)) == 0;
}

void faults_begin(void)
{
    depth++;
}

void faults_end(void)
{
    depth--;
}

void faults_everywhere(bool on)
{
    atomic_store(&everywhere, on);
}

void faults_never_wait(bool on)
{
    atomic_store(&never_wait, on);
}

/* Count this call. True, with errno set: it is to fail. */
static bool fails(const char *call, const int *errors, size_t count)
{
    unsigned nth = atomic_load(&target);
    if (nth == 0 || (depth == 0 && !atomic_load(&everywhere)))
        return false;
    if (atomic_fetch_add(&counted, 1) + 1 != nth)
        return false;
    atomic_store(&errors_of_target, (unsigned)count);
    unsigned which = atomic_load(&chosen);
    if (which >= count)
        return false;
    snprintf(fired, sizeof fired, "%s: %s", call, strerrorname_np(errors[which]));
    errno = errors[which];
    return true;
}

#define FAILS(call, ...)                                                                  \
    fails(call, (const int[]){__VA_ARGS__}, sizeof((const int[]){__VA_ARGS__}) / sizeof(int))

/* ---- memory ---- */

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__real_calloc(size_t count, size_t n);
void *__wrap_calloc(size_t count, size_t n);
void *__real_realloc(void *old, size_t n);
void *__wrap_realloc(void *old, size_t n);
void __real_free(void *block);
void __wrap_free(void *block);

void *__wrap_malloc(size_t n)
{
    void *block = FAILS("malloc", ENOMEM) ? NULL : __real_malloc(n);
    if (block != NULL)
        rt_born(RT_LIVE_BLOCK);
    return block;
}

void *__wrap_calloc(size_t count, size_t n)
{
    void *block = FAILS("calloc", ENOMEM) ? NULL : __real_calloc(count, n);
    if (block != NULL)
        rt_born(RT_LIVE_BLOCK);
    return block;
}

void *__wrap_realloc(void *old, size_t n)
{
    void *block = FAILS("realloc", ENOMEM) ? NULL : __real_realloc(old, n);
    if (block != NULL && old == NULL)
        rt_born(RT_LIVE_BLOCK);
    return block;
}

void __wrap_free(void *block)
{
    if (block != NULL)
        rt_gone(RT_LIVE_BLOCK);
    __real_free(block);
}

/* ---- descriptors ---- */

int __real_eventfd(unsigned value, int flags);
int __wrap_eventfd(unsigned value, int flags);
int __real_epoll_create1(int flags);
int __wrap_epoll_create1(int flags);
int __real_pipe2(int fds[2], int flags);
int __wrap_pipe2(int fds[2], int flags);

int __wrap_eventfd(unsigned value, int flags)
{
    return FAILS("eventfd", EMFILE, ENFILE, ENOMEM) ? -1 : __real_eventfd(value, flags);
}

int __wrap_epoll_create1(int flags)
{
    return FAILS("epoll_create1", EMFILE, ENFILE, ENOMEM) ? -1
                                                          : __real_epoll_create1(flags);
}

int __wrap_pipe2(int fds[2], int flags)
{
    return FAILS("pipe2", EMFILE, ENFILE) ? -1 : __real_pipe2(fds, flags);
}

/* ---- readiness ---- */

/* What is watched: EAGAIN that is not true would never end without a new edge. */
#define WATCHED_MAX 256

static struct {
    int epoll_fd, fd;
    struct epoll_event event;
} watched[WATCHED_MAX];
static unsigned watched_count;
static pthread_mutex_t watched_lock = PTHREAD_MUTEX_INITIALIZER;

int __real_epoll_ctl(int epoll_fd, int op, int fd, struct epoll_event *event);
int __wrap_epoll_ctl(int epoll_fd, int op, int fd, struct epoll_event *event);

/* The newest entry of a descriptor is the one that holds: numbers are used again. */
static void note_watched(int epoll_fd, int fd, const struct epoll_event *event)
{
    pthread_mutex_lock(&watched_lock);
    unsigned at = watched_count++ % WATCHED_MAX;
    watched[at].epoll_fd = epoll_fd;
    watched[at].fd = fd;
    watched[at].event = *event;
    pthread_mutex_unlock(&watched_lock);
}

static void bring_edge(int fd)
{
    int error = errno;
    pthread_mutex_lock(&watched_lock);
    for (unsigned i = watched_count; i-- > 0 && watched_count - i <= WATCHED_MAX;)
        if (watched[i % WATCHED_MAX].fd == fd) {
            struct epoll_event event = watched[i % WATCHED_MAX].event;
            (void)__real_epoll_ctl(watched[i % WATCHED_MAX].epoll_fd, EPOLL_CTL_MOD, fd,
                                   &event);
            break;
        }
    pthread_mutex_unlock(&watched_lock);
    errno = error;
}

int __wrap_epoll_ctl(int epoll_fd, int op, int fd, struct epoll_event *event)
{
    if (op == EPOLL_CTL_ADD && FAILS("epoll_ctl ADD", ENOMEM, ENOSPC))
        return -1;
    if (op == EPOLL_CTL_MOD && FAILS("epoll_ctl MOD", ENOMEM))
        return -1;
    int result = __real_epoll_ctl(epoll_fd, op, fd, event);
    if (result == 0 && op != EPOLL_CTL_DEL)
        note_watched(epoll_fd, fd, event);
    return result;
}

int __real_epoll_wait(int epoll_fd, struct epoll_event *events, int n, int timeout);
int __wrap_epoll_wait(int epoll_fd, struct epoll_event *events, int n, int timeout);
int __real_epoll_pwait(int epoll_fd, struct epoll_event *events, int n, int timeout,
                       const sigset_t *mask);
int __wrap_epoll_pwait(int epoll_fd, struct epoll_event *events, int n, int timeout,
                       const sigset_t *mask);
int __real_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
                 const sigset_t *mask);
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
                 const sigset_t *mask);
int __real_pselect(int n, fd_set *in, fd_set *out, fd_set *except,
                   const struct timespec *timeout, const sigset_t *mask);
int __wrap_pselect(int n, fd_set *in, fd_set *out, fd_set *except,
                   const struct timespec *timeout, const sigset_t *mask);

static int waited(int n)
{
    if (n != 0 || !atomic_load(&never_wait))
        return n;
    errno = EINTR;
    return -1;
}

static const struct timespec at_once = {0, 0};

int __wrap_epoll_wait(int epoll_fd, struct epoll_event *events, int n, int timeout)
{
    if (FAILS("epoll_wait", EINTR))
        return -1;
    return __real_epoll_wait(epoll_fd, events, n, timeout);
}

int __wrap_epoll_pwait(int epoll_fd, struct epoll_event *events, int n, int timeout,
                       const sigset_t *mask)
{
    if (FAILS("epoll_pwait", EINTR))
        return -1;
    bool waits = timeout != 0;
    if (atomic_load(&never_wait))
        timeout = 0;
    int found = __real_epoll_pwait(epoll_fd, events, n, timeout, mask);
    return waits ? waited(found) : found;
}

int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
                 const sigset_t *mask)
{
    if (FAILS("ppoll", EINTR, ENOMEM))
        return -1;
    bool waits = timeout == NULL || timeout->tv_sec != 0 || timeout->tv_nsec != 0;
    if (atomic_load(&never_wait))
        timeout = &at_once;
    int found = __real_ppoll(fds, n, timeout, mask);
    return waits ? waited(found) : found;
}

int __wrap_pselect(int n, fd_set *in, fd_set *out, fd_set *except,
                   const struct timespec *timeout, const sigset_t *mask)
{
    if (FAILS("pselect", EINTR, ENOMEM))
        return -1;
    bool waits = timeout == NULL || timeout->tv_sec != 0 || timeout->tv_nsec != 0;
    if (atomic_load(&never_wait))
        timeout = &at_once;
    int found = __real_pselect(n, in, out, except, timeout, mask);
    return waits ? waited(found) : found;
}

/* ---- bytes ---- */

ssize_t __real_read(int fd, void *into, size_t n);
ssize_t __wrap_read(int fd, void *into, size_t n);
ssize_t __real_write(int fd, const void *from, size_t n);
ssize_t __wrap_write(int fd, const void *from, size_t n);
ssize_t __real_writev(int fd, const struct iovec *parts, int n);
ssize_t __wrap_writev(int fd, const struct iovec *parts, int n);
ssize_t __real_splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t n,
                      unsigned flags);
ssize_t __wrap_splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t n,
                      unsigned flags);
ssize_t __real_recv(int fd, void *into, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *into, size_t n, int flags);
ssize_t __real_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __real_send(int fd, const void *from, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *from, size_t n, int flags);
ssize_t __real_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);

/* Returned by a call that failed on purpose: with EAGAIN, an edge will tell of `fd`. */
static ssize_t failed(int fd)
{
    if (errno == EAGAIN)
        bring_edge(fd);
    return -1;
}

ssize_t __wrap_read(int fd, void *into, size_t n)
{
    if (FAILS("read", EINTR, EAGAIN, ECONNRESET, ETIMEDOUT))
        return failed(fd);
    return __real_read(fd, into, n);
}

/* Only eventfds are written to: full ones, which are as good as written. */
ssize_t __wrap_write(int fd, const void *from, size_t n)
{
    ssize_t written = __real_write(fd, from, n);
    return FAILS("write", EAGAIN) ? -1 : written;
}

ssize_t __wrap_writev(int fd, const struct iovec *parts, int n)
{
    if (FAILS("writev", EINTR, EAGAIN, EPIPE, ENOMEM))
        return failed(fd);
    return __real_writev(fd, parts, n);
}

ssize_t __wrap_splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t n,
                      unsigned flags)
{
    if (FAILS("splice", EINTR, EAGAIN, EINVAL, EPIPE, ECONNRESET, ENOMEM)) {
        if (errno == EAGAIN)
            bring_edge(in);
        return failed(out);
    }
    return __real_splice(in, in_at, out, out_at, n, flags);
}

ssize_t __wrap_recv(int fd, void *into, size_t n, int flags)
{
    if (FAILS("recv", EINTR, EAGAIN, ECONNRESET, ETIMEDOUT, ENOMEM))
        return failed(fd);
    return __real_recv(fd, into, n, flags);
}

ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
    if (FAILS("recvmsg", EINTR, EAGAIN, ECONNRESET, ETIMEDOUT, ENOMEM))
        return failed(fd);
    return __real_recvmsg(fd, message, flags);
}

ssize_t __wrap_send(int fd, const void *from, size_t n, int flags)
{
    if (FAILS("send", EINTR, EAGAIN, EPIPE, ECONNRESET, ENOBUFS))
        return failed(fd);
    return __real_send(fd, from, n, flags);
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (FAILS("sendmsg", EINTR, EAGAIN, EPIPE, ECONNRESET, ENOBUFS))
        return failed(fd);
    return __real_sendmsg(fd, message, flags);
}

/* ---- the rest ---- */

int __real_shutdown(int fd, int how);
int __wrap_shutdown(int fd, int how);
int __real_setsockopt(int fd, int level, int option, const void *value, socklen_t n);
int __wrap_setsockopt(int fd, int level, int option, const void *value, socklen_t n);
int __real_getsockopt(int fd, int level, int option, void *value, socklen_t *n);
int __wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *n);
int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);

int __wrap_shutdown(int fd, int how)
{
    return FAILS("shutdown", ENOTCONN) ? -1 : __real_shutdown(fd, how);
}

int __wrap_setsockopt(int fd, int level, int option, const void *value, socklen_t n)
{
    if (option != SO_LINGER && FAILS("setsockopt", ENOMEM))
        return -1;
    return __real_setsockopt(fd, level, option, value, n);
}

int __wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *n)
{
    return FAILS("getsockopt", ENOBUFS) ? -1
                                        : __real_getsockopt(fd, level, option, value, n);
}

/* Only the size of a pipe can be refused; flags cannot. */
int __wrap_fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    int value = va_arg(rest, int);
    va_end(rest);
    if (command == F_SETPIPE_SZ && FAILS("fcntl F_SETPIPE_SZ", EPERM, EBUSY))
        return -1;
    return __real_fcntl(fd, command, value);
}
