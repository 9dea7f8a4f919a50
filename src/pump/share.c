#include "share.h"

#include <stddef.h>

void rt_share_init(rt_share *share, uint64_t rate, uint64_t now_ns)
{
    rt_bucket_init(&share->bucket, rate, now_ns);
    share->line.previous = share->line.next = &share->line;
    share->line.owner = NULL;
    share->line.turn = false;
}

static void stand_in_line(rt_share *share, rt_taker *taker)
{
    if (taker->next != NULL)
        return;
    taker->previous = share->line.previous;
    taker->next = &share->line;
    share->line.previous->next = taker;
    share->line.previous = taker;
}

void rt_taker_leave(rt_taker *taker)
{
    taker->turn = false;
    if (taker->next == NULL)
        return;
    taker->previous->next = taker->next;
    taker->next->previous = taker->previous;
    taker->previous = taker->next = NULL;
}

uint64_t rt_share_ask(rt_share *share, rt_taker *taker, uint64_t now_ns)
{
    bool alone = !rt_share_has_line(share);
    uint64_t allowed = 0;
    if (alone || taker->turn)
        allowed = rt_bucket_available(&share->bucket, now_ns);
    if (!alone && allowed > share->bucket.quantum / RT_NS)
        allowed = share->bucket.quantum / RT_NS;
    taker->turn = false;
    if (allowed == 0)
        stand_in_line(share, taker);
    return allowed;
}

unsigned rt_share_turns(rt_share *share, uint64_t now_ns)
{
    uint64_t available = rt_bucket_available(&share->bucket, now_ns);
    return (unsigned)(available / (share->bucket.quantum / RT_NS));
}

rt_taker *rt_share_call(rt_share *share)
{
    if (!rt_share_has_line(share))
        return NULL;
    rt_taker *taker = share->line.next;
    rt_taker_leave(taker);
    taker->turn = true;
    return taker;
}
