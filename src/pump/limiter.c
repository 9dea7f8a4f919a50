#include "limiter.h"

#include "live.h"
#include "schedule.h"

#include <stdlib.h>

static uint64_t now_ns(const rt_engine *e)
{
    return e->now_us * 1000;
}

int rt_limit_join(rt_engine *e, rt_channel *c, const rt_rate_of *of)
{
    rt_limit *limit = e->limits;
    if (of->bytes_per_s == 0 || of->bytes_per_s > RT_RATE_MAX)
        return RT_EINVAL;
    while (limit != NULL && (limit->of.key != of->key ||
                             limit->of.bytes_per_s != of->bytes_per_s))
        limit = limit->next;
    if (limit == NULL) {
        limit = calloc(1, sizeof *limit);
        if (limit == NULL)
            return RT_ENOMEM;
        rt_born(RT_LIVE_LIMIT);
        limit->of = *of;
        rt_share_init(&limit->in, of->bytes_per_s, now_ns(e));
        rt_share_init(&limit->out, of->bytes_per_s, now_ns(e));
        limit->next = e->limits;
        e->limits = limit;
    }
    limit->channels++;
    c->limit = limit;
    c->take_in.owner = c->take_out.owner = c;
    return 0;
}

void rt_limit_part(rt_engine *e, rt_channel *c)
{
    rt_limit *limit = c->limit;
    if (limit == NULL)
        return;
    rt_limit_leave(c);
    c->limit = NULL;
    if (--limit->channels > 0)
        return;
    rt_limit **place = &e->limits;
    while (*place != limit)
        place = &(*place)->next;
    *place = limit->next;
    free(limit);
    rt_gone(RT_LIVE_LIMIT);
}

void rt_limit_leave(rt_channel *c)
{
    rt_taker_leave(&c->take_in);
    rt_taker_leave(&c->take_out);
}

void rt_limits_free(rt_engine *e)
{
    while (e->limits != NULL) {
        rt_limit *limit = e->limits;
        e->limits = limit->next;
        free(limit);
        rt_gone(RT_LIVE_LIMIT);
    }
}

size_t rt_limit_ask_in(const rt_engine *e, rt_channel *c, size_t most)
{
    uint64_t allowed = rt_share_ask(&c->limit->in, &c->take_in, now_ns(e));
    return allowed < most ? (size_t)allowed : most;
}

size_t rt_limit_ask_out(const rt_engine *e, rt_channel *c, size_t most)
{
    uint64_t allowed = rt_share_ask(&c->limit->out, &c->take_out, now_ns(e));
    return allowed < most ? (size_t)allowed : most;
}

void rt_limits_call(rt_engine *e)
{
    for (rt_limit *limit = e->limits; limit != NULL; limit = limit->next) {
        rt_taker *taker;
        for (unsigned turns = rt_share_turns(&limit->in, now_ns(e));
             turns > 0 && (taker = rt_share_call(&limit->in)) != NULL; turns--)
            rt_write_pending(e, taker->owner);
        for (unsigned turns = rt_share_turns(&limit->out, now_ns(e));
             turns > 0 && (taker = rt_share_call(&limit->out)) != NULL; turns--)
            rt_enqueue(e, taker->owner);
    }
}

uint64_t rt_limits_due_us(const rt_engine *e)
{
    uint64_t due_us = UINT64_MAX;
    for (const rt_limit *limit = e->limits; limit != NULL; limit = limit->next) {
        const rt_share *shares[] = {&limit->in, &limit->out};
        for (int i = 0; i < 2; i++) {
            if (!rt_share_has_line(shares[i]))
                continue;
            uint64_t ready_us = rt_share_ready_at(shares[i]) / 1000 + 1;
            due_us = ready_us < due_us ? ready_us : due_us;
        }
    }
    return due_us;
}
