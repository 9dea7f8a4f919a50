#include "check.h"
#include "packets.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LARGEST_PAYLOAD (RT_MAX_PACKET_BYTES - 2 * RT_GCM_BLOCK_BYTES)

static const uint8_t key[32] = {1, 2, 3};
static const uint8_t iv[RT_GCM_IV_BYTES] = {4, 5, 6};

/* A sender and a receiver that share a key. */
typedef struct {
    rt_packets out, in;
} pair;

static void open_pair(pair *p)
{
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK(rt_packets_init(&p->out, fds[0]) == 0);
    CHECK(rt_packets_init(&p->in, fds[1]) == 0);
    rt_packets_set_seal_key(&p->out, rt_gcm_new(key, sizeof key, iv, 1));
    rt_packets_set_open_key(&p->in, rt_gcm_new(key, sizeof key, iv, 0));
}

static void close_pair(pair *p)
{
    close(p->out.fd);
    close(p->in.fd);
    rt_packets_free(&p->out);
    rt_packets_free(&p->in);
}

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 31 + (i >> 8));
}

static int queue_packet(rt_packets *p, size_t len)
{
    uint8_t *payload = rt_packets_begin(p, len);
    if (payload == NULL)
        return -1;
    for (size_t i = 0; i < len; i++)
        payload[i] = pattern(i + len);
    return rt_packets_finish(p, len);
}

static void check_payload(const uint8_t *payload, size_t len, size_t wanted_len)
{
    CHECK_EQ(len, wanted_len);
    for (size_t i = 0; i < len; i++)
        CHECK(payload[i] == pattern(i + len));
}

/* Send and receive until the next packet is whole. */
static void expect_packet(pair *p, size_t wanted_len)
{
    uint8_t *payload;
    size_t len;
    for (;;) {
        rt_next_result next = rt_packets_next(&p->in, &payload, &len);
        if (next == RT_NEXT_PACKET)
            break;
        CHECK_EQ(next, RT_NEXT_NONE);
        p->out.writable = 1;
        rt_packets_flush(&p->out);
        CHECK(rt_packets_receive(&p->in) == RT_RECEIVE_SOME);
    }
    check_payload(payload, len, wanted_len);
}

/* Seal `body` bytes of which `padding` are said to be padding, and send them as they
 * are: what a broken or hostile peer may do. */
static void send_sealed(pair *p, size_t body, uint8_t padding)
{
    uint8_t packet[4 + 64 + RT_GCM_TAG_BYTES] = {0};
    rt_put32(packet, (uint32_t)body);
    packet[4] = padding;
    CHECK(rt_gcm_seal(p->out.seal_key, packet, body, packet + 4 + body) == 0);
    size_t whole = 4 + body + RT_GCM_TAG_BYTES;
    CHECK(send(p->out.fd, packet, whole, 0) == (ssize_t)whole);
}

static rt_next_result receive_and_open(pair *p, uint8_t **payload, size_t *len)
{
    CHECK(rt_packets_receive(&p->in) == RT_RECEIVE_SOME);
    return rt_packets_next(&p->in, payload, len);
}

static void payloads_of_every_size_come_through(void)
{
    pair p;
    open_pair(&p);
    for (size_t len = 1; len <= 300; len++) {
        CHECK(queue_packet(&p.out, len) == 0);
        expect_packet(&p, len);
    }
    for (size_t len = 32768 - 20; len < 32768 + 20; len++) {
        CHECK(queue_packet(&p.out, len) == 0);
        expect_packet(&p, len);
    }
    CHECK_EQ(p.in.sequence_in, 340);
    CHECK_EQ(p.out.sequence_out, 340);
    CHECK_EQ(p.out.bytes_out, p.in.bytes_in);
    CHECK_EQ(p.out.key_bytes_out, p.in.key_bytes_in);
    close_pair(&p);
}

static void a_packet_takes_what_was_foretold_on_the_wire(void)
{
    pair p;
    open_pair(&p);
    for (size_t len = 1; len < 100; len++) {
        size_t before = rt_packets_unsent(&p.out);
        CHECK(queue_packet(&p.out, len) == 0);
        size_t whole = rt_packets_unsent(&p.out) - before;
        CHECK_EQ(whole, rt_packet_wire_bytes(len));
        CHECK(whole % 16 == 4 && whole >= len + 4 + 1 + 4 + 16);
    }
    close_pair(&p);
}

static void many_packets_leave_with_one_send_and_arrive_in_order(void)
{
    pair p;
    open_pair(&p);
    for (size_t len = 1; len <= 1000; len++)
        CHECK(queue_packet(&p.out, len) == 0);
    for (size_t len = 1; len <= 1000; len++)
        expect_packet(&p, len);
    CHECK(rt_packets_unsent(&p.out) == 0);
    close_pair(&p);
}

static void the_largest_packet_comes_through_and_no_larger_one_is_built(void)
{
    pair p;
    open_pair(&p);
    for (int i = 0; i < 5; i++) {
        CHECK(queue_packet(&p.out, 100) == 0);
        CHECK(queue_packet(&p.out, LARGEST_PAYLOAD) == 0);
    }
    for (int i = 0; i < 5; i++) {
        expect_packet(&p, 100);
        expect_packet(&p, LARGEST_PAYLOAD);
    }
    CHECK(rt_packets_begin(&p.out, LARGEST_PAYLOAD + 1) == NULL);
    CHECK(rt_packets_begin(&p.out, SIZE_MAX) == NULL);
    close_pair(&p);
}

/* A packet that RFC 4253 allows but we do not build: all of 256 KiB. */
static void a_received_packet_may_have_256_kib(void)
{
    static uint8_t packet[4 + RT_MAX_PACKET_BYTES + RT_GCM_TAG_BYTES];
    pair p;
    open_pair(&p);
    rt_put32(packet, RT_MAX_PACKET_BYTES);
    packet[4] = 4;
    uint8_t *tag = packet + 4 + RT_MAX_PACKET_BYTES;
    CHECK(rt_gcm_seal(p.out.seal_key, packet, RT_MAX_PACKET_BYTES, tag) == 0);
    uint8_t *payload;
    size_t len, sent = 0;
    while (rt_packets_next(&p.in, &payload, &len) == RT_NEXT_NONE) {
        ssize_t n = send(p.out.fd, packet + sent, sizeof packet - sent, MSG_DONTWAIT);
        CHECK(n >= 0 || errno == EAGAIN);
        sent += n < 0 ? 0 : (size_t)n;
        CHECK(rt_packets_receive(&p.in) == RT_RECEIVE_SOME);
    }
    CHECK(sent == sizeof packet && len == RT_MAX_PACKET_BYTES - 1 - 4);
    close_pair(&p);
}

static void a_packet_may_arrive_byte_by_byte(void)
{
    pair p, sealed;
    open_pair(&p);
    open_pair(&sealed);
    uint8_t wire[512];
    size_t total = 0;
    for (size_t n = 1; n <= 3; n++)
        CHECK(queue_packet(&sealed.out, n * 40) == 0);
    rt_packets_flush(&sealed.out);
    ssize_t got = recv(sealed.in.fd, wire, sizeof wire, 0);
    CHECK(got > 0);
    size_t packets = 0;
    for (total = 0; total < (size_t)got; total++) {
        uint8_t *payload;
        size_t len;
        CHECK(send(p.out.fd, wire + total, 1, 0) == 1);
        if (receive_and_open(&p, &payload, &len) == RT_NEXT_PACKET)
            check_payload(payload, len, ++packets * 40);
    }
    CHECK(packets == 3);
    close_pair(&p);
    close_pair(&sealed);
}

static void a_bad_length_is_refused_from_its_four_bytes_alone(void)
{
    static const uint32_t lengths[] = {
        0, 1, 15, 17, 31, RT_MAX_PACKET_BYTES + 1, RT_MAX_PACKET_BYTES + 16,
        0x7fffffff, 0x80000000, 0xfffffff0, UINT32_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        pair p;
        uint8_t bytes[4], *payload;
        size_t len;
        open_pair(&p);
        rt_put32(bytes, lengths[i]);
        CHECK(send(p.out.fd, bytes, 4, 0) == 4);
        CHECK_EQ(receive_and_open(&p, &payload, &len), RT_NEXT_BAD_LENGTH);
        CHECK_EQ(rt_packets_next(&p.in, &payload, &len), RT_NEXT_BAD_LENGTH);
        close_pair(&p);
    }
}

static void padding_has_four_bytes_at_least_and_leaves_a_payload(void)
{
    for (unsigned padding = 0; padding < 256; padding++) {
        pair p;
        uint8_t *payload;
        size_t len;
        open_pair(&p);
        send_sealed(&p, 32, (uint8_t)padding);
        rt_next_result next = receive_and_open(&p, &payload, &len);
        if (padding < 4 || padding > 30)
            CHECK_EQ(next, RT_NEXT_BAD_PADDING);
        else
            CHECK(next == RT_NEXT_PACKET && len == 31 - padding);
        close_pair(&p);
    }
}

static void a_changed_byte_anywhere_is_a_bad_tag(void)
{
    for (size_t i = 4; i < rt_packet_wire_bytes(20); i += 7) {
        pair p;
        uint8_t *payload;
        size_t len;
        open_pair(&p);
        CHECK(queue_packet(&p.out, 20) == 0);
        rt_buffer_at(&p.out.unsent)[i] ^= 0x40;
        rt_packets_flush(&p.out);
        CHECK_EQ(receive_and_open(&p, &payload, &len), RT_NEXT_BAD_TAG);
        close_pair(&p);
    }
}

static void nothing_is_opened_before_there_is_a_key(void)
{
    pair p;
    uint8_t *payload;
    size_t len;
    open_pair(&p);
    rt_packets_set_open_key(&p.in, NULL);
    CHECK(queue_packet(&p.out, 20) == 0);
    rt_packets_flush(&p.out);
    CHECK_EQ(receive_and_open(&p, &payload, &len), RT_NEXT_NONE);
    rt_packets_set_open_key(&p.in, rt_gcm_new(key, sizeof key, iv, 0));
    expect_packet(&p, 20);
    close_pair(&p);
}

static void without_a_key_the_peer_cannot_overrun_the_receive_buffer(void)
{
    static const uint8_t flood[65536];
    pair p;
    open_pair(&p);
    rt_packets_set_open_key(&p.in, NULL);
    rt_receive_result received;
    do {
        CHECK(send(p.out.fd, flood, sizeof flood, MSG_DONTWAIT) > 0);
        received = rt_packets_receive(&p.in);
    } while (received == RT_RECEIVE_SOME);
    CHECK(received == RT_RECEIVE_ERROR && errno == ENOBUFS);
    close_pair(&p);
}

static void nothing_is_sealed_before_there_is_a_key(void)
{
    pair p;
    open_pair(&p);
    rt_packets_set_seal_key(&p.out, NULL);
    CHECK(queue_packet(&p.out, 20) == -1);
    CHECK(rt_packets_unsent(&p.out) == 0);
    close_pair(&p);
}

static void new_keys_count_from_nothing_and_sequence_numbers_go_on(void)
{
    static const uint8_t other_key[16] = {9};
    pair p;
    open_pair(&p);
    for (int i = 0; i < 3; i++) {
        CHECK(queue_packet(&p.out, 50) == 0);
        expect_packet(&p, 50);
    }
    rt_packets_set_seal_key(&p.out, rt_gcm_new(other_key, 16, iv, 1));
    rt_packets_set_open_key(&p.in, rt_gcm_new(other_key, 16, iv, 0));
    CHECK(queue_packet(&p.out, 50) == 0);
    expect_packet(&p, 50);
    CHECK(p.out.key_packets_out == 1 && p.in.key_packets_in == 1);
    CHECK_EQ(p.out.key_bytes_out, rt_packet_wire_bytes(50));
    CHECK(p.out.sequence_out == 4 && p.in.sequence_in == 4);
    close_pair(&p);
}

static void a_full_socket_keeps_the_rest_for_later(void)
{
    pair p;
    open_pair(&p);
    size_t queued = 0;
    while (p.out.writable) {
        CHECK(queue_packet(&p.out, 30000) == 0);
        queued++;
        rt_packets_flush(&p.out);
    }
    CHECK(rt_packets_unsent(&p.out) > 0 && p.out.send_error == 0);
    for (size_t i = 0; i < queued; i++)
        expect_packet(&p, 30000);
    CHECK(rt_packets_unsent(&p.out) == 0);
    close_pair(&p);
}

static void the_send_queue_has_a_maximum_and_gives_memory_back(void)
{
    pair p;
    open_pair(&p);
    size_t queued = 0;
    while (queue_packet(&p.out, 30000) == 0)
        queued++;
    CHECK_EQ(queued, RT_SEND_QUEUE_MAX_BYTES / rt_packet_wire_bytes(30000));
    CHECK(rt_packets_unsent(&p.out) <= RT_SEND_QUEUE_MAX_BYTES);
    for (size_t i = 0; i < queued; i++)
        expect_packet(&p, 30000);
    CHECK(p.out.unsent.capacity <= RT_SEND_QUEUE_KEEP_BYTES);
    close_pair(&p);
}

static void an_empty_socket_is_no_longer_readable(void)
{
    pair p;
    open_pair(&p);
    CHECK(rt_packets_receive(&p.in) == RT_RECEIVE_NOTHING);
    CHECK(!p.in.readable);
    close_pair(&p);
}

static void a_short_read_saves_the_next_one_unless_the_end_was_announced(void)
{
    pair p;
    open_pair(&p);
    CHECK(send(p.out.fd, "x", 1, 0) == 1);
    CHECK(rt_packets_receive(&p.in) == RT_RECEIVE_SOME && !p.in.readable);
    CHECK(send(p.out.fd, "x", 1, 0) == 1);
    CHECK(shutdown(p.out.fd, SHUT_WR) == 0);
    p.in.readable = p.in.hung_up = 1;
    CHECK(rt_packets_receive(&p.in) == RT_RECEIVE_SOME && p.in.readable);
    CHECK(rt_packets_receive(&p.in) == RT_RECEIVE_EOF);
    close_pair(&p);
}

static void a_dead_socket_ends_sending_and_drops_the_queue(void)
{
    pair p;
    open_pair(&p);
    CHECK(shutdown(p.in.fd, SHUT_RDWR) == 0);
    CHECK(queue_packet(&p.out, 20) == 0);
    rt_packets_flush(&p.out);
    CHECK_EQ(p.out.send_error, EPIPE);
    CHECK(rt_packets_unsent(&p.out) == 0);
    close_pair(&p);
}

static void a_failed_receive_says_why(void)
{
    pair p;
    open_pair(&p);
    int fd = p.in.fd;
    p.in.fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(rt_packets_receive(&p.in) == RT_RECEIVE_ERROR && errno == ENOTSOCK);
    close(p.in.fd);
    p.in.fd = fd;
    close_pair(&p);
}

int main(void)
{
    char why[256];
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    RUN(payloads_of_every_size_come_through);
    RUN(a_packet_takes_what_was_foretold_on_the_wire);
    RUN(many_packets_leave_with_one_send_and_arrive_in_order);
    RUN(the_largest_packet_comes_through_and_no_larger_one_is_built);
    RUN(a_received_packet_may_have_256_kib);
    RUN(a_packet_may_arrive_byte_by_byte);
    RUN(a_bad_length_is_refused_from_its_four_bytes_alone);
    RUN(padding_has_four_bytes_at_least_and_leaves_a_payload);
    RUN(a_changed_byte_anywhere_is_a_bad_tag);
    RUN(nothing_is_opened_before_there_is_a_key);
    RUN(without_a_key_the_peer_cannot_overrun_the_receive_buffer);
    RUN(nothing_is_sealed_before_there_is_a_key);
    RUN(new_keys_count_from_nothing_and_sequence_numbers_go_on);
    RUN(a_full_socket_keeps_the_rest_for_later);
    RUN(the_send_queue_has_a_maximum_and_gives_memory_back);
    RUN(an_empty_socket_is_no_longer_readable);
    RUN(a_short_read_saves_the_next_one_unless_the_end_was_announced);
    RUN(a_dead_socket_ends_sending_and_drops_the_queue);
    RUN(a_failed_receive_says_why);
    return 0;
}
