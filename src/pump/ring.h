/* A queue of bytes for one descriptor: put at the tail, written from the head.
 *
 * Memory is allocated on demand, doubles up to a hard maximum, and is given back when
 * the queue runs empty, so that an idle pair or port holds none. Not thread-safe.
 */
#ifndef RT_RING_H
#define RT_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define RT_RING_MIN 4096u

typedef struct {
    uint8_t *data; /* owned; NULL while empty */
    size_t head;   /* offset of the first byte */
    size_t len;
    size_t capacity;
    size_t maximum; /* never holds more than this */
} rt_ring;

void rt_ring_init(rt_ring *ring, size_t maximum);

/* Drop what is queued and give the memory back. The ring may be used again. */
void rt_ring_clear(rt_ring *ring);

/* Copy `n` bytes in. Returns 0, -ENOBUFS (over the maximum) or -ENOMEM; on failure
 * nothing has changed. */
int rt_ring_put(rt_ring *ring, const void *data, size_t n);

/* Write `n` pieces in one call. Returns the number of bytes, or -errno (never -EINTR).
 * No SIGPIPE comes from a socket; for anything else the caller blocks it. */
ssize_t rt_writev(int fd, bool is_socket, struct iovec *pieces, size_t n);

/* Write from the head what `fd` takes in one call, and drop it from the ring. Returns
 * as rt_writev (-EAGAIN: `fd`, which is non-blocking, takes nothing now). */
ssize_t rt_ring_write(rt_ring *ring, int fd, bool is_socket);
/* The same with `most` bytes at most, which is not 0. */
ssize_t rt_ring_write_some(rt_ring *ring, int fd, bool is_socket, size_t most);

#endif
