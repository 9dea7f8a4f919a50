/* A token bucket in whole numbers: pure arithmetic, the clock is the caller's.
 *
 * Credit is counted in byte-nanoseconds, so nothing is lost to rounding and a transfer
 * keeps its rate exactly. What moves at once is worth 5 ms at least, and a caller that
 * comes up to 50 ms late loses nothing; longer pauses are not saved up. It starts empty.
 * The rate may be 1 to RT_RATE_MAX: above, that credit would not fit 64 bits.
 */
#ifndef RT_BUCKET_H
#define RT_BUCKET_H

#include <stdint.h>

#define RT_NS 1000000000u
#define RT_RATE_MAX 100000000000u /* bytes/s */

typedef struct {
    uint64_t rate;    /* bytes/s; 0: no limit */
    uint64_t credit;  /* byte-nanoseconds */
    uint64_t limit;   /* of credit */
    uint64_t quantum; /* credit below which nothing moves: 5 ms worth */
    uint64_t then_ns;
} rt_bucket;

static inline void rt_bucket_init(rt_bucket *b, uint64_t rate, uint64_t now_ns)
{
    b->rate = rate;
    b->quantum = (rate / 200 > 1 ? rate / 200 : 1) * RT_NS;
    b->limit = b->quantum + rate * (RT_NS / 20);
    b->credit = 0;
    b->then_ns = now_ns;
}

/* How many bytes may move now: 0, or at least a quantum. */
static inline uint64_t rt_bucket_available(rt_bucket *b, uint64_t now_ns)
{
    if (b->rate == 0)
        return UINT64_MAX;
    if (now_ns > b->then_ns) {
        uint64_t elapsed = now_ns - b->then_ns;
        uint64_t useful = (b->limit - b->credit) / b->rate + 1;
        b->then_ns = now_ns;
        b->credit += (elapsed < useful ? elapsed : useful) * b->rate;
        if (b->credit > b->limit)
            b->credit = b->limit;
    }
    return b->credit >= b->quantum ? b->credit / RT_NS : 0;
}

/* Take `n` bytes, at most what rt_bucket_available said. */
static inline void rt_bucket_spend(rt_bucket *b, uint64_t n)
{
    if (b->rate != 0)
        b->credit -= n * RT_NS;
}

/* The time from which rt_bucket_available is not 0. */
static inline uint64_t rt_bucket_ready_at(const rt_bucket *b)
{
    uint64_t missing = b->quantum > b->credit ? b->quantum - b->credit : 0;
    return missing == 0 ? b->then_ns : b->then_ns + (missing - 1) / b->rate + 1;
}

#endif
