/* What the messages of one channel do, and what a peer may not do. */
#include "channels.h"
#include "check.h"
#include "peer.h"
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PROTOCOL_ERROR 2

static uint8_t pattern[PEER_WINDOW_BYTES];

/* All that was consumed, but for less than the next portion. */
static void check_credited(uint32_t credit, uint32_t consumed)
{
    CHECK(credit <= consumed && consumed - credit <= RT_CREDIT_MAX_BYTES);
}

static void fill_pattern(void)
{
    uint32_t seed = 1;
    for (size_t i = 0; i < sizeof pattern; i++) {
        seed = seed * 1664525 + 1013904223;
        pattern[i] = (uint8_t)(seed >> 24);
    }
}

/* The channel ended, the owner was told once, and both sides have forgotten it. */
static void check_forgotten(peer *p, uint32_t id, int error)
{
    rt_engine_stats stats;
    peer_expect_silence(p);
    CHECK(p->ended_count == 1 && p->ended.local_id == id);
    CHECK_EQ(p->ended.error, error);
    CHECK(p->ended.was_reset == (error != 0));
    rt_engine_stats_now(p->engine, &stats);
    CHECK_EQ(stats.channels, 0);
}

static void say_a_window_of_data(peer *p, uint32_t id)
{
    for (size_t at = 0; at < sizeof pattern; at += PEER_PACKET_BYTES)
        peer_say_data(p, id, pattern + at, PEER_PACKET_BYTES);
}

/* ---- data ---- */

static void data_of_the_peer_reaches_the_socket(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    peer_say_data(&p, id, "hel", 3);
    peer_say_data(&p, id, "", 0);
    peer_say_data(&p, id, "lo", 2);
    peer_settle(&p);
    peer_expect_at(&p, app, "hello", 5);
    CHECK(is_silent(app));
    close(app);
    peer_close(&p);
}

static void data_of_the_socket_reaches_the_peer(void)
{
    peer p;
    int app;
    peer_open(&p);
    peer_channel(&p, &app);
    CHECK(send(app, "hello", 5, 0) == 5);
    const peer_message *m = peer_expect(&p, SAY_DATA);
    CHECK(word(m, 0) == PEER_CHANNEL_ID && word(m, 1) == 5 && m->len == 14);
    CHECK(memcmp(m->payload + 9, "hello", 5) == 0);
    close(app);
    peer_close(&p);
}

static void a_slow_target_gets_every_byte_and_credit_follows_it(void)
{
    peer p;
    int app;
    rt_channel_stats stats;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    say_a_window_of_data(&p, id);
    uint32_t credit = peer_sum_credit(&p);
    CHECK(rt_engine_channel_stats(p.engine, id, &stats) == 0);
    CHECK(stats.buffered > 0 && stats.bytes_in + stats.buffered == sizeof pattern);
    CHECK(credit <= stats.bytes_in);
    peer_expect_at(&p, app, pattern, sizeof pattern);
    credit += peer_sum_credit(&p);
    CHECK(credit > sizeof pattern / 2 && credit <= sizeof pattern);
    CHECK(rt_engine_channel_stats(p.engine, id, &stats) == 0);
    CHECK(stats.buffered == 0 && stats.bytes_in == sizeof pattern);
    close(app);
    peer_close(&p);
}

static void a_small_window_is_not_promised_larger_beside_an_interactive_channel(void)
{
    peer p;
    int app, fds[2], full = 0;
    uint8_t byte;
    const uint32_t window = 4096;
    const rt_peer_side side = {PEER_CHANNEL_ID, PEER_WINDOW_BYTES, PEER_PACKET_BYTES};
    uint32_t typed, id;
    peer_open(&p);
    stream_pair(fds);
    app = fds[1];
    CHECK(rt_engine_accept(p.engine, fds[0], &side, PEER_WINDOW_BYTES, PEER_PACKET_BYTES,
                           RT_PRIORITY_INTERACTIVE, &typed) == 0);
    peer_expect(&p, SAY_OPEN_CONFIRMATION);
    peer_say_data(&p, typed, "key", 3);
    peer_expect_at(&p, app, "key", 3);
    close(app);

    /* A target that takes nothing yet, so that what comes has to wait. */
    stream_pair(fds);
    while (send(fds[0], pattern, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1)
        full++;
    CHECK(rt_engine_accept(p.engine, fds[0], &side, window, PEER_PACKET_BYTES,
                           RT_PRIORITY_BULK, &id) == 0);
    peer_settle(&p);
    const peer_message *said;
    do
        said = peer_expect(&p, SAY_OPEN_CONFIRMATION);
    while (word(said, 1) != id);
    uint32_t promised = word(said, 2);
    CHECK_EQ(promised, window);
    peer_say_data(&p, id, pattern, promised);
    peer_settle(&p);
    for (; full > 0; full--)
        CHECK(recv(fds[1], &byte, 1, 0) == 1);
    peer_expect_at(&p, fds[1], pattern, promised);
    close(fds[1]);
    peer_close(&p);
}

static void the_window_of_the_peer_is_kept_to_the_byte(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel_with(&p, &app, 10, PEER_PACKET_BYTES);
    CHECK(send(app, pattern, 1000, 0) == 1000);
    peer_expect_data(&p, pattern, 10);
    peer_expect_silence(&p);
    PEER_SAY(&p, SAY_ADJUST, id, 0);
    peer_expect_silence(&p);
    PEER_SAY(&p, SAY_ADJUST, id, 1);
    peer_expect_data(&p, pattern + 10, 1);
    peer_expect_silence(&p);
    PEER_SAY(&p, SAY_ADJUST, id, 5000);
    peer_expect_data(&p, pattern + 11, 989);
    peer_expect_silence(&p);
    close(app);
    peer_close(&p);
}

static void the_maximum_packet_of_the_peer_is_kept(void)
{
    static const uint32_t offers[] = {1, 7, 32768, 100000, UINT32_MAX};
    for (size_t i = 0; i < sizeof offers / sizeof offers[0]; i++) {
        peer p;
        int app;
        size_t total = offers[i] < 10 ? 500 : 150000;
        uint32_t largest = offers[i] < 32768 ? offers[i] : 32768;
        peer_open(&p);
        peer_channel_with(&p, &app, PEER_WINDOW_BYTES, offers[i]);
        CHECK(send(app, pattern, total, 0) == (ssize_t)total);
        for (size_t have = 0; have < total;) {
            const peer_message *m = peer_expect(&p, SAY_DATA);
            CHECK(word(m, 1) <= largest);
            CHECK(memcmp(m->payload + 9, pattern + have, word(m, 1)) == 0);
            have += word(m, 1);
        }
        close(app);
        peer_close(&p);
    }
}

/* ---- the end ---- */

static void eof_of_the_peer_first_leaves_the_other_way_open(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    peer_say_data(&p, id, "question", 8);
    PEER_SAY(&p, SAY_EOF, id);
    peer_expect_silence(&p);
    peer_expect_at(&p, app, "question", 8);
    CHECK(has_ended(app) == 1);
    CHECK(send(app, "answer", 6, 0) == 6);
    peer_expect_data(&p, "answer", 6);
    CHECK(shutdown(app, SHUT_WR) == 0);
    CHECK(word(peer_expect(&p, SAY_EOF), 0) == PEER_CHANNEL_ID);
    CHECK(word(peer_expect(&p, SAY_CLOSE), 0) == PEER_CHANNEL_ID);
    peer_expect_silence(&p);
    PEER_SAY(&p, SAY_CLOSE, id);
    check_forgotten(&p, id, 0);
    CHECK(p.ended.bytes_in == 8 && p.ended.bytes_out == 6);
    close(app);
    peer_close(&p);
}

static void eof_of_the_socket_first_leaves_the_other_way_open(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    CHECK(send(app, "question", 8, 0) == 8);
    CHECK(shutdown(app, SHUT_WR) == 0);
    peer_expect_data(&p, "question", 8);
    peer_expect(&p, SAY_EOF);
    peer_expect_silence(&p);
    peer_say_data(&p, id, "answer", 6);
    peer_expect_silence(&p);
    peer_expect_at(&p, app, "answer", 6);
    CHECK(is_silent(app));
    PEER_SAY(&p, SAY_EOF, id);
    peer_expect(&p, SAY_CLOSE);
    CHECK(has_ended(app) == 1);
    PEER_SAY(&p, SAY_CLOSE, id);
    check_forgotten(&p, id, 0);
    close(app);
    peer_close(&p);
}

static void the_end_of_the_socket_needs_no_window(void)
{
    peer p;
    int app;
    peer_open(&p);
    peer_channel_with(&p, &app, 5, PEER_PACKET_BYTES);
    CHECK(send(app, "hello", 5, 0) == 5);
    peer_expect_data(&p, "hello", 5);
    CHECK(shutdown(app, SHUT_WR) == 0);
    peer_expect(&p, SAY_EOF);
    peer_expect_silence(&p);
    close(app);
    peer_close(&p);
}

static void the_end_behind_the_last_byte_of_the_window_is_seen(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel_with(&p, &app, 4, PEER_PACKET_BYTES);
    CHECK(send(app, "hello", 5, 0) == 5);
    CHECK(shutdown(app, SHUT_WR) == 0);
    peer_expect_data(&p, "hell", 4);
    peer_expect_silence(&p);
    PEER_SAY(&p, SAY_ADJUST, id, 1);
    peer_expect_data(&p, "o", 1);
    peer_expect(&p, SAY_EOF);
    close(app);
    peer_close(&p);
}

static void an_eof_that_is_said_twice_is_one(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    PEER_SAY(&p, SAY_EOF, id);
    PEER_SAY(&p, SAY_EOF, id);
    peer_expect_silence(&p);
    CHECK(shutdown(app, SHUT_WR) == 0);
    peer_expect(&p, SAY_EOF);
    peer_expect(&p, SAY_CLOSE);
    PEER_SAY(&p, SAY_EOF, id);
    PEER_SAY(&p, SAY_CLOSE, id);
    PEER_SAY(&p, SAY_CLOSE, id);
    check_forgotten(&p, id, 0);
    close(app);
    peer_close(&p);
}

static void eof_behind_buffered_data_waits_for_the_target(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    say_a_window_of_data(&p, id);
    PEER_SAY(&p, SAY_EOF, id);
    peer_settle(&p);
    peer_expect_at(&p, app, pattern, sizeof pattern);
    CHECK(has_ended(app) == 1);
    CHECK(p.ended_count == 0);
    close(app);
    peer_close(&p);
}

static void buffered_data_is_delivered_before_the_close_of_the_peer(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    say_a_window_of_data(&p, id);
    PEER_SAY(&p, SAY_CLOSE, id);
    peer_settle(&p);
    CHECK(p.ended_count == 0);
    peer_expect_at(&p, app, pattern, sizeof pattern);
    peer_settle(&p);
    CHECK(has_ended(app) == 1);
    while (p.heard[p.heard_first].payload[0] == SAY_ADJUST)
        p.heard_first++;
    peer_expect(&p, SAY_CLOSE);
    check_forgotten(&p, id, 0);
    CHECK(p.ended.bytes_in == sizeof pattern);
    close(app);
    peer_close(&p);
}

static void a_close_of_the_peer_alone_ends_both_ways(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    PEER_SAY(&p, SAY_CLOSE, id);
    peer_expect(&p, SAY_CLOSE);
    CHECK(has_ended(app) == 1);
    check_forgotten(&p, id, 0);
    close(app);
    peer_close(&p);
}

static void a_reset_of_the_socket_is_answered_by_close_without_eof(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_tcp_channel(&p, &app);
    reset_on_close(app);
    close(app);
    peer_expect(&p, SAY_CLOSE);
    peer_expect_silence(&p);
    PEER_SAY(&p, SAY_CLOSE, id);
    check_forgotten(&p, id, ECONNRESET);
    peer_close(&p);
}

static void a_reset_after_the_eof_of_the_socket_is_noticed_too(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_tcp_channel(&p, &app);
    CHECK(shutdown(app, SHUT_WR) == 0);
    peer_expect(&p, SAY_EOF);
    reset_on_close(app);
    close(app);
    peer_expect(&p, SAY_CLOSE);
    PEER_SAY(&p, SAY_CLOSE, id);
    check_forgotten(&p, id, EPIPE); /* what Linux makes of it (tcp_reset) */
    peer_close(&p);
}

static void a_reset_with_data_buffered_for_the_socket_drops_it(void)
{
    peer p;
    int app;
    rt_channel_stats stats;
    peer_open(&p);
    uint32_t id = peer_tcp_channel(&p, &app);
    say_a_window_of_data(&p, id);
    peer_settle(&p);
    CHECK(rt_engine_channel_stats(p.engine, id, &stats) == 0 && stats.buffered > 0);
    reset_on_close(app);
    close(app);
    peer_await_end(&p);
    CHECK(p.ended.was_reset && p.ended.bytes_in < sizeof pattern);
    peer_close(&p);
}

static void data_that_the_socket_no_longer_takes_is_dropped_and_credited(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    CHECK(shutdown(app, SHUT_RD) == 0);
    say_a_window_of_data(&p, id);
    check_credited(peer_sum_credit(&p), sizeof pattern);
    CHECK(send(app, "still here", 10, 0) == 10);
    peer_expect_data(&p, "still here", 10);
    CHECK(shutdown(app, SHUT_WR) == 0);
    peer_expect(&p, SAY_EOF);
    peer_expect(&p, SAY_CLOSE);
    PEER_SAY(&p, SAY_CLOSE, id);
    check_forgotten(&p, id, 0);
    close(app);
    peer_close(&p);
}

static void what_was_buffered_when_the_socket_shut_is_credited_once(void)
{
    static uint8_t some[200000];
    peer p;
    int app;
    rt_channel_stats stats;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    say_a_window_of_data(&p, id);
    uint32_t credit = peer_sum_credit(&p);
    CHECK(rt_engine_channel_stats(p.engine, id, &stats) == 0);
    CHECK(stats.buffered > sizeof pattern / 2);
    CHECK(shutdown(app, SHUT_RD) == 0);
    while (rt_engine_channel_stats(p.engine, id, &stats) == 0 && stats.buffered > 0) {
        recv(app, some, sizeof some, MSG_DONTWAIT); /* makes room, so that it is tried */
        peer_turn(&p);
    }
    credit += peer_sum_credit(&p);
    check_credited(credit, sizeof pattern);
    close(app);
    peer_close(&p);
}

/* ---- other messages ---- */

static void extended_data_is_dropped_and_credited(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    uint8_t *payload = calloc(1, 13 + PEER_PACKET_BYTES);
    CHECK(payload != NULL);
    payload[0] = SAY_EXTENDED_DATA;
    rt_put32(payload + 1, id);
    rt_put32(payload + 5, 1);
    rt_put32(payload + 9, PEER_PACKET_BYTES);
    for (int i = 0; i < 64; i++)
        peer_say(&p, payload, 13 + PEER_PACKET_BYTES);
    check_credited(peer_sum_credit(&p), 64 * PEER_PACKET_BYTES);
    CHECK(is_silent(app));
    free(payload);
    close(app);
    peer_close(&p);
}

static void say_request(peer *p, uint32_t id, int want_reply)
{
    uint8_t payload[12] = {SAY_REQUEST};
    rt_put32(payload + 1, id);
    rt_put32(payload + 5, 2);
    memcpy(payload + 9, "hi", 2);
    payload[11] = (uint8_t)want_reply;
    peer_say(p, payload, sizeof payload);
}

static void a_request_is_answered_by_failure_if_an_answer_is_wanted(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    say_request(&p, id, 0);
    peer_expect_silence(&p);
    say_request(&p, id, 1);
    say_request(&p, id, 0);
    say_request(&p, id, 255);
    CHECK(word(peer_expect(&p, SAY_FAILURE), 0) == PEER_CHANNEL_ID);
    peer_expect(&p, SAY_FAILURE);
    peer_expect_silence(&p);
    close(app);
    peer_close(&p);
}

static void requests_go_to_an_owner_who_answers_them(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    CHECK(rt_engine_pass_requests(p.engine, id) == 0);
    say_request(&p, id, 1);
    peer_await(&p, RT_EV_PACKET);
    CHECK(p.packet[0] == SAY_REQUEST);
    peer_expect_silence(&p);
    CHECK(rt_engine_pass_requests(p.engine, id + 1) == RT_EGONE);
    close(app);
    peer_close(&p);
}

static void a_flood_of_requests_is_a_fault(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    rt_engine_hold(p.engine); /* nothing is answered meanwhile */
    for (int i = 0; i < 1024; i++)
        say_request(&p, id, 1);
    peer_expect_silence(&p);
    CHECK(p.told[RT_EV_FAULT] == 0);
    say_request(&p, id, 1);
    peer_await_fault(&p, PROTOCOL_ERROR);
    close(app);
    peer_close(&p);
}

static void answers_that_are_no_probes_are_the_owners(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    PEER_SAY(&p, SAY_SUCCESS, id);
    PEER_SAY(&p, SAY_FAILURE, id);
    peer_expect_silence(&p);
    CHECK(p.told[RT_EV_FAULT] == 0);
    CHECK_EQ(p.told[RT_EV_PACKET], 2);
    close(app);
    peer_close(&p);
}

static void messages_for_channels_that_are_not_are_dropped(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    PEER_SAY(&p, SAY_CLOSE, id);
    peer_expect(&p, SAY_CLOSE);
    check_forgotten(&p, id, 0);
    const uint32_t ids[] = {id, id + 1, id ^ (1u << 25), 0x7fffffff, UINT32_MAX};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        peer_say_data(&p, ids[i], "late", 4);
        PEER_SAY(&p, SAY_ADJUST, ids[i], UINT32_MAX);
        PEER_SAY(&p, SAY_EOF, ids[i]);
        say_request(&p, ids[i], 1);
        PEER_SAY(&p, SAY_CLOSE, ids[i]);
    }
    peer_expect_silence(&p);
    CHECK(p.told[RT_EV_FAULT] == 0 && p.told[RT_EV_PACKET] == 0);
    close(app);
    peer_close(&p);
}

static void messages_for_channels_of_the_owner_are_given_to_it(void)
{
    peer p;
    peer_open(&p);
    for (uint8_t type = SAY_ADJUST; type <= SAY_FAILURE; type++) {
        PEER_SAY(&p, type, 12, 0, 0);
        peer_await(&p, RT_EV_PACKET);
        CHECK(p.packet[0] == type && p.event.len == 13);
        CHECK_EQ(p.event.sequence, type - SAY_ADJUST);
    }
    peer_close(&p);
}

int main(void)
{
    fill_pattern();
    RUN(data_of_the_peer_reaches_the_socket);
    RUN(data_of_the_socket_reaches_the_peer);
    RUN(a_slow_target_gets_every_byte_and_credit_follows_it);
    RUN(a_small_window_is_not_promised_larger_beside_an_interactive_channel);
    RUN(the_window_of_the_peer_is_kept_to_the_byte);
    RUN(the_maximum_packet_of_the_peer_is_kept);
    RUN(eof_of_the_peer_first_leaves_the_other_way_open);
    RUN(eof_of_the_socket_first_leaves_the_other_way_open);
    RUN(the_end_of_the_socket_needs_no_window);
    RUN(the_end_behind_the_last_byte_of_the_window_is_seen);
    RUN(an_eof_that_is_said_twice_is_one);
    RUN(eof_behind_buffered_data_waits_for_the_target);
    RUN(buffered_data_is_delivered_before_the_close_of_the_peer);
    RUN(a_close_of_the_peer_alone_ends_both_ways);
    RUN(a_reset_of_the_socket_is_answered_by_close_without_eof);
    RUN(a_reset_after_the_eof_of_the_socket_is_noticed_too);
    RUN(a_reset_with_data_buffered_for_the_socket_drops_it);
    RUN(data_that_the_socket_no_longer_takes_is_dropped_and_credited);
    RUN(what_was_buffered_when_the_socket_shut_is_credited_once);
    RUN(extended_data_is_dropped_and_credited);
    RUN(a_request_is_answered_by_failure_if_an_answer_is_wanted);
    RUN(requests_go_to_an_owner_who_answers_them);
    RUN(a_flood_of_requests_is_a_fault);
    RUN(answers_that_are_no_probes_are_the_owners);
    RUN(messages_for_channels_that_are_not_are_dropped);
    RUN(messages_for_channels_of_the_owner_are_given_to_it);
    return 0;
}
