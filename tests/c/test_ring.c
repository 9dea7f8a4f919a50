#include "check.h"
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static void fill(uint8_t *data, size_t n, uint32_t *seed)
{
    for (size_t i = 0; i < n; i++) {
        *seed = *seed * 1664525 + 1013904223;
        data[i] = (uint8_t)(*seed >> 24);
    }
}

/* Random puts and writes through a small pipe, compared with the same bytes in order. */
static void bytes_come_out_as_they_went_in_across_the_wrap(void)
{
    enum { TOTAL = 400000 };
    static uint8_t sent[TOTAL], got[TOTAL];
    int fds[2];
    uint32_t seed = 1;
    size_t in = 0, out = 0;
    rt_ring ring;
    fill(sent, TOTAL, &seed);
    CHECK(pipe2(fds, O_NONBLOCK | O_CLOEXEC) == 0);
    CHECK(fcntl(fds[1], F_SETPIPE_SZ, 4096) > 0);
    rt_ring_init(&ring, 20000);
    while (out < TOTAL) {
        seed = seed * 1664525 + 1013904223;
        size_t n = seed % 7000;
        if (n > TOTAL - in)
            n = TOTAL - in;
        int outcome = rt_ring_put(&ring, sent + in, n);
        CHECK(outcome == 0 || outcome == -ENOBUFS);
        if (outcome == 0)
            in += n;
        CHECK(ring.len <= ring.maximum);
        ssize_t written = rt_ring_write(&ring, fds[1], false);
        CHECK(written >= 0 || written == -EAGAIN);
        ssize_t taken = read(fds[0], got + out, seed % 3000 + 1);
        if (taken > 0)
            out += (size_t)taken;
    }
    CHECK(memcmp(sent, got, TOTAL) == 0);
    CHECK(ring.data == NULL);
    close(fds[0]);
    close(fds[1]);
}

static void over_the_maximum_nothing_changes(void)
{
    uint8_t data[101] = {0};
    rt_ring ring;
    rt_ring_init(&ring, 100);
    CHECK_EQ(rt_ring_put(&ring, data, 60), 0);
    CHECK_EQ(rt_ring_put(&ring, data, 41), -ENOBUFS);
    CHECK_EQ(rt_ring_put(&ring, data, SIZE_MAX), -ENOBUFS);
    CHECK_EQ(ring.len, 60);
    CHECK_EQ(rt_ring_put(&ring, data, 40), 0);
    CHECK_EQ(ring.len, 100);
    rt_ring_clear(&ring);
    CHECK(ring.data == NULL);
    CHECK_EQ(rt_ring_put(&ring, data, 100), 0);
    rt_ring_clear(&ring);
}

static void an_empty_ring_holds_no_memory(void)
{
    int fds[2];
    rt_ring ring;
    CHECK(pipe2(fds, O_NONBLOCK | O_CLOEXEC) == 0);
    rt_ring_init(&ring, 1 << 20);
    CHECK_EQ(rt_ring_put(&ring, "", 0), 0);
    CHECK(ring.data == NULL);
    CHECK_EQ(rt_ring_write(&ring, fds[1], false), 0);
    CHECK_EQ(rt_ring_put(&ring, "hello", 5), 0);
    CHECK(ring.data != NULL);
    CHECK_EQ(rt_ring_write(&ring, fds[1], false), 5);
    CHECK(ring.data == NULL);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    RUN(bytes_come_out_as_they_went_in_across_the_wrap);
    RUN(over_the_maximum_nothing_changes);
    RUN(an_empty_ring_holds_no_memory);
    return 0;
}
