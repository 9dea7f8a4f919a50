/* One rate for several takers: a token bucket, and the line of those who wait for it.
 *
 * Theory of operation
 *
 * - Whoever asks while nobody waits gets what the bucket has. Else it stands in line,
 *   and so does whoever asks when the bucket is empty.
 * - The owner of the clock calls: when the bucket has enough, those at the head get a
 *   turn each, a quantum of the bucket at most. Who wants more stands in line again. So
 *   all get the same, and the rate is kept by all of them together.
 * - A turn is leave to ask, not bytes: one that is not used costs nobody anything.
 * - Nothing here is locked, and no time is read: one thread owns a share.
 */
#ifndef RT_SHARE_H
#define RT_SHARE_H

#include "bucket.h"

#include <stdbool.h>

typedef struct rt_taker {
    struct rt_taker *previous, *next; /* in line; NULL: it does not wait */
    void *owner;                      /* borrowed: whom to wake */
    bool turn;
} rt_taker;

typedef struct {
    rt_bucket bucket;
    rt_taker line; /* head of a ring */
} rt_share;

void rt_share_init(rt_share *share, uint64_t rate, uint64_t now_ns);

/* How many bytes `taker` may move now. 0: it stands in line, until it is called. */
uint64_t rt_share_ask(rt_share *share, rt_taker *taker, uint64_t now_ns);

/* Take `n` bytes, at most what rt_share_ask said. */
static inline void rt_share_spend(rt_share *share, uint64_t n)
{
    rt_bucket_spend(&share->bucket, n);
}

static inline bool rt_share_has_line(const rt_share *share)
{
    return share->line.next != &share->line;
}

/* The time from which somebody can be called. */
static inline uint64_t rt_share_ready_at(const rt_share *share)
{
    return rt_bucket_ready_at(&share->bucket);
}

/* How many may be called now. */
unsigned rt_share_turns(rt_share *share, uint64_t now_ns);
/* Call the head of the line: it has left it, and has a turn. NULL: nobody waits. */
rt_taker *rt_share_call(rt_share *share);

/* Leave the line, if `taker` stands in one: it is over, or has nothing to move. */
void rt_taker_leave(rt_taker *taker);

#endif
