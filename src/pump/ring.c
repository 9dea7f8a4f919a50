#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

void rt_ring_init(rt_ring *ring, size_t maximum)
{
    memset(ring, 0, sizeof *ring);
    ring->maximum = maximum;
}

void rt_ring_clear(rt_ring *ring)
{
    free(ring->data);
    rt_ring_init(ring, ring->maximum);
}

/* Describe the queued bytes: one piece, or two when they wrap around the end. */
static size_t ring_pieces(const rt_ring *ring, struct iovec iov[2])
{
    size_t first = ring->capacity - ring->head;
    if (first > ring->len)
        first = ring->len;
    iov[0] = (struct iovec){ring->data + ring->head, first};
    iov[1] = (struct iovec){ring->data, ring->len - first};
    return ring->len > first ? 2 : 1;
}

static int ring_grow(rt_ring *ring, size_t needed)
{
    size_t capacity = ring->capacity != 0 ? ring->capacity : RT_RING_MIN;
    while (capacity < needed)
        capacity = capacity > ring->maximum / 2 ? ring->maximum : capacity * 2;
    uint8_t *data = malloc(capacity);
    if (data == NULL)
        return -ENOMEM;
    if (ring->len != 0) {
        struct iovec iov[2];
        size_t pieces = ring_pieces(ring, iov);
        memcpy(data, iov[0].iov_base, iov[0].iov_len);
        if (pieces == 2)
            memcpy(data + iov[0].iov_len, iov[1].iov_base, iov[1].iov_len);
    }
    free(ring->data);
    ring->data = data;
    ring->head = 0;
    ring->capacity = capacity;
    return 0;
}

int rt_ring_put(rt_ring *ring, const void *data, size_t n)
{
    if (n > ring->maximum - ring->len)
        return -ENOBUFS;
    if (n == 0)
        return 0;
    if (n > ring->capacity - ring->len) {
        int error = ring_grow(ring, ring->len + n);
        if (error != 0)
            return error;
    }
    size_t tail = ring->head + ring->len;
    if (tail >= ring->capacity)
        tail -= ring->capacity;
    size_t first = ring->capacity - tail;
    if (first > n)
        first = n;
    memcpy(ring->data + tail, data, first);
    memcpy(ring->data, (const uint8_t *)data + first, n - first);
    ring->len += n;
    return 0;
}

ssize_t rt_writev(int fd, bool is_socket, struct iovec *pieces, size_t n)
{
    ssize_t written;
    do {
        if (is_socket) {
            const struct msghdr message = {.msg_iov = pieces, .msg_iovlen = n};
            written = sendmsg(fd, &message, MSG_NOSIGNAL);
        } else {
            written = writev(fd, pieces, (int)n);
        }
    } while (written < 0 && errno == EINTR);
    return written < 0 ? -errno : written;
}

ssize_t rt_ring_write(rt_ring *ring, int fd, bool is_socket)
{
    return rt_ring_write_some(ring, fd, is_socket, SIZE_MAX);
}

ssize_t rt_ring_write_some(rt_ring *ring, int fd, bool is_socket, size_t most)
{
    if (ring->len == 0)
        return 0;
    struct iovec iov[2];
    size_t pieces = ring_pieces(ring, iov);
    if (iov[0].iov_len >= most) {
        iov[0].iov_len = most;
        pieces = 1;
    } else if (pieces == 2 && iov[1].iov_len > most - iov[0].iov_len) {
        iov[1].iov_len = most - iov[0].iov_len;
    }
    ssize_t n = rt_writev(fd, is_socket, iov, pieces);
    if (n <= 0)
        return n;
    ring->len -= (size_t)n;
    ring->head += (size_t)n;
    if (ring->head >= ring->capacity)
        ring->head -= ring->capacity;
    if (ring->len == 0)
        rt_ring_clear(ring);
    return n;
}
