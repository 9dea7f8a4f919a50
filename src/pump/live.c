/* Compiled into debug builds only. */
#include "live.h"

#include <stdatomic.h>

static atomic_int counts[RT_LIVE_KINDS];

static const char *const names[RT_LIVE_KINDS] = {
    [RT_LIVE_ENGINE] = "engine",   [RT_LIVE_CHANNEL] = "channel",
    [RT_LIVE_KEY] = "key",         [RT_LIVE_LIMIT] = "limit",
    [RT_LIVE_REACTOR] = "reactor", [RT_LIVE_PAIR] = "pair",
    [RT_LIVE_PORT] = "port",       [RT_LIVE_RATE] = "rate",
    [RT_LIVE_DESCRIPTOR] = "descriptor",
    [RT_LIVE_BLOCK] = "block",
};

void rt_live_add(rt_live_kind kind, int n)
{
    atomic_fetch_add_explicit(&counts[kind], n, memory_order_relaxed);
}

int rt_live_count(rt_live_kind kind)
{
    return atomic_load_explicit(&counts[kind], memory_order_relaxed);
}

const char *rt_live_name(rt_live_kind kind)
{
    return names[kind];
}
