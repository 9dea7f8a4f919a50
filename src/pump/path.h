/* What is known of the path to the peer: round trips, measured by probes.
 *
 * A probe is a request on a pumped channel that every peer answers, if only with
 * FAILURE (PuTTY has measured so for years: winadj@putty.projects.tartarus.org). The
 * answer comes in order, behind all data that the peer has queued for us, and the
 * request goes behind all that we have queued: so the time tells the delay of both
 * queues, and which of our bytes have arrived. Pure: the caller has clock and wire.
 */
#ifndef RT_PATH_H
#define RT_PATH_H

#include <stdint.h>

/* Probes that may be under way: enough for several in one round trip. */
#define RT_MAX_PROBES 32u
/* A peer that leaves a probe unanswered this long is asked no more. */
#define RT_PROBE_TIMEOUT_US (30u * 1000 * 1000)
/* A path whose best delay was not seen for so long, though hardly anything was sent,
 * has become another one. */
#define RT_PATH_STALE_US (10u * 1000 * 1000)

typedef struct {
    uint32_t local_id; /* 0: the channel is gone, the answer may never come */
    uint64_t sent_us;
    /* When the probe left: */
    uint64_t received; /* by the channel */
    uint64_t sent;     /* bulk of the connection, before the probe */
    uint64_t arrived;  /* of that, known to have arrived */
} rt_probe;

typedef struct {
    rt_probe probes[RT_MAX_PROBES];
    unsigned first, count;
    uint64_t rtt_us;         /* the last one; 0: none yet */
    uint64_t rtt_min_us;     /* the best one: the path without queues */
    uint64_t high_since_us;  /* the delay has been far above it since; 0: it is not */
    uint64_t high_least_us;  /* the best since then */
    uint8_t deaf;            /* the peer does not answer probes */
} rt_path;

static inline int rt_path_may_probe(const rt_path *p)
{
    return !p->deaf && p->count < RT_MAX_PROBES;
}

/* Note a probe that leaves now. Only if rt_path_may_probe. */
void rt_path_sent(rt_path *p, const rt_probe *probe);

/* The answer of a channel came. 1: `*probe` is the one it answers; 0: none of ours. */
int rt_path_answered(rt_path *p, uint32_t local_id, uint64_t now_us, rt_probe *probe);

/* The channel ended: its probes may go unanswered. */
void rt_path_forget(rt_path *p, uint32_t local_id);

/* Give up on a peer that does not answer. */
void rt_path_expire(rt_path *p, uint64_t now_us);

#endif
