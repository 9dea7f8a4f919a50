#include "schedule.h"

#include "sizing.h"

/* ---- interactive or bulk ---- */

static uint32_t burst_now(const rt_channel *c, uint64_t now_us)
{
    uint64_t forgotten = (now_us - c->burst_at_us) * RT_INTERACTIVE_BYTES_S / 1000000;
    return forgotten >= c->burst ? 0 : c->burst - (uint32_t)forgotten;
}

int rt_is_interactive(const rt_channel *c, uint64_t now_us)
{
    if (c->priority != RT_PRIORITY_AUTO)
        return c->priority == RT_PRIORITY_INTERACTIVE;
    return burst_now(c, now_us) < RT_BURST_BYTES;
}

void rt_note_traffic(rt_engine *e, rt_channel *c, size_t n)
{
    uint64_t now_us = e->now_us;
    uint32_t burst = burst_now(c, now_us);
    /* Saturates well above the limit: a long transfer is soon forgotten. */
    burst = n > 4 * RT_BURST_BYTES - burst ? 4 * RT_BURST_BYTES : burst + (uint32_t)n;
    c->burst = burst;
    c->burst_at_us = now_us;
    /* A message after a pause, and not the first one, is what sharing is for. */
    int pause = c->moved_at_us != 0 && now_us - c->moved_at_us >= RT_PAUSE_US;
    if (c->priority == RT_PRIORITY_INTERACTIVE || (pause && rt_is_interactive(c, now_us)))
        e->shared_until_us = now_us + RT_SHARED_LINGER_US;
    c->moved_at_us = now_us;
}

/* ---- how much ---- */

uint32_t rt_window_target(const rt_engine *e, const rt_channel *c)
{
    if (!rt_is_shared(e) || rt_is_interactive(c, e->now_us) ||
        c->recv_window_shared > c->recv_window_size)
        return c->recv_window_size;
    return c->recv_window_shared;
}

static uint64_t bulk_in_flight(const rt_engine *e)
{
    return e->bulk_out - e->bulk_arrived;
}

/* Bulk may send nothing until some of what is under way has arrived. */
static int is_held(const rt_engine *e)
{
    return rt_is_shared(e) && !e->path.deaf && bulk_in_flight(e) >= e->bulk_limit;
}

/* What goes out between two probes while shared: small steps make the answers a clock,
 * which spreads what is under way over the round trip. */
static uint32_t pace_bytes(const rt_engine *e)
{
    uint32_t step = e->bulk_limit / RT_PACE_DIVISOR;
    return step < RT_PROBE_BYTES ? step : RT_PROBE_BYTES;
}

uint32_t rt_turn_bytes(const rt_engine *e)
{
    int alone = e->run_queue.next == &e->run_queue && e->urgent.next == &e->urgent;
    return alone && !rt_is_shared(e) ? e->turn_alone : RT_TURN_BYTES;
}

void rt_turn_sent(rt_engine *e)
{
    if (rt_packets_unsent(&e->packets) > 0)
        e->turn_alone = RT_TURN_BYTES;
    else if (e->turn_alone < RT_TURN_ALONE_BYTES)
        e->turn_alone *= 2;
}

size_t rt_turn_budget(const rt_engine *e, const rt_channel *c)
{
    size_t unsent = rt_packets_unsent(&e->packets);
    if (rt_is_interactive(c, e->now_us))
        return unsent < 2 * RT_SEND_QUEUE_BYTES ? RT_TURN_BYTES : 0;
    if (unsent >= RT_SEND_QUEUE_BYTES)
        return 0;
    size_t budget = c->turn_left;
    if (budget > RT_SEND_QUEUE_BYTES - unsent && unsent > 0)
        budget = RT_SEND_QUEUE_BYTES - unsent;
    if (is_held(e))
        return 0;
    if (!rt_is_shared(e) || e->path.deaf)
        return budget;
    uint64_t left = e->bulk_limit - bulk_in_flight(e);
    if (left > pace_bytes(e))
        left = pace_bytes(e);
    return left < budget ? (size_t)left : budget;
}

/* ---- probes ---- */

int rt_wants_probe(const rt_engine *e, const rt_channel *c)
{
    if (!rt_path_may_probe(&e->path) || c->state != RT_OPEN ||
        rt_is_interactive(c, e->now_us))
        return 0;
    uint64_t in = c->received - c->probed_in;
    uint64_t out = c->bytes_out - c->probed_out;
    if (rt_is_shared(e)) {
        /* Whoever waits needs an answer to wait for. */
        if (e->path.count == 0 && is_held(e))
            return 1;
        return out >= pace_bytes(e) || (c->probes == 0 && in >= RT_SHARED_MIN_BYTES);
    }
    return c->probes == 0 && in + out >= RT_PROBE_BYTES &&
           e->now_us - c->probed_at_us >= RT_PROBE_PAUSE_US;
}

void rt_probe_sent(rt_engine *e, rt_channel *c)
{
    rt_probe probe = {
        .local_id = c->local_id,
        .sent_us = e->now_us,
        .received = c->received,
        .sent = e->bulk_out,
        .arrived = e->bulk_arrived,
    };
    rt_path_sent(&e->path, &probe);
    c->probes++;
    c->probed_at_us = e->now_us;
    c->probed_in = c->received;
    c->probed_out = c->bytes_out;
}

static void size_windows(rt_engine *e, rt_channel *c, uint64_t came)
{
    const rt_path *path = &e->path;
    if (e->now_us - c->sized_at_us < path->rtt_us)
        return;
    c->sized_at_us = e->now_us;
    uint32_t size =
        rt_window_alone(came, path->rtt_us, path->rtt_min_us, c->recv_window_least);
    /* Grow at once, shrink in steps: one slow round trip is not a slower path. */
    if (size < c->recv_window_size)
        size = c->recv_window_size - (c->recv_window_size - size) / 4;
    rt_channel_size_window(c, size);
    c->recv_window_shared =
        rt_bytes_shared(c->recv_window_shared, came, path->rtt_us, path->rtt_min_us,
                        c->recv_max_packet);
    rt_enqueue(e, c); /* credit may be due */
}

static void size_bulk(rt_engine *e, uint64_t went)
{
    const rt_path *path = &e->path;
    if (e->now_us - e->bulk_sized_at_us < path->rtt_us)
        return;
    e->bulk_sized_at_us = e->now_us;
    e->bulk_limit =
        rt_bytes_shared(e->bulk_limit, went, path->rtt_us, path->rtt_min_us,
                        pace_bytes(e));
}

int rt_probe_answered(rt_engine *e, rt_channel *c)
{
    rt_probe probe;
    if (!rt_path_answered(&e->path, c->local_id, e->now_us, &probe))
        return 0;
    if (c->probes > 0)
        c->probes--;
    e->bulk_arrived = probe.sent;
    /* Each over one round trip: what came, and what went. */
    uint64_t came = c->received - probe.received;
    uint64_t went = probe.sent - probe.arrived;
    if (came > 0)
        size_windows(e, c, came);
    if (went > 0)
        size_bulk(e, went);
    rt_release_held_back(e);
    return 1;
}

/* ---- the run queue ---- */

static void ring_append(rt_channel *head, rt_channel *c)
{
    c->prev = head->prev;
    c->next = head;
    head->prev->next = c;
    head->prev = c;
}

void rt_queue_remove(rt_channel *c)
{
    if (c->queued == RT_NOT_QUEUED)
        return;
    c->prev->next = c->next;
    c->next->prev = c->prev;
    c->queued = RT_NOT_QUEUED;
}

void rt_enqueue(rt_engine *e, rt_channel *c)
{
    if (c->queued == RT_QUEUED)
        return;
    rt_queue_remove(c);
    ring_append(rt_is_interactive(c, e->now_us) ? &e->urgent : &e->run_queue, c);
    c->queued = RT_QUEUED;
}

void rt_requeue(rt_engine *e, rt_channel *c)
{
    rt_enqueue(e, c);
    rt_channel *head = &e->run_queue;
    if (c->turn_left == 0 || c->prev == head || rt_is_interactive(c, e->now_us))
        return;
    rt_queue_remove(c);
    c->prev = head;
    c->next = head->next;
    head->next->prev = c;
    head->next = c;
    c->queued = RT_QUEUED;
}

rt_channel *rt_dequeue(rt_engine *e)
{
    rt_channel *head = e->urgent.next != &e->urgent ? &e->urgent : &e->run_queue;
    rt_channel *c = head->next;
    if (c == head)
        return NULL;
    rt_queue_remove(c);
    return c;
}

void rt_wait_turn(rt_engine *e, rt_channel *c)
{
    if (!is_held(e)) {
        rt_enqueue(e, c); /* the send queue was full */
        return;
    }
    rt_queue_remove(c);
    ring_append(&e->held_back, c);
    c->queued = RT_HELD_BACK;
}

static void release_all(rt_engine *e)
{
    while (e->held_back.next != &e->held_back)
        rt_enqueue(e, e->held_back.next);
}

void rt_forget_probes(rt_engine *e, rt_channel *c)
{
    if (c->probes == 0)
        return;
    c->probes = 0;
    rt_path_forget(&e->path, c->local_id);
    release_all(e); /* whoever waited for these answers has to ask for itself */
}

void rt_release_held_back(rt_engine *e)
{
    rt_path_expire(&e->path, e->now_us);
    if (!is_held(e))
        release_all(e);
}
