/* The channel table, its three tables of steps, and the arithmetic of windows
 * (channels.h), against a model that only adds up.
 *
 * Input: a sequence of calls, as the engine makes them and in any order. A byte that was
 * taken from the window is buffered, consumed or credited; never two of these, never
 * none, and what the peer was promised always fits into memory.
 */
#include "channels.h"
#include "check.h"
#include "input.h"

#include <string.h>

#define MOST_LIVE 40
#define MOST_STEPS 4000
#define MOST_WINDOW (1u << 20)

typedef struct {
    rt_channel *c;
    uint32_t id;
    int64_t promised; /* first window, and all credit */
    int64_t received;
    uint64_t send_window;
    uint64_t put, taken; /* bytes of the stream in the buffer */
} model;

typedef struct {
    rt_channel_table table;
    model live[MOST_LIVE];
    unsigned count;
    uint32_t gone[MOST_LIVE]; /* ids that were */
} world;

static void check_world(const world *w)
{
    CHECK_EQ(w->table.live, w->count);
    CHECK_EQ(w->table.free_count + w->table.live, w->table.capacity);
    for (unsigned i = 0; i < w->count; i++) {
        const model *m = &w->live[i];
        CHECK(rt_channel_find(&w->table, m->id) == m->c);
        CHECK_EQ(m->c->recv_window, m->promised - m->received);
        CHECK_EQ(m->c->received, m->received);
        CHECK_EQ(m->c->send_window, m->send_window);
        CHECK_EQ(rt_buffer_len(&m->c->pending), m->put - m->taken);
        CHECK(rt_buffer_len(&m->c->pending) <= m->c->pending.maximum);
    }
}

static void add(world *w, rt_input *in)
{
    if (w->count == MOST_LIVE)
        return;
    rt_channel *c = rt_channel_add(&w->table);
    CHECK(c != NULL && c->state == RT_OPENING && c->fd == -1);
    CHECK(c->local_id >= RT_CHANNEL_ID_BASE && c->local_id < 2 * RT_CHANNEL_ID_BASE);
    for (unsigned i = 0; i < w->count; i++)
        CHECK(w->live[i].id != c->local_id);
    uint32_t window = take_number(in) % MOST_WINDOW;
    c->recv_window = window;
    c->recv_max_packet = take_number(in);
    rt_buffer_init(&c->pending, 0);
    rt_channel_size_window(c, window);
    w->live[w->count++] = (model){.c = c, .id = c->local_id, .promised = window};
}

static void drop(world *w, unsigned i)
{
    rt_channel_remove(&w->table, w->live[i].c);
    w->gone[w->live[i].id % MOST_LIVE] = w->live[i].id;
    CHECK(rt_channel_find(&w->table, w->live[i].id) == NULL);
    w->live[i] = w->live[--w->count];
}

/* Any id finds the channel that has it, and no other. */
static void find(const world *w, uint32_t id)
{
    rt_channel *found = rt_channel_find(&w->table, id), *wanted = NULL;
    for (unsigned i = 0; i < w->count; i++)
        if (w->live[i].id == id)
            wanted = w->live[i].c;
    CHECK(found == wanted);
}

static void step_states(model *m, uint8_t what)
{
    rt_channel *c = m->c, before = *c;
    unsigned to = what / 3u % 4;
    int legal, done;
    switch (what % 3) {
    case 0: /* one step at a time */
        to %= 3;
        legal = to == before.state + 1;
        done = rt_channel_set_state(c, (rt_channel_state)to);
        CHECK_EQ(c->state, legal ? to : before.state);
        break;
    case 1: /* forwards, and from OPEN or DRAIN to any later one */
        legal = to > before.in;
        done = rt_channel_set_in(c, (rt_in_state)to);
        CHECK_EQ(c->in, legal ? to : before.in);
        break;
    default:
        to %= 3;
        legal = to > before.out;
        done = rt_channel_set_out(c, (rt_out_state)to);
        CHECK_EQ(c->out, legal ? to : before.out);
    }
    CHECK_EQ(done, legal ? 0 : -1);
}

/* The peer sends: what it may send is taken and fits, what it may not changes nothing. */
static void charge(model *m, size_t n)
{
    rt_channel *c = m->c;
    int64_t grace = c->recv_window_size / RT_WINDOW_GRACE_DIVISOR;
    int legal = n <= c->recv_max_packet && (int64_t)n <= c->recv_window + grace;
    CHECK_EQ(rt_channel_charge(c, n), legal ? 0 : -1);
    if (!legal)
        return;
    m->received += (int64_t)n;
    uint8_t *bytes = malloc(n ? n : 1);
    CHECK(bytes != NULL);
    stream_fill(bytes, m->put, n);
    CHECK(rt_buffer_append(&c->pending, bytes, n) == 0);
    m->put += n;
    free(bytes);
}

/* The socket takes some, from the front and in order. */
static void consume(model *m, size_t most, size_t keep)
{
    rt_buffer *b = &m->c->pending;
    size_t n = rt_buffer_len(b) < most ? rt_buffer_len(b) : most;
    CHECK(n == 0 || stream_is(rt_buffer_at(b), m->taken, n));
    rt_buffer_consume(b, n, keep);
    m->taken += n;
    if (rt_buffer_len(b) == 0)
        CHECK(b->capacity <= keep);
}

static void credit(model *m, uint32_t target)
{
    rt_channel *c = m->c;
    int64_t buffered = (int64_t)rt_buffer_len(&c->pending);
    uint32_t n = rt_channel_take_credit(c, target);
    m->promised += n;
    CHECK_EQ(c->recv_window, m->promised - m->received);
    if (n > 0)
        CHECK_EQ(c->recv_window + buffered, target);
    else /* it never waits for credit with nothing left to send */
        CHECK(c->recv_window > 0 || buffered > 0 || target == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    rt_input in = {data, data + size};
    world w;
    memset(&w, 0, sizeof w);
    rt_channels_init(&w.table);
    for (int step = 0; left_of(&in) > 0 && step < MOST_STEPS; step++) {
        uint8_t what = take8(&in);
        unsigned which = w.count ? take8(&in) % w.count : 0;
        model *m = &w.live[which];
        rt_channel *c = m->c;
        if (w.count == 0)
            what = what & 1 ? 0 : 2;
        switch (what % 12) {
        case 0:
        case 1:
            add(&w, &in);
            break;
        case 2:
            find(&w, take_number(&in));
            find(&w, w.gone[take8(&in) % MOST_LIVE]);
            break;
        case 3:
            drop(&w, which);
            break;
        case 4:
            step_states(m, take8(&in));
            break;
        case 5:
        case 6:
            charge(m, take_number(&in) % (2 * MOST_WINDOW));
            break;
        case 7:
            consume(m, take16(&in), 0);
            break;
        case 8:
            consume(m, SIZE_MAX, take16(&in));
            break;
        case 9:
            credit(m, take8(&in) & 1 ? c->recv_window_size
                                     : take_number(&in) % (c->recv_window_size + 1));
            break;
        case 10:
            rt_channel_size_window(c, take_number(&in) % MOST_WINDOW);
            break;
        default: {
            uint32_t n = take_number(&in);
            int legal = n <= UINT32_MAX - m->send_window;
            CHECK_EQ(rt_channel_adjust(c, n), legal ? 0 : -1);
            m->send_window += legal ? n : 0;
            if (take8(&in) & 1)
                c->send_window = 0, m->send_window = 0; /* we send it all */
        }
        }
        check_world(&w);
    }
    rt_channels_free(&w.table);
    return 0;
}
