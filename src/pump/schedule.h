/* Who goes next, and how much it may send: the one scheduler of a connection.
 *
 * Interactive channels go first. They are told from bulk by what they move: a channel
 * that moved less than RT_BURST_BYTES of late is interactive, where "of late" forgets
 * RT_INTERACTIVE_BYTES_S a second; or by the priority that was set.
 *
 * While an interactive channel is active the connection is shared: bulk is held to
 * what sizing.h allows, measured by probes. Among equals the turn goes round, each
 * for RT_TURN_BYTES; a turn that ends because the send queue is full goes on when there
 * is room again (deficit round robin), or whoever comes last would always get less.
 * What is left of one because the socket ran empty is added to the next. Who is alone
 * has larger turns, as long as the SSH socket takes all of each.
 */
#ifndef RT_SCHEDULE_H
#define RT_SCHEDULE_H

#include "engine_impl.h"

/* Two seconds of stereo sound at 44.1 kHz and 16 bit come to 350 KB. */
#define RT_INTERACTIVE_BYTES_S (256u * 1024)
#define RT_BURST_BYTES (64u * 1024)
/* Messages that follow each other faster are parts of one transfer. */
#define RT_PAUSE_US 5000u
/* A person or a sound comes back within this time. */
#define RT_SHARED_LINGER_US (2u * 1000 * 1000)
/* Bulk moves at least so much between two probes, */
#define RT_PROBE_BYTES (32u * 1024)
/* but this part of what may be under way, while the answers pace the sender. */
#define RT_PACE_DIVISOR 8u
/* Probes of one channel that is alone are at least so far apart. */
#define RT_PROBE_PAUSE_US 10000u

int rt_is_interactive(const rt_channel *c, uint64_t now_us);
static inline int rt_is_shared(const rt_engine *e)
{
    return e->now_us < e->shared_until_us;
}

/* `n` bytes of `c` moved, in either direction. */
void rt_note_traffic(rt_engine *e, rt_channel *c, size_t n);

/* The receive window that `c` should have now. */
uint32_t rt_window_target(const rt_engine *e, const rt_channel *c);

/* A whole turn for a channel that was taken off the run queue. */
uint32_t rt_turn_bytes(const rt_engine *e);
/* What was queued has been sent as far as the socket took it. */
void rt_turn_sent(rt_engine *e);

/* The bytes that `c` may read from its socket in this turn; 0: not now. */
size_t rt_turn_budget(const rt_engine *e, const rt_channel *c);

/* Whether a probe should leave on `c` now, and what to do with its answer. */
int rt_wants_probe(const rt_engine *e, const rt_channel *c);
void rt_probe_sent(rt_engine *e, rt_channel *c);
/* 1: it was one; 0: the answer belongs to somebody else. */
int rt_probe_answered(rt_engine *e, rt_channel *c);
/* The peer closed `c`: it may leave its probes unanswered. */
void rt_forget_probes(rt_engine *e, rt_channel *c);

/* The run queue: channels with something to send, interactive ones first. */
void rt_enqueue(rt_engine *e, rt_channel *c);
void rt_queue_remove(rt_channel *c);
rt_channel *rt_dequeue(rt_engine *e);
/* `c` has more to send: in front while its turn lasts, then behind the others. */
void rt_requeue(rt_engine *e, rt_channel *c);
/* `c` had no budget: it waits for room, for an answer, or for the end of sharing. */
void rt_wait_turn(rt_engine *e, rt_channel *c);
/* How long the loop may wait with channels held back. */
#define RT_HELD_BACK_POLL_MS 20
/* Put what was held back on the run queue again, if it may go on. */
void rt_release_held_back(rt_engine *e);

#endif
