/* How much may be under way: the one policy for windows and for data in flight.
 *
 * throughput <= window / round trip. So a window has to hold twice what the path
 * delivers in its shortest round trip, and no more: what is over that only stands in
 * queues, where it delays the other channels and falls out of the caches.
 *
 * Two modes. Alone, bulk gets all that helps it: the window grows from its default to
 * RT_WINDOW_MAX_BYTES, and never falls below the default. Beside interactive channels,
 * bulk in either direction is held to what the path delivers plus a short queue, in
 * the manner of TCP Vegas and LEDBAT (RFC 6817): the delay says how long the queue is.
 * Pure.
 */
#ifndef RT_SIZING_H
#define RT_SIZING_H

#include <stdint.h>

/* OpenSSH does badly as a sender from 16 MiB on, where its channel input buffer ends
 * (HPN-SSH advertises 15 MB for that reason). */
#define RT_WINDOW_MAX_BYTES (15u * 1024 * 1024)
/* The delay that bulk may add beside interactive channels: a quarter of the path's
 * own, but 5 ms at least, below which nobody hears or sees it. */
#define RT_QUEUE_DELAY_US 5000u
#define RT_QUEUE_DELAY_DIVISOR 4u
/* A packet of the peer's takes its time on the link, and is no queue: a probe's answer
 * waits for the one before it. On links where that is more than this, it counts. */
#define RT_PACKET_DELAY_MAX_US 100000u
/* Where a held transfer begins, and the least that it gets: one packet has to fit. */
#define RT_SHARED_START_BYTES (128u * 1024)
#define RT_SHARED_MIN_BYTES (16u * 1024)

/* The window of a transfer that is alone: `delivered` bytes came in the round trip
 * `rtt_us`, on a path whose best is `rtt_min_us`; `least` is the default window. */
uint32_t rt_window_alone(uint64_t delivered, uint64_t rtt_us, uint64_t rtt_min_us,
                         uint32_t least);

/* The bytes that may be under way beside interactive channels, given `current`, in
 * packets of up to `packet_bytes`. */
uint32_t rt_bytes_shared(uint32_t current, uint64_t delivered, uint64_t rtt_us,
                         uint64_t rtt_min_us, uint32_t packet_bytes);

#endif
