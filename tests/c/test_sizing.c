#include "check.h"
#include "sizing.h"

#define MIB (1024u * 1024)
#define LEAST (2 * MIB)
#define PACKET 4096u

static void a_window_on_a_short_path_keeps_its_default(void)
{
    /* Loopback, window-limited: 2 MiB in 3 ms on a path of 0.2 ms. */
    CHECK_EQ(rt_window_alone(LEAST, 3000, 200, LEAST), LEAST);
}

static void a_window_that_limits_a_long_path_doubles_every_round_trip(void)
{
    uint32_t window = LEAST;
    for (int i = 0; i < 2; i++)
        window = rt_window_alone(window, 100000, 100000, LEAST);
    CHECK_EQ(window, 4 * LEAST);
}

static void a_window_never_passes_its_maximum(void)
{
    CHECK_EQ(rt_window_alone(100 * (uint64_t)MIB, 100000, 100000, LEAST),
             RT_WINDOW_MAX_BYTES);
    CHECK_EQ(rt_window_alone(UINT32_MAX, 1, 1, LEAST), RT_WINDOW_MAX_BYTES);
}

static void a_window_falls_when_the_delay_is_a_queue(void)
{
    /* 8 MiB were under way, but took twice the shortest round trip. */
    CHECK_EQ(rt_window_alone(8 * MIB, 400000, 100000, LEAST), 4 * MIB);
}

/* A link of `rate` bytes in a microsecond, `rtt_min_us` long, with `bytes` under way. */
static uint32_t settle(uint32_t bytes, double rate, uint64_t rtt_min_us)
{
    for (int i = 0; i < 200; i++) {
        double queue_us = bytes / rate - (double)rtt_min_us;
        uint64_t rtt_us = rtt_min_us + (queue_us > 0 ? (uint64_t)queue_us : 0);
        bytes = rt_bytes_shared(bytes, bytes, rtt_us, rtt_min_us, PACKET);
    }
    return bytes;
}

static void held_bulk_settles_where_the_queue_is_short_and_the_link_is_full(void)
{
    /* 20 Mbit/s and 40 ms: 100 KB fill it, a quarter more is the queue allowed. */
    uint32_t from_below = settle(RT_SHARED_MIN_BYTES, 2.5, 40000);
    uint32_t from_above = settle(RT_WINDOW_MAX_BYTES, 2.5, 40000);
    CHECK(from_below > 100000 && from_below < 140000);
    CHECK(from_above > 100000 && from_above < 140000);
}

static void a_large_packet_on_a_slow_link_is_no_queue(void)
{
    /* 32 KiB take 13 ms at 20 Mbit/s, more than a quarter of the 40 ms: whoever took
     * that for a queue would shrink until only one packet is under way. */
    uint64_t rtt_us = 40000 + 13000;
    uint64_t delivered = 100000;
    CHECK(rt_bytes_shared(100000, delivered, rtt_us, 40000, 32768) >= 100000);
    CHECK(rt_bytes_shared(100000, delivered, rtt_us, 40000, 4096) < 100000);
}

static void held_bulk_always_gets_a_little(void)
{
    CHECK_EQ(rt_bytes_shared(RT_SHARED_MIN_BYTES, 1, 1000000, 1000, PACKET),
             RT_SHARED_MIN_BYTES);
    CHECK_EQ(rt_bytes_shared(RT_SHARED_MIN_BYTES, 0, 1000, 1000, PACKET), RT_SHARED_MIN_BYTES);
}

static void held_bulk_that_is_not_used_does_not_grow(void)
{
    CHECK_EQ(rt_bytes_shared(MIB, 1000, 40000, 40000, PACKET), MIB);
}

int main(void)
{
    RUN(a_window_on_a_short_path_keeps_its_default);
    RUN(a_window_that_limits_a_long_path_doubles_every_round_trip);
    RUN(a_window_never_passes_its_maximum);
    RUN(a_window_falls_when_the_delay_is_a_queue);
    RUN(held_bulk_settles_where_the_queue_is_short_and_the_link_is_full);
    RUN(a_large_packet_on_a_slow_link_is_no_queue);
    RUN(held_bulk_always_gets_a_little);
    RUN(held_bulk_that_is_not_used_does_not_grow);
    return 0;
}
