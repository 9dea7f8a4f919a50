/* Theory of operation
 *
 * A relay has two directions that live and die by themselves, and one CLOSE that ends
 * both. EVENTS (a message, EOF or error of the socket) move the states; ACTIONS (send
 * EOF, shut the socket down) never do. The legal steps are the three tables below;
 * everything else is a fault in the engine and is refused.
 *
 *   in:   OPEN -> DRAIN -> SHUT        peer's EOF, then the buffer ran empty
 *         OPEN/DRAIN -> DISCARD        the socket takes no more
 *         OPEN/DISCARD -> SHUT         reset, or the peer's EOF after DISCARD
 *   out:  OPEN -> EOF -> DONE          the socket's EOF, then our message
 *         OPEN -> DONE                 reset, or the peer's CLOSE
 *   channel: OPENING -> OPEN -> CLOSING
 */
#include "channels.h"

#include "live.h"

#include <stdlib.h>
#include <string.h>

#define BIT(state) (1u << (state))

static const unsigned state_steps[] = {
    [RT_OPENING] = BIT(RT_OPEN),
    [RT_OPEN] = BIT(RT_CLOSING),
    [RT_CLOSING] = 0,
};

static const unsigned in_steps[] = {
    [RT_IN_OPEN] = BIT(RT_IN_DRAIN) | BIT(RT_IN_DISCARD) | BIT(RT_IN_SHUT),
    [RT_IN_DRAIN] = BIT(RT_IN_DISCARD) | BIT(RT_IN_SHUT),
    [RT_IN_DISCARD] = BIT(RT_IN_SHUT),
    [RT_IN_SHUT] = 0,
};

static const unsigned out_steps[] = {
    [RT_OUT_OPEN] = BIT(RT_OUT_EOF) | BIT(RT_OUT_DONE),
    [RT_OUT_EOF] = BIT(RT_OUT_DONE),
    [RT_OUT_DONE] = 0,
};

int rt_channel_set_state(rt_channel *c, rt_channel_state to)
{
    if (!(state_steps[c->state] & BIT(to)))
        return -1;
    c->state = to;
    return 0;
}

int rt_channel_set_in(rt_channel *c, rt_in_state to)
{
    if (!(in_steps[c->in] & BIT(to)))
        return -1;
    c->in = to;
    return 0;
}

int rt_channel_set_out(rt_channel *c, rt_out_state to)
{
    if (!(out_steps[c->out] & BIT(to)))
        return -1;
    c->out = to;
    return 0;
}

void rt_channels_init(rt_channel_table *t)
{
    memset(t, 0, sizeof *t);
}

void rt_channels_free(rt_channel_table *t)
{
    for (uint32_t i = 0; i < t->capacity; i++)
        if (t->slots[i] != NULL) {
            rt_buffer_free(&t->slots[i]->pending);
            free(t->slots[i]);
            rt_gone(RT_LIVE_CHANNEL);
        }
    free(t->slots);
    free(t->generations);
    free(t->free_list);
    rt_channels_init(t);
}

static int grow(rt_channel_table *t)
{
    uint32_t capacity = t->capacity ? t->capacity * 2 : 16;
    if (capacity > RT_MAX_CHANNELS)
        return -1;
    /* Each array is replaced on its own: a failure half way leaves larger arrays and
     * the old capacity, which is sound. */
    rt_channel **slots = realloc(t->slots, capacity * sizeof *slots);
    if (slots == NULL)
        return -1;
    t->slots = slots;
    uint16_t *generations = realloc(t->generations, capacity * sizeof *generations);
    if (generations == NULL)
        return -1;
    t->generations = generations;
    uint32_t *free_list = realloc(t->free_list, capacity * sizeof *free_list);
    if (free_list == NULL)
        return -1;
    t->free_list = free_list;
    for (uint32_t i = capacity; i-- > t->capacity;) {
        t->slots[i] = NULL;
        t->generations[i] = 0;
        t->free_list[t->free_count++] = i;
    }
    t->capacity = capacity;
    return 0;
}

rt_channel *rt_channel_add(rt_channel_table *t)
{
    if (t->free_count == 0 && grow(t) != 0)
        return NULL;
    rt_channel *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    rt_born(RT_LIVE_CHANNEL);
    uint32_t index = t->free_list[--t->free_count];
    uint32_t generation = t->generations[index];
    t->slots[index] = c;
    t->live++;
    c->local_id = RT_CHANNEL_ID_BASE | (generation << RT_CHANNEL_INDEX_BITS) | index;
    c->fd = -1;
    c->state = RT_OPENING;
    return c;
}

void rt_channel_remove(rt_channel_table *t, rt_channel *c)
{
    uint32_t index = c->local_id & (RT_MAX_CHANNELS - 1);
    t->slots[index] = NULL;
    t->generations[index] =
        (uint16_t)((t->generations[index] + 1u) & ((1u << RT_CHANNEL_GENERATION_BITS) - 1));
    t->free_list[t->free_count++] = index;
    t->live--;
    rt_buffer_free(&c->pending);
    free(c);
    rt_gone(RT_LIVE_CHANNEL);
}

rt_channel *rt_channel_find(const rt_channel_table *t, uint32_t local_id)
{
    if (!(local_id & RT_CHANNEL_ID_BASE))
        return NULL;
    uint32_t index = local_id & (RT_MAX_CHANNELS - 1);
    if (index >= t->capacity || t->slots[index] == NULL)
        return NULL;
    return t->slots[index]->local_id == local_id ? t->slots[index] : NULL;
}

int rt_channel_charge(rt_channel *c, size_t n)
{
    int64_t grace = c->recv_window_size / RT_WINDOW_GRACE_DIVISOR;
    if (n > c->recv_max_packet || (int64_t)n > c->recv_window + grace)
        return -1;
    c->recv_window -= (int64_t)n;
    c->received += n;
    return 0;
}

int rt_channel_adjust(rt_channel *c, uint32_t n)
{
    if (n > UINT32_MAX - c->send_window)
        return -1;
    c->send_window += n;
    return 0;
}

uint32_t rt_channel_take_credit(rt_channel *c, uint32_t target)
{
    int64_t room = (int64_t)target - c->recv_window - (int64_t)rt_buffer_len(&c->pending);
    int64_t portion = target / RT_CREDIT_DIVISOR;
    if (portion > RT_CREDIT_MAX_BYTES)
        portion = RT_CREDIT_MAX_BYTES;
    if (room <= 0 || (room <= portion && c->recv_window >= target / 2))
        return 0;
    c->recv_window += room;
    return (uint32_t)room;
}

void rt_channel_size_window(rt_channel *c, uint32_t size)
{
    c->recv_window_size = size;
    /* Never below what the peer was promised already. */
    size_t memory = (size_t)size + size / RT_WINDOW_GRACE_DIVISOR;
    if (memory > c->pending.maximum)
        c->pending.maximum = memory;
}
