/* What a peer may not do ends the connection with a fault, and never harms. */
#include "check.h"
#include "peer.h"
#include "wire.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PROTOCOL_ERROR 2
#define MAC_ERROR 5

static uint8_t zeros[RT_MAX_PACKET_BYTES];

/* ---- windows ---- */

static void data_over_the_window_and_its_grace_is_a_fault(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    size_t grace = PEER_WINDOW_BYTES / 10;
    rt_engine_hold(p.engine); /* no credit leaves, and none is booked */
    for (size_t left = PEER_WINDOW_BYTES + grace; left > 0;) {
        size_t n = left < PEER_PACKET_BYTES ? left : PEER_PACKET_BYTES;
        peer_say_data(&p, id, zeros, n);
        left -= n;
    }
    peer_settle(&p);
    CHECK(p.told[RT_EV_FAULT] == 0);
    peer_say_data(&p, id, zeros, 1);
    peer_await_fault(&p, PROTOCOL_ERROR);
    close(app);
    peer_close(&p);
}

static void extended_data_over_the_window_is_a_fault(void)
{
    static uint8_t payload[13 + PEER_PACKET_BYTES];
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    rt_engine_hold(p.engine);
    payload[0] = SAY_EXTENDED_DATA;
    rt_put32(payload + 1, id);
    rt_put32(payload + 9, PEER_PACKET_BYTES);
    for (int i = 0; i < 71; i++)
        peer_say(&p, payload, sizeof payload);
    peer_await_fault(&p, PROTOCOL_ERROR);
    close(app);
    peer_close(&p);
}

static void more_than_the_maximum_packet_is_a_fault(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    peer_say_data(&p, id, zeros, PEER_PACKET_BYTES + 1);
    peer_await_fault(&p, PROTOCOL_ERROR);
    CHECK(is_silent(app));
    close(app);
    peer_close(&p);
}

static void a_window_over_32_bits_is_a_fault(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel_with(&p, &app, 2, PEER_PACKET_BYTES);
    PEER_SAY(&p, SAY_ADJUST, id, UINT32_MAX - 2);
    peer_settle(&p);
    CHECK(p.told[RT_EV_FAULT] == 0);
    PEER_SAY(&p, SAY_ADJUST, id, 1);
    peer_await_fault(&p, PROTOCOL_ERROR);
    close(app);
    peer_close(&p);
}

/* ---- order ---- */

static void data_after_eof_is_dropped(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    PEER_SAY(&p, SAY_EOF, id);
    peer_say_data(&p, id, "x", 1);
    peer_expect_silence(&p);
    CHECK(p.told[RT_EV_FAULT] == 0);
    close(app);
    peer_close(&p);
}

static void a_message_for_a_channel_that_is_not_confirmed_is_a_fault(void)
{
    peer p;
    uint32_t id;
    peer_open(&p);
    CHECK(rt_engine_reserve(p.engine, 1000, 1000, RT_PRIORITY_AUTO, &id) == 0);
    peer_say_data(&p, id, "x", 1);
    peer_await_fault(&p, PROTOCOL_ERROR);
    peer_close(&p);
}

static void data_before_a_fault_is_still_delivered(void)
{
    peer p;
    int app;
    uint8_t got[4];
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    peer_say_data(&p, id, "good", 4);
    PEER_SAY(&p, SAY_ADJUST, id, UINT32_MAX);
    peer_await_fault(&p, PROTOCOL_ERROR);
    CHECK(recv(app, got, 4, MSG_DONTWAIT) == 4 && memcmp(got, "good", 4) == 0);
    close(app);
    peer_close(&p);
}

static void a_fault_is_told_again_and_the_connection_does_not_go_on(void)
{
    peer p;
    int app;
    peer_open(&p);
    uint32_t id = peer_channel(&p, &app);
    PEER_SAY(&p, SAY_ADJUST, id, UINT32_MAX);
    peer_await_fault(&p, PROTOCOL_ERROR);
    peer_say_data(&p, id, "x", 1);
    for (int i = 0; i < 3; i++)
        peer_await_fault(&p, PROTOCOL_ERROR);
    CHECK(is_silent(app));
    close(app);
    peer_close(&p);
}

/* ---- packets ---- */

static void a_changed_packet_is_a_mac_error(void)
{
    peer p;
    peer_open(&p);
    PEER_SAY(&p, SAY_OTHER, 1, 2, 3);
    rt_buffer_at(&p.wire.unsent)[10] ^= 1;
    peer_await_fault(&p, MAC_ERROR);
    peer_close(&p);
}

static void a_bad_packet_length_is_a_protocol_error(void)
{
    peer p;
    peer_open(&p);
    CHECK(send(p.wire.fd, "GET / HTTP/1.1\r\n", 16, 0) == 16);
    peer_await_fault(&p, PROTOCOL_ERROR);
    peer_close(&p);
}

static void bad_padding_is_a_protocol_error(void)
{
    peer p;
    uint8_t packet[4 + 16 + RT_GCM_TAG_BYTES] = {0, 0, 0, 16, 3, SAY_OTHER};
    peer_open(&p);
    CHECK(rt_gcm_seal(p.wire.seal_key, packet, 16, packet + 20) == 0);
    CHECK(send(p.wire.fd, packet, sizeof packet, 0) == sizeof packet);
    peer_await_fault(&p, PROTOCOL_ERROR);
    peer_close(&p);
}

/* ---- malformed messages ---- */

typedef struct {
    uint8_t type;
    const char *body; /* behind the recipient channel */
    size_t len;
} shape;

static const shape shapes[] = {
    {SAY_ADJUST, "\0\0\0\1", 4},
    {SAY_DATA, "\0\0\0\3abc", 7},
    {SAY_EXTENDED_DATA, "\0\0\0\1\0\0\0\3abc", 11},
    {SAY_EOF, "", 0},
    {SAY_CLOSE, "", 0},
    {SAY_REQUEST, "\0\0\0\2hi\1", 7},
    {SAY_SUCCESS, "", 0},
    {SAY_FAILURE, "", 0},
};

static size_t build(uint8_t *payload, const shape *s, uint32_t id)
{
    payload[0] = s->type;
    rt_put32(payload + 1, id);
    memcpy(payload + 5, s->body, s->len);
    return 5 + s->len;
}

static void a_message_that_is_cut_short_anywhere_is_a_fault(void)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        uint8_t payload[64];
        for (size_t cut = 1; cut < 5 + shapes[i].len; cut++) {
            peer p;
            int app;
            peer_open(&p);
            build(payload, &shapes[i], peer_channel(&p, &app));
            peer_say(&p, payload, cut);
            peer_await_fault(&p, PROTOCOL_ERROR);
            close(app);
            peer_close(&p);
        }
    }
}

static void a_length_field_that_says_more_than_there_is_is_a_fault(void)
{
    static const struct {
        size_t shape, at;
    } fields[] = {{1, 5}, {2, 9}, {5, 5}};
    static const uint32_t lies[] = {9, 1000, 0x7fffffff, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < 3; i++)
        for (size_t j = 0; j < 5; j++) {
            uint8_t payload[64];
            peer p;
            int app;
            peer_open(&p);
            uint32_t id = peer_channel(&p, &app);
            size_t len = build(payload, &shapes[fields[i].shape], id);
            rt_put32(payload + fields[i].at, lies[j]);
            peer_say(&p, payload, len);
            peer_await_fault(&p, PROTOCOL_ERROR);
            close(app);
            peer_close(&p);
        }
}

/* Messages of a channel with bytes changed at random: whatever they do, the sanitizers
 * see nothing and the engine ends in a fault or goes on. */
static void messages_of_noise_do_no_harm(void)
{
    uint32_t seed = 1;
    for (int round = 0; round < 300; round++) {
        peer p;
        int app;
        peer_open(&p);
        uint32_t id = peer_channel(&p, &app);
        for (int i = 0; i < 50 && p.told[RT_EV_FAULT] == 0; i++) {
            uint8_t payload[64];
            seed = seed * 1664525 + 1013904223;
            size_t len = build(payload, &shapes[(seed >> 16) % 8], id);
            if (seed >> 31)
                payload[5 + (seed >> 8) % 8] = (uint8_t)(seed >> 20);
            peer_say(&p, payload, len);
            if (i % 10 == 9)
                peer_turn(&p);
        }
        peer_settle(&p);
        close(app);
        peer_close(&p);
    }
}

int main(void)
{
    RUN(data_over_the_window_and_its_grace_is_a_fault);
    RUN(extended_data_over_the_window_is_a_fault);
    RUN(more_than_the_maximum_packet_is_a_fault);
    RUN(a_window_over_32_bits_is_a_fault);
    RUN(data_after_eof_is_dropped);
    RUN(a_message_for_a_channel_that_is_not_confirmed_is_a_fault);
    RUN(data_before_a_fault_is_still_delivered);
    RUN(a_fault_is_told_again_and_the_connection_does_not_go_on);
    RUN(a_changed_packet_is_a_mac_error);
    RUN(a_bad_packet_length_is_a_protocol_error);
    RUN(bad_padding_is_a_protocol_error);
    RUN(a_message_that_is_cut_short_anywhere_is_a_fault);
    RUN(a_length_field_that_says_more_than_there_is_is_a_fault);
    RUN(messages_of_noise_do_no_harm);
    return 0;
}
