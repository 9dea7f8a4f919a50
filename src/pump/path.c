#include "path.h"

static void drop_first(rt_path *p)
{
    p->first = (p->first + 1) % RT_MAX_PROBES;
    p->count--;
}

void rt_path_sent(rt_path *p, const rt_probe *probe)
{
    p->probes[(p->first + p->count) % RT_MAX_PROBES] = *probe;
    p->count++;
}

static void take_sample(rt_path *p, uint64_t rtt_us, uint64_t now_us)
{
    p->rtt_us = rtt_us > 0 ? rtt_us : 1;
    if (p->rtt_min_us == 0 || p->rtt_us <= p->rtt_min_us) {
        p->rtt_min_us = p->rtt_us;
        p->high_since_us = 0;
        return;
    }
    if (p->rtt_us < 2 * p->rtt_min_us) {
        p->high_since_us = 0;
        return;
    }
    if (p->high_since_us == 0) {
        p->high_since_us = now_us;
        p->high_least_us = p->rtt_us;
    }
    if (p->rtt_us < p->high_least_us)
        p->high_least_us = p->rtt_us;
}

int rt_path_answered(rt_path *p, uint32_t local_id, uint64_t now_us, rt_probe *probe)
{
    /* The peer answers in order; an earlier one of another channel that is still
     * here was lost with its channel. */
    for (unsigned i = 0; i < p->count; i++) {
        rt_probe *candidate = &p->probes[(p->first + i) % RT_MAX_PROBES];
        if (candidate->local_id != local_id)
            continue;
        *probe = *candidate;
        while (i-- > 0)
            drop_first(p);
        drop_first(p);
        take_sample(p, now_us - probe->sent_us, now_us);
        return 1;
    }
    return 0;
}

void rt_path_forget(rt_path *p, uint32_t local_id)
{
    for (unsigned i = 0; i < p->count; i++) {
        rt_probe *probe = &p->probes[(p->first + i) % RT_MAX_PROBES];
        if (probe->local_id == local_id)
            probe->local_id = 0;
    }
    while (p->count > 0 && p->probes[p->first].local_id == 0)
        drop_first(p);
}

void rt_path_expire(rt_path *p, uint64_t now_us)
{
    if (p->count == 0 || now_us - p->probes[p->first].sent_us < RT_PROBE_TIMEOUT_US)
        return;
    p->deaf = 1;
    p->count = 0;
}
