/* The engine as its owner sees it: events, keys, holds, limits, the life of channels. */
#include "check.h"
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MANY 2000

static uint8_t bytes[1024 * 1024];

static rt_engine_stats stats_of(peer *p)
{
    rt_engine_stats stats;
    rt_engine_stats_now(p->engine, &stats);
    return stats;
}

/* ---- events ---- */

static void messages_of_the_owner_go_both_ways(void)
{
    peer p;
    peer_open(&p);
    CHECK(rt_engine_send(p.engine, (const uint8_t *)"\xc0hello", 6) == 0);
    const peer_message *m = peer_expect(&p, SAY_OTHER);
    CHECK(m->len == 6 && memcmp(m->payload + 1, "hello", 5) == 0);
    rt_engine_set_sequence_in(p.engine, UINT32_MAX);
    for (uint32_t i = 0; i < 3; i++) {
        peer_say(&p, "\x50 again", 7);
        peer_await(&p, RT_EV_PACKET);
        CHECK(p.event.len == 7 && memcmp(p.packet, "\x50 again", 7) == 0);
        CHECK_EQ(p.event.sequence, UINT32_MAX + i);
    }
    peer_close(&p);
}

static void a_message_that_is_too_large_is_refused(void)
{
    peer p;
    peer_open(&p);
    CHECK(rt_engine_send(p.engine, bytes, RT_MAX_PACKET_BYTES) == RT_EINVAL);
    CHECK(rt_engine_send(p.engine, bytes, RT_MAX_PACKET_BYTES - 32) == 0);
    peer_expect(&p, 0);
    peer_close(&p);
}

static void nothing_happening_is_a_timeout(void)
{
    peer p;
    rt_event event;
    peer_open(&p);
    rt_engine_next(p.engine, 0, &event);
    CHECK_EQ(event.kind, RT_EV_TIMEOUT);
    rt_engine_next(p.engine, 5, &event);
    CHECK_EQ(event.kind, RT_EV_TIMEOUT);
    peer_close(&p);
}

static void what_has_arrived_is_found_without_waiting(void)
{
    peer p;
    rt_event event;
    peer_open(&p);
    peer_settle(&p);
    PEER_SAY(&p, SAY_OTHER, 1);
    rt_packets_flush(&p.wire);
    rt_engine_next(p.engine, 0, &event);
    if (event.kind == RT_EV_TIMEOUT) /* one look finds that there is something */
        rt_engine_next(p.engine, 0, &event);
    CHECK_EQ(event.kind, RT_EV_PACKET);
    peer_close(&p);
}

static void a_wake_is_told_once(void)
{
    peer p;
    peer_open(&p);
    rt_engine_wake(p.engine);
    rt_engine_wake(p.engine);
    peer_settle(&p);
    CHECK_EQ(p.told[RT_EV_WOKEN], 1);
    peer_close(&p);
}

static void the_end_of_the_stream_is_told_after_all_that_came_before(void)
{
    peer p;
    peer_open(&p);
    for (uint32_t i = 0; i < 10; i++)
        PEER_SAY(&p, SAY_OTHER, i);
    rt_packets_flush(&p.wire);
    CHECK(shutdown(p.wire.fd, SHUT_WR) == 0);
    peer_await(&p, RT_EV_PACKET);
    while (p.told[RT_EV_EOF] == 0)
        peer_turn(&p);
    CHECK_EQ(p.told[RT_EV_PACKET], 10);
    peer_await(&p, RT_EV_EOF);
    peer_close(&p);
}

static void a_reset_of_the_ssh_socket_is_an_error(void)
{
    char why[256];
    int fds[2];
    rt_event event;
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    tcp_pair(fds);
    rt_engine *e = rt_engine_new(fds[0]);
    reset_on_close(fds[1]);
    close(fds[1]);
    rt_engine_next(e, -1, &event);
    CHECK(event.kind == RT_EV_ERROR && event.error == ECONNRESET);
    rt_engine_free(e);
    close(fds[0]);
}

static void a_socket_that_takes_no_more_is_an_error_once_all_was_read(void)
{
    peer p;
    peer_open(&p);
    peer_settle(&p);
    for (uint32_t i = 0; i < 3; i++)
        PEER_SAY(&p, SAY_OTHER, i);
    rt_packets_flush(&p.wire);
    CHECK(shutdown(p.wire.fd, SHUT_RD) == 0);
    CHECK(rt_engine_send(p.engine, bytes, 1) == 0);
    CHECK(rt_engine_send(p.engine, bytes, 1) == RT_ECLOSED);
    while (p.told[RT_EV_ERROR] == 0)
        peer_turn(&p);
    CHECK(p.event.error == EPIPE && p.told[RT_EV_PACKET] == 3);
    peer_close(&p);
}

static void a_descriptor_that_cannot_be_watched_is_refused(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    errno = 0;
    CHECK(rt_engine_new(fd) == NULL && errno == EPERM);
    close(fd);
    CHECK(rt_engine_new(-1) == NULL && errno == EBADF);
}

static void a_closed_engine_takes_nothing(void)
{
    peer p;
    int fds[2];
    uint32_t id;
    rt_peer_side side = {1, 1000, 1000};
    peer_open(&p);
    stream_pair(fds);
    rt_engine_close(p.engine);
    CHECK(rt_engine_send(p.engine, bytes, 1) == RT_ECLOSED);
    CHECK(rt_engine_wait_room(p.engine) == RT_ECLOSED);
    CHECK(rt_engine_accept(p.engine, fds[0], &side, 1000, 1000, RT_PRIORITY_AUTO, &id) == RT_ECLOSED);
    CHECK(rt_engine_reserve(p.engine, 1000, 1000, RT_PRIORITY_AUTO, &id) == RT_ECLOSED);
    peer_await(&p, RT_EV_EOF);
    CHECK(is_silent(fds[1])); /* still ours */
    close(fds[0]);
    close(fds[1]);
    peer_close(&p);
}

/* ---- keys ---- */

static void keys_of_a_wrong_length_are_refused(void)
{
    peer p;
    peer_open(&p);
    CHECK(rt_engine_set_open_key(p.engine, bytes, 24, bytes) == RT_EINVAL);
    CHECK(rt_engine_set_seal_key(p.engine, bytes, 0, bytes) == RT_EINVAL);
    CHECK(rt_engine_send(p.engine, (const uint8_t *)"\xc0", 1) == 0);
    peer_expect(&p, SAY_OTHER);
    peer_close(&p);
}

static void a_hold_keeps_what_channels_say_and_lets_the_owner_speak(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    rt_engine_hold(p.engine);
    CHECK(send(app, "held", 4, 0) == 4);
    PEER_SAY(&p, SAY_ADJUST, id, 1);
    peer_expect_silence(&p);
    CHECK(rt_engine_send(p.engine, (const uint8_t *)"\xc0", 1) == 0);
    peer_expect(&p, SAY_OTHER);
    peer_expect_silence(&p);
    set_test_key(p.engine, &p.wire, 3, 0);
    peer_expect_data(&p, "held", 4);
    close(app);
    peer_close(&p);
}

static void a_confirmation_a_reset_and_credit_are_held_too(void)
{
    peer p;
    int app, fds[2];
    uint32_t id;
    rt_peer_side side = {8, 1000, 1000};
    peer_open(&p);
    uint32_t first = peer_channel(&p, &app);
    rt_engine_hold(p.engine);
    stream_pair(fds);
    CHECK(rt_engine_accept(p.engine, fds[0], &side, 1000, 1000, RT_PRIORITY_AUTO, &id) == 0);
    CHECK(send(fds[1], "x", 1, 0) == 1);
    CHECK(rt_engine_reset(p.engine, first) == 0);
    peer_await_end(&p);
    CHECK(has_ended(app) != 0);
    peer_expect_silence(&p);
    set_test_key(p.engine, &p.wire, 3, 0);
    CHECK(word(peer_expect(&p, SAY_OPEN_CONFIRMATION), 1) == id);
    CHECK(word(peer_expect(&p, SAY_DATA), 0) == 8);
    CHECK(word(peer_expect(&p, SAY_CLOSE), 0) == PEER_CHANNEL_ID);
    peer_expect_silence(&p);
    close(app);
    close(fds[1]);
    peer_close(&p);
}

static void data_flows_on_with_new_keys_in_both_directions(void)
{
    peer p;
    int app;
    uint8_t text = 'a';
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    for (uint8_t round = 0; round < 10; round++, text++) {
        peer_say_data(&p, id, &text, 1);
        CHECK(send(app, &text, 1, 0) == 1);
        peer_expect_data(&p, &text, 1);
        peer_expect_at(&p, app, &text, 1);
        rt_engine_hold(p.engine);
        set_test_key(p.engine, &p.wire, (uint8_t)(10 + round), 0);
        CHECK(send(app, &text, 1, 0) == 1);
        peer_expect_data(&p, &text, 1);
        set_test_key(p.engine, &p.wire, 0, (uint8_t)(50 + round));
    }
    close(app);
    peer_close(&p);
}

static void channel_messages_of_a_peer_that_exchanges_keys_go_to_the_owner(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    PEER_SAY(&p, SAY_KEXINIT, 0);
    peer_await(&p, RT_EV_PACKET);
    peer_say_data(&p, id, "early", 5);
    peer_await(&p, RT_EV_PACKET);
    CHECK(p.packet[0] == SAY_DATA && is_silent(app));
    set_test_key(p.engine, &p.wire, 0, 9);
    peer_say_data(&p, id, "now", 3);
    peer_settle(&p);
    CHECK(!is_silent(app));
    close(app);
    peer_close(&p);
}

static void a_rekey_limit_is_told_once_for_each_pair_of_keys(void)
{
    peer p;
    peer_open(&p);
    rt_engine_set_rekey_limits(p.engine, UINT64_MAX, 3);
    for (unsigned round = 1; round <= 3; round++) {
        for (int i = 0; i < 10; i++)
            CHECK(rt_engine_send(p.engine, (const uint8_t *)"\xc0", 1) == 0);
        peer_settle(&p);
        CHECK_EQ(p.told[RT_EV_REKEY], round);
        set_test_key(p.engine, &p.wire, (uint8_t)(2 * round + 1), 0);
        set_test_key(p.engine, &p.wire, 0, (uint8_t)(2 * round + 2));
    }
    rt_engine_set_rekey_limits(p.engine, 1000, UINT64_MAX);
    for (int i = 0; i < 40; i++)
        PEER_SAY(&p, SAY_OTHER, 0);
    peer_settle(&p);
    CHECK_EQ(p.told[RT_EV_REKEY], 4);
    peer_close(&p);
}

/* The old keys of one direction may pass the limit while the new ones are on their way:
 * no reason to exchange keys again. */
static void no_rekey_is_asked_for_during_one(void)
{
    peer p;
    peer_open(&p);
    rt_engine_set_rekey_limits(p.engine, UINT64_MAX, 5);
    rt_engine_hold(p.engine);
    PEER_SAY(&p, SAY_KEXINIT, 0);
    peer_await(&p, RT_EV_PACKET);
    set_test_key(p.engine, &p.wire, 3, 0);
    for (int i = 0; i < 10; i++)
        PEER_SAY(&p, SAY_OTHER, 0);
    peer_settle(&p);
    CHECK_EQ(p.told[RT_EV_REKEY], 0);
    set_test_key(p.engine, &p.wire, 0, 4);
    peer_settle(&p);
    CHECK_EQ(p.told[RT_EV_REKEY], 0);
    for (int i = 0; i < 10; i++)
        PEER_SAY(&p, SAY_OTHER, 0);
    peer_settle(&p);
    CHECK_EQ(p.told[RT_EV_REKEY], 1);
    peer_close(&p);
}

/* ---- channels ---- */

static void a_socket_that_cannot_be_accepted_stays_the_callers(void)
{
    peer p;
    int fds[2];
    uint32_t id;
    rt_peer_side no_packets = {1, 1000, 0}, side = {1, 1000, 1000};
    peer_open(&p);
    stream_pair(fds);
    CHECK(rt_engine_accept(p.engine, fds[0], &no_packets, 9, 9, RT_PRIORITY_AUTO, &id) == RT_EINVAL);
    CHECK(is_silent(fds[1]));
    close(fds[0]);
    CHECK(rt_engine_accept(p.engine, -1, &side, 9, 9, RT_PRIORITY_AUTO, &id) == RT_EINVAL);
    peer_expect_silence(&p);
    CHECK_EQ(stats_of(&p).channels, 0);
    close(fds[1]);
    peer_close(&p);
}

static void a_channel_that_we_open_moves_once_it_is_confirmed(void)
{
    peer p;
    int fds[2];
    uint32_t id;
    rt_peer_side side = {12, 1000, 1000};
    peer_open(&p);
    CHECK(rt_engine_reserve(p.engine, 1000, 1000, RT_PRIORITY_AUTO, &id) == 0);
    stream_pair(fds);
    CHECK(send(fds[1], "hi", 2, 0) == 2);
    peer_expect_silence(&p);
    CHECK(rt_engine_confirm(p.engine, id, fds[0], &side) == 0);
    peer_expect_data(&p, "hi", 2);
    CHECK(rt_engine_confirm(p.engine, id, fds[0], &side) == RT_EGONE);
    CHECK(rt_engine_cancel(p.engine, id) == RT_EGONE);
    close(fds[1]);
    peer_close(&p);
}

static void a_cancelled_id_is_gone(void)
{
    peer p;
    uint32_t id;
    rt_peer_side side = {12, 1000, 1000};
    rt_channel_stats stats;
    peer_open(&p);
    CHECK(rt_engine_reserve(p.engine, 1000, 1000, RT_PRIORITY_AUTO, &id) == 0);
    CHECK(rt_engine_reset(p.engine, id) == RT_EGONE);
    CHECK(rt_engine_cancel(p.engine, id) == 0);
    CHECK(rt_engine_cancel(p.engine, id) == RT_EGONE);
    CHECK(rt_engine_confirm(p.engine, id, p.wire.fd, &side) == RT_EGONE);
    CHECK(rt_engine_channel_stats(p.engine, id, &stats) == RT_EGONE);
    CHECK_EQ(stats_of(&p).channels, 0);
    peer_close(&p);
}

static void a_reset_by_the_owner_closes_at_once_and_drops_the_rest(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_tcp_channel(&p, &app);
    peer_say_data(&p, id, "unread", 6);
    peer_settle(&p);
    CHECK(rt_engine_reset(p.engine, id) == 0);
    CHECK(rt_engine_reset(p.engine, id) == RT_EGONE);
    peer_expect(&p, SAY_CLOSE);
    CHECK(has_ended(app) == -1);
    PEER_SAY(&p, SAY_CLOSE, id);
    peer_settle(&p);
    CHECK(p.ended_count == 1 && p.ended.was_reset && p.ended.error == 0);
    CHECK_EQ(stats_of(&p).channels, 0);
    close(app);
    peer_close(&p);
}

/* Both streams have ended and our CLOSE is out: only the peer's is missing. */
static uint32_t half_closed_channel(peer *p)
{
    int app;
    uint32_t id = peer_channel(p, &app);
    PEER_SAY(p, SAY_EOF, id);
    close(app);
    peer_expect(p, SAY_EOF);
    peer_expect(p, SAY_CLOSE);
    CHECK(p->ended_count == 0);
    return id;
}

static void a_reset_by_the_owner_does_not_wait_for_the_close_of_the_peer(void)
{
    peer p;
    peer_open(&p);
    uint32_t id = half_closed_channel(&p);
    CHECK(rt_engine_reset(p.engine, id) == 0);
    CHECK(rt_engine_reset(p.engine, id) == RT_EGONE);
    peer_await_end(&p);
    CHECK(p.ended.was_reset && p.ended.error == 0);
    CHECK_EQ(stats_of(&p).channels, 1); /* the peer may still name it */
    PEER_SAY(&p, SAY_CLOSE, id);
    peer_expect_silence(&p);
    CHECK(p.ended_count == 1);
    CHECK_EQ(stats_of(&p).channels, 0);
    peer_close(&p);
}

static void the_end_of_the_connection_before_the_close_of_the_peer_is_a_loss(void)
{
    peer p;
    rt_ended ended[2];
    peer_open(&p);
    half_closed_channel(&p);
    rt_engine_end_channels(p.engine);
    CHECK(rt_engine_take_ended(p.engine, ended, 2) == 1);
    CHECK(ended[0].was_reset);
    peer_close(&p);
}

static void an_id_is_kept_until_the_owner_and_the_peer_are_done_with_it(void)
{
    peer p;
    int app;
    rt_event event;
    rt_ended ended[2];
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    CHECK(rt_engine_reset(p.engine, id) == 0);
    peer_expect(&p, SAY_CLOSE);
    CHECK_EQ(stats_of(&p).channels, 1); /* the peer has not closed */
    close(app);

    id = peer_channel(&p, &app);
    PEER_SAY(&p, SAY_CLOSE, id);
    rt_packets_flush(&p.wire);
    do
        rt_engine_next(p.engine, -1, &event);
    while (event.kind != RT_EV_ENDED);
    CHECK_EQ(stats_of(&p).channels, 2); /* the owner has not been told */
    CHECK(rt_engine_take_ended(p.engine, ended, 2) == 1);
    CHECK(ended[0].local_id == id);
    CHECK(rt_engine_take_ended(p.engine, ended, 2) == 0);
    peer_settle(&p);
    CHECK_EQ(stats_of(&p).channels, 1);
    close(app);
    peer_close(&p);
}

static void the_end_of_the_connection_delivers_what_it_can_and_ends_all(void)
{
    peer p;
    int whole, cut;
    rt_ended ended[4];
    peer_open(&p);
    uint32_t first = peer_channel(&p, &whole), second = peer_channel(&p, &cut);
    PEER_SAY(&p, SAY_EOF, first);
    peer_say_data(&p, second, "part", 4);
    peer_settle(&p);
    rt_engine_end_channels(p.engine);
    CHECK(rt_engine_take_ended(p.engine, ended, 4) == 2);
    CHECK(ended[0].was_reset && ended[1].was_reset);
    CHECK(ended[0].bytes_in + ended[1].bytes_in == 4);
    CHECK(recv(cut, bytes, 10, MSG_DONTWAIT) == 4);
    CHECK(has_ended(whole) != 0 && has_ended(cut) != 0);
    close(whole);
    close(cut);
    peer_close(&p);
}

static void freeing_the_engine_resets_the_sockets_that_are_left(void)
{
    peer p;
    int app;
    peer_open(&p);
    peer_tcp_channel(&p, &app);
    rt_engine_free(p.engine);
    p.engine = NULL;
    CHECK(has_ended(app) == -1);
    close(app);
    peer_close(&p);
}

static void thousands_of_channels_each_carry_their_own_bytes(void)
{
    static int apps[MANY];
    static uint32_t ids[MANY];
    peer p;
    uint32_t text;
    peer_open(&p);
    for (size_t i = 0; i < MANY; i++)
        ids[i] = peer_channel(&p, &apps[i]);
    for (size_t i = 0; i < MANY; i++) {
        CHECK(send(apps[i], &ids[i], 4, 0) == 4);
        peer_say_data(&p, ids[i], &ids[i], 4);
    }
    uint64_t sum = 0, heard = 0;
    for (size_t i = 0; i < MANY; i++) {
        memcpy(&text, peer_expect(&p, SAY_DATA)->payload + 9, 4);
        heard += text;
        sum += ids[i];
    }
    CHECK(heard == sum);
    peer_settle(&p);
    for (size_t i = 0; i < MANY; i++) {
        CHECK(recv(apps[i], &text, 4, MSG_DONTWAIT) == 4 && text == ids[i]);
        close(apps[i]);
        PEER_SAY(&p, SAY_CLOSE, ids[i]);
    }
    peer_settle(&p);
    CHECK(p.ended_count == MANY && stats_of(&p).channels == 0);
    peer_close(&p);
}

int main(void)
{
    RUN(messages_of_the_owner_go_both_ways);
    RUN(a_message_that_is_too_large_is_refused);
    RUN(nothing_happening_is_a_timeout);
    RUN(what_has_arrived_is_found_without_waiting);
    RUN(a_wake_is_told_once);
    RUN(the_end_of_the_stream_is_told_after_all_that_came_before);
    RUN(a_reset_of_the_ssh_socket_is_an_error);
    RUN(a_socket_that_takes_no_more_is_an_error_once_all_was_read);
    RUN(a_descriptor_that_cannot_be_watched_is_refused);
    RUN(a_closed_engine_takes_nothing);
    RUN(keys_of_a_wrong_length_are_refused);
    RUN(a_hold_keeps_what_channels_say_and_lets_the_owner_speak);
    RUN(a_confirmation_a_reset_and_credit_are_held_too);
    RUN(data_flows_on_with_new_keys_in_both_directions);
    RUN(channel_messages_of_a_peer_that_exchanges_keys_go_to_the_owner);
    RUN(a_rekey_limit_is_told_once_for_each_pair_of_keys);
    RUN(no_rekey_is_asked_for_during_one);
    RUN(a_socket_that_cannot_be_accepted_stays_the_callers);
    RUN(a_channel_that_we_open_moves_once_it_is_confirmed);
    RUN(a_cancelled_id_is_gone);
    RUN(a_reset_by_the_owner_closes_at_once_and_drops_the_rest);
    RUN(a_reset_by_the_owner_does_not_wait_for_the_close_of_the_peer);
    RUN(the_end_of_the_connection_before_the_close_of_the_peer_is_a_loss);
    RUN(an_id_is_kept_until_the_owner_and_the_peer_are_done_with_it);
    RUN(the_end_of_the_connection_delivers_what_it_can_and_ends_all);
    RUN(freeing_the_engine_resets_the_sockets_that_are_left);
    RUN(thousands_of_channels_each_carry_their_own_bytes);
    return 0;
}
