/* Rates of channels: how fast, in which order, and that nothing is lost by them. Time is
 * real here, and nothing is asked of it but that a rate is never passed. */
#include "check.h"
#include "engine_impl.h"
#include "peer.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define RATE 1000000u
#define SOME 100000u

static uint8_t pattern[SOME];

static uint32_t limited_channel(peer *p, int *app, uint64_t key, uint64_t rate)
{
    int fds[2];
    stream_pair(fds);
    *app = fds[1];
    const rt_peer_side side = {PEER_CHANNEL_ID, PEER_WINDOW_BYTES, PEER_PACKET_BYTES};
    const rt_rate_of of = {key, rate};
    uint32_t id = 0;
    CHECK(rt_engine_accept_limited(p->engine, fds[0], &side, PEER_WINDOW_BYTES,
                                   PEER_PACKET_BYTES, RT_PRIORITY_AUTO, &of, &id) == 0);
    peer_expect(p, SAY_OPEN_CONFIRMATION);
    return id;
}

static void say_some(peer *p, uint32_t id)
{
    for (size_t at = 0; at < SOME; at += PEER_PACKET_BYTES)
        peer_say_data(p, id, pattern + at,
                      SOME - at < PEER_PACKET_BYTES ? SOME - at : PEER_PACKET_BYTES);
}

/* `n` bytes of a rate took this long at least. */
static void check_not_faster(uint64_t since_us, uint64_t n, uint64_t rate)
{
    CHECK((rt_now_us() - since_us + 1) * rate >= n * 1000000);
}

static void a_local_socket_gets_bytes_at_the_rate(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint64_t since_us = rt_now_us();
    uint32_t id = limited_channel(&p, &app, 1, RATE);
    say_some(&p, id);
    peer_expect_at(&p, app, pattern, SOME);
    check_not_faster(since_us, SOME, RATE);
    close(app);
    peer_close(&p);
}

static void the_peer_gets_bytes_at_the_rate(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint64_t since_us = rt_now_us();
    limited_channel(&p, &app, 1, RATE);
    CHECK(send(app, pattern, SOME, 0) == (ssize_t)SOME);
    for (uint64_t sent = 0; sent < SOME;) {
        rt_channel_stats stats;
        peer_turn(&p);
        CHECK(rt_engine_channel_stats(p.engine, RT_CHANNEL_ID_BASE, &stats) == 0);
        sent = stats.bytes_out;
        check_not_faster(since_us, sent, RATE);
    }
    peer_expect_data(&p, pattern, SOME);
    close(app);
    peer_close(&p);
}

static void channels_with_one_key_keep_the_rate_together(void)
{
    peer p;
    int first, second;
    peer_open(&p);
    uint64_t since_us = rt_now_us();
    uint32_t one = limited_channel(&p, &first, 5, RATE);
    uint32_t two = limited_channel(&p, &second, 5, RATE);
    say_some(&p, one);
    say_some(&p, two);
    peer_expect_at(&p, first, pattern, SOME);
    peer_expect_at(&p, second, pattern, SOME);
    check_not_faster(since_us, 2 * SOME, RATE);
    close(first);
    close(second);
    peer_close(&p);
}

static void a_channel_that_waits_keeps_nobody_else(void)
{
    peer p;
    int slow, free_one, other_key;
    peer_open(&p);
    uint32_t id = limited_channel(&p, &slow, 1, 1); /* a byte a second */
    uint32_t other = limited_channel(&p, &other_key, 2, RATE);
    uint32_t unlimited = peer_channel(&p, &free_one);
    say_some(&p, id);
    say_some(&p, other);
    say_some(&p, unlimited);
    peer_expect_at(&p, free_one, pattern, SOME);
    peer_expect_at(&p, other_key, pattern, SOME);
    close(slow);
    close(free_one);
    close(other_key);
    peer_close(&p);
}

static void what_waits_for_its_rate_is_not_credited(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = limited_channel(&p, &app, 1, 1);
    say_some(&p, id);
    peer_settle(&p);
    rt_channel_stats stats;
    CHECK(rt_engine_channel_stats(p.engine, id, &stats) == 0);
    CHECK(stats.buffered + stats.bytes_in == SOME);
    CHECK(stats.bytes_in < 1000);
    CHECK_EQ(peer_sum_credit(&p), 0);
    close(app);
    peer_close(&p);
}

static void the_end_of_the_stream_comes_behind_its_last_byte(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = limited_channel(&p, &app, 1, RATE);
    say_some(&p, id);
    PEER_SAY(&p, SAY_EOF, id);
    peer_expect_at(&p, app, pattern, SOME);
    while (has_ended(app) == 0)
        peer_turn(&p);
    CHECK_EQ(has_ended(app), 1);
    close(app);
    peer_close(&p);
}

static void a_channel_that_is_reset_leaves_the_line(void)
{
    peer p;
    int first, second;
    peer_open(&p);
    uint32_t one = limited_channel(&p, &first, 1, RATE);
    uint32_t two = limited_channel(&p, &second, 1, RATE);
    say_some(&p, one);
    say_some(&p, two);
    peer_turn(&p);
    CHECK(rt_engine_reset(p.engine, one) == 0);
    peer_expect_at(&p, second, pattern, SOME);
    PEER_SAY(&p, SAY_CLOSE, one);
    PEER_SAY(&p, SAY_CLOSE, two);
    while (p.ended_count < 2)
        peer_turn(&p);
    rt_engine_stats stats;
    rt_engine_stats_now(p.engine, &stats);
    CHECK_EQ(stats.channels, 0);
    CHECK(p.engine->limits == NULL);
    close(first);
    close(second);
    peer_close(&p);
}

static void what_came_is_delivered_when_the_connection_is_lost(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = limited_channel(&p, &app, 1, 1);
    say_some(&p, id);
    PEER_SAY(&p, SAY_EOF, id);
    peer_settle(&p);
    rt_engine_end_channels(p.engine);
    uint8_t got[SOME];
    CHECK(recv(app, got, SOME, MSG_WAITALL) == (ssize_t)SOME);
    CHECK(memcmp(got, pattern, SOME) == 0);
    close(app);
    peer_close(&p);
}

static void a_rate_that_cannot_be_kept_is_refused(void)
{
    peer p;
    int fds[2];
    peer_open(&p);
    stream_pair(fds);
    const rt_peer_side side = {PEER_CHANNEL_ID, 1000, 1000};
    const uint64_t rates[] = {0, RT_RATE_MAX + (uint64_t)1};
    for (int i = 0; i < 2; i++) {
        const rt_rate_of of = {1, rates[i]};
        uint32_t id = 0;
        CHECK(rt_engine_accept_limited(p.engine, fds[0], &side, 1000, 1000,
                                       RT_PRIORITY_AUTO, &of, &id) == RT_EINVAL);
    }
    CHECK(p.engine->limits == NULL);
    close(fds[0]);
    close(fds[1]);
    peer_close(&p);
}

int main(void)
{
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (uint8_t)(i * 7 + i / 251);
    RUN(a_local_socket_gets_bytes_at_the_rate);
    RUN(the_peer_gets_bytes_at_the_rate);
    RUN(channels_with_one_key_keep_the_rate_together);
    RUN(a_channel_that_waits_keeps_nobody_else);
    RUN(what_waits_for_its_rate_is_not_credited);
    RUN(the_end_of_the_stream_comes_behind_its_last_byte);
    RUN(a_channel_that_is_reset_leaves_the_line);
    RUN(what_came_is_delivered_when_the_connection_is_lost);
    RUN(a_rate_that_cannot_be_kept_is_refused);
    return 0;
}
