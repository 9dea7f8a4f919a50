/* Rates of channels: those of one listener keep one rate together (share.h), in each
 * direction by itself.
 *
 * Outbound, a channel asks before it reads its socket. Inbound it asks before it writes
 * to it: what was received waits in its buffer and is not credited, so that the window
 * slows the peer down. A channel that stands in line is on no run queue and costs nothing
 * until it is called. All of this under the lock of the engine.
 */
#ifndef RT_LIMITER_H
#define RT_LIMITER_H

#include "engine_impl.h"
#include "share.h"

struct rt_limit {
    rt_rate_of of;
    rt_share in, out;
    uint32_t channels;
    struct rt_limit *next;
};

/* Let `c` keep the rate `of` together with the others that have it. 0 or RT_E*. */
int rt_limit_join(rt_engine *e, rt_channel *c, const rt_rate_of *of);
/* `c` is forgotten; the last one takes the limit with it. */
void rt_limit_part(rt_engine *e, rt_channel *c);
/* `c` moves nothing any more. */
void rt_limit_leave(rt_channel *c);
void rt_limits_free(rt_engine *e);

/* How many bytes of `most` may move now. 0: `c` stands in line, and is called. */
size_t rt_limit_ask_in(const rt_engine *e, rt_channel *c, size_t most);
size_t rt_limit_ask_out(const rt_engine *e, rt_channel *c, size_t most);

/* Call who may go on: write what is buffered for its socket, or put it on the run queue. */
void rt_limits_call(rt_engine *e);
/* When to call next; UINT64_MAX: nobody waits. */
uint64_t rt_limits_due_us(const rt_engine *e);

#endif
