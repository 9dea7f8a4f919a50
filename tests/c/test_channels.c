#include "channels.h"
#include "check.h"

#include <string.h>

/* ---- ids ---- */

static void ids_lie_above_those_of_paramiko(void)
{
    rt_channel_table t;
    rt_channels_init(&t);
    for (int i = 0; i < 100; i++)
        CHECK(rt_channel_add(&t)->local_id >= RT_CHANNEL_ID_BASE);
    rt_channels_free(&t);
}

static void a_new_channel_is_opening_and_has_no_socket(void)
{
    rt_channel_table t;
    rt_channels_init(&t);
    rt_channel *c = rt_channel_add(&t);
    CHECK(c->state == RT_OPENING && c->in == RT_IN_OPEN && c->out == RT_OUT_OPEN);
    CHECK(c->fd == -1);
    rt_channels_free(&t);
}

static void a_channel_is_found_by_its_id_and_by_no_other(void)
{
    rt_channel_table t;
    rt_channels_init(&t);
    CHECK(rt_channel_find(&t, RT_CHANNEL_ID_BASE) == NULL);
    rt_channel *c = rt_channel_add(&t);
    CHECK(rt_channel_find(&t, c->local_id) == c);
    for (int bit = 0; bit < 32; bit++)
        CHECK(rt_channel_find(&t, c->local_id ^ (1u << bit)) == NULL);
    rt_channels_free(&t);
}

static void the_id_of_a_channel_that_ended_does_not_reach_the_next(void)
{
    rt_channel_table t;
    rt_channels_init(&t);
    rt_channel *first = rt_channel_add(&t);
    uint32_t stale = first->local_id;
    rt_channel_remove(&t, first);
    CHECK(rt_channel_find(&t, stale) == NULL);
    rt_channel *second = rt_channel_add(&t);
    uint32_t index_bits = RT_MAX_CHANNELS - 1;
    CHECK((second->local_id & index_bits) == (stale & index_bits));
    CHECK(second->local_id != stale);
    CHECK(rt_channel_find(&t, stale) == NULL);
    rt_channels_free(&t);
}

static void ids_come_back_only_after_all_generations(void)
{
    rt_channel_table t;
    rt_channels_init(&t);
    uint32_t first_id = 0;
    for (unsigned i = 0; i <= 1u << RT_CHANNEL_GENERATION_BITS; i++) {
        rt_channel *c = rt_channel_add(&t);
        if (i == 0)
            first_id = c->local_id;
        CHECK((c->local_id == first_id) == (i % (1u << RT_CHANNEL_GENERATION_BITS) == 0));
        CHECK(c->local_id < RT_CHANNEL_ID_BASE << 1);
        rt_channel_remove(&t, c);
    }
    rt_channels_free(&t);
}

static void thousands_of_channels_come_and_go(void)
{
    enum { LIVE = 5000, TURNS = 50000 };
    static uint32_t ids[LIVE];
    rt_channel_table t;
    rt_channels_init(&t);
    for (size_t i = 0; i < LIVE; i++)
        ids[i] = rt_channel_add(&t)->local_id;
    uint32_t seed = 1;
    for (int i = 0; i < TURNS; i++) {
        seed = seed * 1664525 + 1013904223;
        uint32_t *id = &ids[(seed >> 8) % LIVE];
        rt_channel *c = rt_channel_find(&t, *id);
        CHECK(c != NULL && c->local_id == *id);
        uint32_t stale = *id;
        rt_channel_remove(&t, c);
        *id = rt_channel_add(&t)->local_id;
        CHECK(rt_channel_find(&t, stale) == NULL);
        CHECK(t.live == LIVE);
    }
    CHECK(t.capacity < 2 * LIVE);
    for (size_t i = 0; i < LIVE; i++)
        rt_channel_remove(&t, rt_channel_find(&t, ids[i]));
    CHECK(t.live == 0 && t.free_count == t.capacity);
    rt_channels_free(&t);
}

static void the_table_frees_what_its_channels_hold(void)
{
    rt_channel_table t; /* the leak sanitizer is the check */
    rt_channels_init(&t);
    rt_channel *c = rt_channel_add(&t);
    rt_buffer_init(&c->pending, 100);
    CHECK(rt_buffer_append(&c->pending, "left", 4) == 0);
    rt_channels_free(&t);
    CHECK(t.live == 0 && t.slots == NULL);
}

/* ---- states ---- */

/* From each state (row) to each (column): 'y' where the step is legal. */
static void every_step_of_a_channel_is_as_the_table_says(void)
{
    static const char *const legal[] = {"-y-", "--y", "---"};
    for (int from = 0; from < 3; from++)
        for (int to = 0; to < 3; to++) {
            rt_channel c = {.state = (rt_channel_state)from};
            int result = rt_channel_set_state(&c, (rt_channel_state)to);
            CHECK(result == (legal[from][to] == 'y' ? 0 : -1));
            CHECK_EQ(c.state, result == 0 ? to : from);
        }
}

static void every_step_of_the_inbound_direction_is_as_the_table_says(void)
{
    /* OPEN, DRAIN, DISCARD, SHUT */
    static const char *const legal[] = {"-yyy", "--yy", "---y", "----"};
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++) {
            rt_channel c = {.in = (rt_in_state)from};
            int result = rt_channel_set_in(&c, (rt_in_state)to);
            CHECK(result == (legal[from][to] == 'y' ? 0 : -1));
            CHECK_EQ(c.in, result == 0 ? to : from);
        }
}

static void every_step_of_the_outbound_direction_is_as_the_table_says(void)
{
    /* OPEN, EOF, DONE */
    static const char *const legal[] = {"-yy", "--y", "---"};
    for (int from = 0; from < 3; from++)
        for (int to = 0; to < 3; to++) {
            rt_channel c = {.out = (rt_out_state)from};
            int result = rt_channel_set_out(&c, (rt_out_state)to);
            CHECK(result == (legal[from][to] == 'y' ? 0 : -1));
            CHECK_EQ(c.out, result == 0 ? to : from);
        }
}

/* ---- windows ---- */

#define PACKET 32768u
#define WINDOW (64 * PACKET)

static rt_channel channel_with_window(void)
{
    rt_channel c = {.recv_window = WINDOW,
                    .recv_window_size = WINDOW,
                    .recv_max_packet = PACKET};
    return c;
}

static void a_window_can_be_used_up_with_ten_percent_of_grace(void)
{
    rt_channel c = channel_with_window();
    for (uint32_t left = WINDOW; left > 0; left -= PACKET)
        CHECK(rt_channel_charge(&c, PACKET) == 0);
    CHECK(c.recv_window == 0);
    uint32_t grace = WINDOW / RT_WINDOW_GRACE_DIVISOR;
    for (; grace >= PACKET; grace -= PACKET)
        CHECK(rt_channel_charge(&c, PACKET) == 0);
    CHECK(rt_channel_charge(&c, grace + 1) == -1);
    CHECK(rt_channel_charge(&c, grace) == 0);
    CHECK(rt_channel_charge(&c, 1) == -1);
    CHECK(rt_channel_charge(&c, 0) == 0);
}

static void more_than_the_maximum_packet_is_refused_and_not_charged(void)
{
    rt_channel c = channel_with_window();
    CHECK(rt_channel_charge(&c, PACKET + 1) == -1);
    CHECK(rt_channel_charge(&c, SIZE_MAX) == -1);
    CHECK(c.recv_window == WINDOW);
}

static void a_send_window_holds_at_most_32_bits(void)
{
    rt_channel c = {.send_window = 1};
    CHECK(rt_channel_adjust(&c, UINT32_MAX) == -1);
    CHECK(c.send_window == 1);
    CHECK(rt_channel_adjust(&c, UINT32_MAX - 1) == 0);
    CHECK(c.send_window == UINT32_MAX);
    CHECK(rt_channel_adjust(&c, 1) == -1);
    CHECK(rt_channel_adjust(&c, 0) == 0);
}

static void consume(rt_channel *c, uint32_t n)
{
    CHECK(rt_channel_charge(c, n) == 0);
}

static void credit_waits_for_more_than_a_quarter_of_the_window(void)
{
    rt_channel c = channel_with_window();
    for (int i = 0; i < 16; i++)
        consume(&c, PACKET);
    CHECK_EQ(rt_channel_take_credit(&c, WINDOW), 0);
    consume(&c, 1);
    CHECK_EQ(rt_channel_take_credit(&c, WINDOW), 16 * PACKET + 1);
    CHECK(c.recv_window == WINDOW);
    CHECK_EQ(rt_channel_take_credit(&c, WINDOW), 0);
}

static void a_large_window_is_credited_in_no_larger_portions(void)
{
    rt_channel c = channel_with_window();
    c.recv_window = c.recv_window_size = 4 * WINDOW;
    for (int i = 0; i < 16; i++)
        consume(&c, PACKET);
    CHECK_EQ(rt_channel_take_credit(&c, 4 * WINDOW), 0);
    consume(&c, 1);
    CHECK_EQ(rt_channel_take_credit(&c, 4 * WINDOW), 16 * PACKET + 1);
}

static void a_small_window_is_credited_by_its_quarters_too(void)
{
    rt_channel c = channel_with_window();
    c.recv_window = c.recv_window_size = 1000;
    consume(&c, 250);
    CHECK_EQ(rt_channel_take_credit(&c, 1000), 0);
    consume(&c, 1);
    CHECK_EQ(rt_channel_take_credit(&c, 1000), 251);
    CHECK(c.recv_window == 1000);
}

static void what_is_buffered_is_not_credited(void)
{
    rt_channel c = channel_with_window();
    static const uint8_t data[20 * PACKET];
    rt_buffer_init(&c.pending, sizeof data);
    for (int i = 0; i < 20; i++)
        consume(&c, PACKET);
    CHECK(rt_buffer_append(&c.pending, data, sizeof data) == 0);
    CHECK_EQ(rt_channel_take_credit(&c, WINDOW), 0);
    rt_buffer_consume(&c.pending, 17 * PACKET, 0);
    CHECK_EQ(rt_channel_take_credit(&c, WINDOW), 17 * PACKET);
    CHECK(c.recv_window == WINDOW - 3 * (int64_t)PACKET);
    rt_buffer_free(&c.pending);
}

static void a_smaller_target_gives_no_credit_until_the_peer_has_used_up_the_rest(void)
{
    rt_channel c = channel_with_window();
    uint32_t target = 4 * PACKET;
    while (c.recv_window >= target - target / RT_CREDIT_DIVISOR) {
        CHECK_EQ(rt_channel_take_credit(&c, target), 0);
        consume(&c, PACKET);
    }
    CHECK_EQ(rt_channel_take_credit(&c, target), 2 * PACKET);
    CHECK(c.recv_window == target);
}

static void a_window_that_grows_gives_the_difference_as_credit(void)
{
    rt_channel c = channel_with_window();
    rt_channel_size_window(&c, 4 * WINDOW);
    CHECK_EQ(rt_channel_take_credit(&c, 4 * WINDOW), 3 * WINDOW);
    CHECK(c.pending.maximum >= 4 * (size_t)WINDOW);
    rt_channel_size_window(&c, WINDOW);
    CHECK(c.pending.maximum >= 4 * (size_t)WINDOW); /* what was promised still fits */
}

int main(void)
{
    RUN(ids_lie_above_those_of_paramiko);
    RUN(a_new_channel_is_opening_and_has_no_socket);
    RUN(a_channel_is_found_by_its_id_and_by_no_other);
    RUN(the_id_of_a_channel_that_ended_does_not_reach_the_next);
    RUN(ids_come_back_only_after_all_generations);
    RUN(thousands_of_channels_come_and_go);
    RUN(the_table_frees_what_its_channels_hold);
    RUN(every_step_of_a_channel_is_as_the_table_says);
    RUN(every_step_of_the_inbound_direction_is_as_the_table_says);
    RUN(every_step_of_the_outbound_direction_is_as_the_table_says);
    RUN(a_window_can_be_used_up_with_ten_percent_of_grace);
    RUN(more_than_the_maximum_packet_is_refused_and_not_charged);
    RUN(a_send_window_holds_at_most_32_bits);
    RUN(credit_waits_for_more_than_a_quarter_of_the_window);
    RUN(a_large_window_is_credited_in_no_larger_portions);
    RUN(a_small_window_is_credited_by_its_quarters_too);
    RUN(what_is_buffered_is_not_credited);
    RUN(a_smaller_target_gives_no_credit_until_the_peer_has_used_up_the_rest);
    RUN(a_window_that_grows_gives_the_difference_as_credit);
    return 0;
}
