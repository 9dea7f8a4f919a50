#include "sizing.h"

static uint32_t clamp(uint64_t bytes, uint32_t least, uint32_t most)
{
    return bytes < least ? least : bytes > most ? most : (uint32_t)bytes;
}

/* What the path delivers in `span_us`; no product here comes near 2^64. */
static uint64_t delivered_in(uint64_t span_us, uint64_t delivered, uint64_t rtt_us)
{
    return rtt_us == 0 ? 0 : delivered * span_us / rtt_us;
}

uint32_t rt_window_alone(uint64_t delivered, uint64_t rtt_us, uint64_t rtt_min_us,
                         uint32_t least)
{
    return clamp(delivered_in(2 * rtt_min_us, delivered, rtt_us), least,
                 RT_WINDOW_MAX_BYTES);
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

uint32_t rt_bytes_shared(uint32_t current, uint64_t delivered, uint64_t rtt_us,
                         uint64_t rtt_min_us, uint32_t packet_bytes)
{
    uint64_t packet_us = delivered > 0 ? packet_bytes * rtt_us / delivered : 0;
    if (packet_us > RT_PACKET_DELAY_MAX_US)
        packet_us = RT_PACKET_DELAY_MAX_US;
    uint64_t queue_us = larger(rtt_min_us / RT_QUEUE_DELAY_DIVISOR, RT_QUEUE_DELAY_US);
    queue_us = larger(queue_us, packet_us);
    uint64_t wanted = current;
    if (rtt_us <= rtt_min_us + queue_us) {
        /* The queue is short. If what may be under way was used, allow more: in large
         * steps while there is none at all. */
        if (delivered >= current / 2)
            wanted += rtt_us <= rtt_min_us + queue_us / 4 ? current / 4 : current / 16;
    } else {
        uint64_t ideal = delivered_in(rtt_min_us + queue_us, delivered, rtt_us);
        if (ideal < wanted)
            wanted = (wanted + ideal) / 2;
    }
    return clamp(wanted, RT_SHARED_MIN_BYTES, RT_WINDOW_MAX_BYTES);
}
