/* The traps of edge-triggered epoll: whatever is left undone has to be taken up again
 * without a new edge. A wake-up that is lost shows as a test that does not end. */
#include "check.h"
#include "peer.h"
#include "wire.h"

#include <sys/socket.h>
#include <unistd.h>

static uint8_t bytes[4 * 1024 * 1024];

static size_t unsent(peer *p)
{
    rt_engine_stats stats;
    rt_engine_stats_now(p->engine, &stats);
    return stats.unsent;
}

static void send_all(int fd, const void *data, size_t len)
{
    CHECK(send(fd, data, len, MSG_DONTWAIT) == (ssize_t)len);
}

/* Have the peer receive nothing, and the engine's queue just so little below its limit
 * that no message more has room. */
static void fill_send_queue(peer *p)
{
    const size_t least = rt_packet_wire_bytes(1);
    p->deaf = 1;
    bytes[0] = SAY_OTHER;
    while (unsent(p) == 0)
        CHECK(rt_engine_send(p->engine, bytes, 30000) == 0);
    while (unsent(p) + least < RT_SEND_QUEUE_BYTES) {
        size_t left = RT_SEND_QUEUE_BYTES - 1 - unsent(p);
        size_t body = left < 30000 ? (left - 20) / 16 * 16 : 16000;
        CHECK(rt_engine_send(p->engine, bytes, body - 5) == 0);
    }
    CHECK(unsent(p) < RT_SEND_QUEUE_BYTES);
}

/* The peer receives again: skip what filled the queue, up to the data of the channel,
 * and read that to its end. */
static void expect_data_behind_the_rest(peer *p, const void *data, size_t len)
{
    p->deaf = 0;
    for (;;) {
        while (p->heard_first == p->heard_end)
            peer_turn(p);
        if (p->heard[p->heard_first].payload[0] == SAY_DATA)
            break;
        p->heard_first++;
    }
    peer_expect_data(p, data, len);
}

static void data_waits_for_room_in_the_send_queue(void)
{
    peer p;
    int app;
    peer_open(&p);
    peer_channel(&p, &app);
    fill_send_queue(&p);
    send_all(app, "waits", 5);
    peer_settle(&p);
    expect_data_behind_the_rest(&p, "waits", 5);
    close(app);
    peer_close(&p);
}

static void a_reply_that_fills_the_send_queue_does_not_strand_the_data_behind_it(void)
{
    peer p;
    int app;
    uint8_t request[12] = {SAY_REQUEST};
    peer_open(&p);
    uint32_t id = peer_channel_with(&p, &app, 1, PEER_PACKET_BYTES);
    send_all(app, "xwaits", 6);
    peer_expect_data(&p, "x", 1);
    peer_settle(&p); /* its readiness is known, its window used up */
    fill_send_queue(&p);
    rt_put32(request + 1, id);
    rt_put32(request + 5, 2);
    request[11] = 1;
    peer_say(&p, request, sizeof request);
    PEER_SAY(&p, SAY_ADJUST, id, 100);
    peer_settle(&p);
    CHECK(unsent(&p) >= RT_SEND_QUEUE_BYTES);
    expect_data_behind_the_rest(&p, "waits", 5);
    close(app);
    peer_close(&p);
}

static void a_peer_that_does_not_receive_stops_the_reading_of_sockets(void)
{
    peer p;
    int app;
    size_t written = 0;
    peer_open(&p);
    peer_channel_with(&p, &app, UINT32_MAX, PEER_PACKET_BYTES);
    p.deaf = 1;
    ssize_t n;
    while ((n = send(app, bytes + written, 65536, MSG_DONTWAIT)) > 0 ||
           unsent(&p) < RT_SEND_QUEUE_BYTES / 2) {
        written += n < 0 ? 0 : (size_t)n;
        peer_turn(&p);
        CHECK(unsent(&p) < 2 * RT_SEND_QUEUE_BYTES);
        CHECK(written < sizeof bytes - 65536);
    }
    expect_data_behind_the_rest(&p, bytes, written);
    close(app);
    peer_close(&p);
}

static void an_end_that_was_there_before_the_channel_is_seen(void)
{
    for (int tcp = 0; tcp < 2; tcp++) {
        peer p;
        int fds[2];
        uint32_t id;
        rt_peer_side side = {1, 1000, 1000};
        peer_open(&p);
        (tcp ? tcp_pair : stream_pair)(fds);
        send_all(fds[1], "all there is", 12);
        CHECK(shutdown(fds[1], SHUT_WR) == 0);
        CHECK(rt_engine_accept(p.engine, fds[0], &side, 1000, 1000, RT_PRIORITY_AUTO, &id) == 0);
        peer_expect(&p, SAY_OPEN_CONFIRMATION);
        peer_expect_data(&p, "all there is", 12);
        peer_expect(&p, SAY_EOF);
        close(fds[1]);
        peer_close(&p);
    }
}

static void an_end_that_waits_behind_a_window_is_seen_once_it_opens(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel_with(&p, &app, 4, PEER_PACKET_BYTES);
    send_all(app, "1234567", 7);
    CHECK(shutdown(app, SHUT_WR) == 0);
    peer_expect_data(&p, "1234", 4);
    peer_expect_silence(&p);
    PEER_SAY(&p, SAY_ADJUST, id, 3);
    peer_expect_data(&p, "567", 3);
    PEER_SAY(&p, SAY_ADJUST, id, 1);
    peer_expect(&p, SAY_EOF);
    close(app);
    peer_close(&p);
}

/* A read stops short at urgent data (tcp(7)), though there is more behind it. */
static void data_behind_urgent_data_is_read(void)
{
    peer p;
    int app;
    peer_open(&p);
    peer_tcp_channel(&p, &app);
    send_all(app, "before", 6);
    CHECK(send(app, "!", 1, MSG_OOB) == 1);
    send_all(app, "behind", 6);
    peer_expect_data(&p, "beforebehind", 12);
    close(app);
    peer_close(&p);
}

static void a_socket_that_was_full_is_written_again_and_again(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 32; i++)
            peer_say_data(&p, id, bytes + i * 32768, 32768);
        peer_settle(&p);
        peer_expect_at(&p, app, bytes, 32 * 32768);
        CHECK(peer_sum_credit(&p) > 0);
    }
    close(app);
    peer_close(&p);
}

static void a_socket_that_was_full_takes_the_end_too(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_tcp_channel(&p, &app);
    for (int i = 0; i < 60; i++)
        peer_say_data(&p, id, bytes + i * 32768, 32768);
    PEER_SAY(&p, SAY_EOF, id);
    peer_settle(&p);
    peer_expect_at(&p, app, bytes, 60 * 32768);
    while (has_ended(app) == 0)
        peer_turn(&p);
    CHECK(has_ended(app) == 1);
    close(app);
    peer_close(&p);
}

static void messages_are_kept_for_a_peer_that_does_not_receive(void)
{
    peer p;
    peer_open(&p);
    fill_send_queue(&p);
    CHECK(rt_engine_drain(p.engine, 0) == RT_ECLOSED);
    p.deaf = 0;
    peer_settle(&p);
    CHECK(rt_engine_drain(p.engine, 0) == 0);
    CHECK(rt_engine_wait_room(p.engine) == 0);
    peer_close(&p);
}

static void what_could_not_be_sent_has_not_been_drained(void)
{
    peer p;
    peer_open(&p);
    peer_settle(&p);
    fill_send_queue(&p);
    CHECK(shutdown(p.wire.fd, SHUT_RDWR) == 0);
    peer_await(&p, RT_EV_EOF);
    CHECK(unsent(&p) == 0); /* dropped, and nobody may take that for sent */
    CHECK(rt_engine_drain(p.engine, 1000) == RT_ECLOSED);
    CHECK(rt_engine_send(p.engine, bytes, 1) == RT_ECLOSED);
    peer_close(&p);
}

static void a_flood_of_control_messages_that_nobody_reads_is_cut(void)
{
    peer p;
    peer_open(&p);
    p.deaf = 1;
    int result;
    while ((result = rt_engine_send(p.engine, bytes, 200000)) == 0)
        CHECK(unsent(&p) <= RT_SEND_QUEUE_MAX_BYTES);
    CHECK_EQ(result, RT_EFULL);
    peer_close(&p);
}

int main(void)
{
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 31 + (i >> 8));
    RUN(an_end_that_was_there_before_the_channel_is_seen);
    RUN(an_end_that_waits_behind_a_window_is_seen_once_it_opens);
    RUN(a_socket_that_was_full_is_written_again_and_again);
    RUN(a_socket_that_was_full_takes_the_end_too);
    RUN(data_waits_for_room_in_the_send_queue);
    RUN(messages_are_kept_for_a_peer_that_does_not_receive);
    RUN(a_flood_of_control_messages_that_nobody_reads_is_cut);
    RUN(a_peer_that_does_not_receive_stops_the_reading_of_sockets);
    RUN(a_reply_that_fills_the_send_queue_does_not_strand_the_data_behind_it);
    RUN(data_behind_urgent_data_is_read);
    RUN(what_could_not_be_sent_has_not_been_drained);
    return 0;
}
