#include "peer.h"

#include "check.h"
#include "faults.h"
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* An engine that is at its deadline takes one step a turn: look, receive, open and
 * write, run and send. */
#define QUIET_TURNS 4

/* ---- sockets ---- */

void stream_pair(int fds[2])
{
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
}

static void set_option(int fd, int level, int option, int value)
{
    CHECK(setsockopt(fd, level, option, &value, sizeof value) == 0);
}

/* With `small` buffers, else the system's. Small segments go with them: a window of less
 * than one is opened by a timer only. */
static void make_tcp_pair(int fds[2], int small)
{
    const int buffer_bytes = 16384, segment_bytes = 1024, on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (small) {
        set_option(listener, SOL_SOCKET, SO_RCVBUF, buffer_bytes);
        set_option(listener, IPPROTO_TCP, TCP_MAXSEG, segment_bytes);
        set_option(fds[0], SOL_SOCKET, SO_SNDBUF, buffer_bytes);
        set_option(fds[0], IPPROTO_TCP, TCP_MAXSEG, segment_bytes);
        set_option(fds[0], IPPROTO_TCP, TCP_NODELAY, on);
    }
    CHECK(bind(listener, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK(listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&at, &size) == 0);
    CHECK(connect(fds[0], (struct sockaddr *)&at, sizeof at) == 0);
    fds[1] = accept(listener, NULL, NULL);
    CHECK(fds[1] >= 0);
    if (small)
        set_option(fds[1], IPPROTO_TCP, TCP_NODELAY, on);
    close(listener);
}

void tcp_pair(int fds[2])
{
    make_tcp_pair(fds, 0);
}

void small_tcp_pair(int fds[2])
{
    make_tcp_pair(fds, 1);
}

void reset_on_close(int fd)
{
    struct linger hard = {.l_onoff = 1, .l_linger = 0};
    CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard) == 0);
}

int is_silent(int fd)
{
    uint8_t byte;
    return recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN;
}

int has_ended(int fd)
{
    uint8_t rest[65536];
    ssize_t n;
    do
        n = recv(fd, rest, sizeof rest, MSG_DONTWAIT);
    while (n > 0);
    if (n == 0)
        return 1;
    return errno == EAGAIN ? 0 : -1;
}

/* ---- both ends ---- */

void set_test_key(rt_engine *e, rt_packets *wire, uint8_t out, uint8_t in)
{
    const uint8_t iv[RT_GCM_IV_BYTES] = {0};
    uint8_t key[32];
    if (out) { /* from the engine to the peer */
        memset(key, out, sizeof key);
        CHECK(rt_engine_set_seal_key(e, key, sizeof key, iv) == 0);
        rt_packets_set_open_key(wire, rt_gcm_new(key, sizeof key, iv, 0));
    }
    if (in) {
        memset(key, in, sizeof key);
        CHECK(rt_engine_set_open_key(e, key, sizeof key, iv) == 0);
        rt_packets_set_seal_key(wire, rt_gcm_new(key, sizeof key, iv, 1));
    }
}

void peer_open(peer *p)
{
    char why[256];
    int fds[2];
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    memset(p, 0, sizeof *p);
    stream_pair(fds);
    p->engine_fd = fds[0];
    p->engine = rt_engine_new(fds[0]);
    CHECK(p->engine != NULL);
    CHECK(rt_packets_init(&p->wire, fds[1]) == 0);
    set_test_key(p->engine, &p->wire, 1, 2);
}

void peer_close(peer *p)
{
    if (p->engine != NULL)
        rt_engine_free(p->engine);
    close(p->engine_fd);
    close(p->wire.fd);
    rt_packets_free(&p->wire);
    for (size_t i = 0; i < p->heard_end; i++)
        free(p->heard[i].payload);
    free(p->heard);
    free(p->packet);
}

static void hear(peer *p, const uint8_t *payload, size_t len)
{
    if (payload[0] == SAY_REQUEST) { /* a probe, which leaves when time has passed */
        p->probes++;
        return;
    }
    if (p->heard_end == p->heard_capacity) {
        p->heard_capacity = p->heard_capacity ? p->heard_capacity * 2 : 64;
        p->heard = realloc(p->heard, p->heard_capacity * sizeof *p->heard);
        CHECK(p->heard != NULL);
    }
    uint8_t *copy = malloc(len);
    CHECK(copy != NULL);
    memcpy(copy, payload, len);
    p->heard[p->heard_end++] = (peer_message){copy, len};
}

/* Receive all there is. Returns whether there was anything. */
static int listen_to_engine(peer *p)
{
    int moved = 0;
    uint8_t *payload;
    size_t len;
    while (rt_packets_receive(&p->wire) == RT_RECEIVE_SOME) {
        moved = 1;
        rt_next_result next;
        while ((next = rt_packets_next(&p->wire, &payload, &len)) == RT_NEXT_PACKET)
            hear(p, payload, len);
        CHECK_EQ(next, RT_NEXT_NONE); /* the engine seals nothing that we cannot open */
    }
    return moved;
}

void peer_take_ended(peer *p)
{
    while (rt_engine_take_ended(p->engine, &p->ended, 1) == 1) {
        if (p->ended_count < PEER_ENDINGS)
            p->endings[p->ended_count] = p->ended;
        p->ended_count++;
    }
}

int peer_turn(peer *p)
{
    size_t unsent = rt_packets_unsent(&p->wire);
    p->wire.writable = 1;
    rt_packets_flush(&p->wire);
    int moved = rt_packets_unsent(&p->wire) < unsent;
    rt_event event;
    rt_engine_stats before, after;
    rt_engine_stats_now(p->engine, &before);
    faults_begin();
    rt_engine_next(p->engine, p->hasty ? 0 : 1, &event);
    faults_end();
    rt_engine_stats_now(p->engine, &after);
    moved |= after.bytes_in != before.bytes_in;
    if (event.kind != RT_EV_TIMEOUT) {
        moved = 1;
        p->event = event;
        p->told[event.kind]++;
    }
    if (event.kind == RT_EV_PACKET) {
        free(p->packet);
        p->packet = malloc(event.len);
        CHECK(p->packet != NULL);
        memcpy(p->packet, event.payload, event.len);
    }
    if (event.kind == RT_EV_ENDED)
        peer_take_ended(p);
    if (!p->deaf && listen_to_engine(p))
        moved = 1;
    return moved;
}

static int is_over(const peer *p)
{
    return p->told[RT_EV_EOF] + p->told[RT_EV_ERROR] + p->told[RT_EV_FAULT] > 0;
}

void peer_settle(peer *p)
{
    for (int quiet = 0; quiet < QUIET_TURNS && !is_over(p);)
        quiet = peer_turn(p) ? 0 : quiet + 1;
}

void peer_await(peer *p, rt_event_kind kind)
{
    unsigned before = p->told[kind];
    while (p->told[kind] == before) {
        peer_turn(p);
        if (is_over(p))
            CHECK_EQ(p->event.kind, kind);
    }
}

void peer_await_fault(peer *p, int code)
{
    peer_await(p, RT_EV_FAULT);
    CHECK_EQ(p->event.code, code);
    CHECK(p->event.why != NULL && p->event.why[0] != '\0');
}

void peer_await_end(peer *p)
{
    unsigned before = p->ended_count;
    while (p->ended_count == before) {
        peer_turn(p);
        CHECK(!is_over(p));
    }
}

/* ---- what the peer says ---- */

void peer_say(peer *p, const void *payload, size_t len)
{
    uint8_t *room = rt_packets_begin(&p->wire, len);
    CHECK(room != NULL);
    memcpy(room, payload, len);
    CHECK(rt_packets_finish(&p->wire, len) == 0);
}

void peer_say_words(peer *p, uint8_t type, const uint32_t *words, size_t count)
{
    uint8_t payload[64] = {type};
    CHECK(count <= 15);
    for (size_t i = 0; i < count; i++)
        rt_put32(payload + 1 + 4 * i, words[i]);
    peer_say(p, payload, 1 + 4 * count);
}

void peer_say_data(peer *p, uint32_t id, const void *data, size_t len)
{
    uint8_t *room = rt_packets_begin(&p->wire, 9 + len);
    CHECK(room != NULL);
    room[0] = SAY_DATA;
    rt_put32(room + 1, id);
    rt_put32(room + 5, (uint32_t)len);
    memcpy(room + 9, data, len);
    CHECK(rt_packets_finish(&p->wire, 9 + len) == 0);
}

/* ---- what the peer hears ---- */

uint32_t word(const peer_message *m, size_t at)
{
    CHECK(m->len >= 1 + 4 * at + 4);
    return rt_get32(m->payload + 1 + 4 * at);
}

const peer_message *peer_expect(peer *p, uint8_t type)
{
    while (p->heard_first == p->heard_end)
        peer_turn(p);
    const peer_message *m = &p->heard[p->heard_first++];
    CHECK_EQ(m->payload[0], type);
    return m;
}

void peer_expect_silence(peer *p)
{
    peer_settle(p);
    if (p->heard_first < p->heard_end)
        CHECK_EQ(p->heard[p->heard_first].payload[0], 0);
}

void peer_expect_data(peer *p, const void *data, size_t len)
{
    for (size_t have = 0; have < len;) {
        const peer_message *m = peer_expect(p, SAY_DATA);
        uint32_t n = word(m, 1);
        CHECK(m->len == 9 + (size_t)n && n > 0 && n <= len - have);
        CHECK(memcmp(m->payload + 9, (const uint8_t *)data + have, n) == 0);
        have += n;
    }
}

uint32_t peer_sum_credit(peer *p)
{
    uint32_t sum = 0;
    peer_settle(p);
    while (p->heard_first < p->heard_end)
        sum += word(peer_expect(p, SAY_ADJUST), 1);
    return sum;
}

void peer_expect_at(peer *p, int fd, const void *data, size_t len)
{
    for (size_t have = 0; have < len;) {
        uint8_t some[16384];
        size_t most = len - have < sizeof some ? len - have : sizeof some;
        peer_turn(p);
        ssize_t n = recv(fd, some, most, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            continue;
        CHECK(n > 0);
        CHECK(memcmp(some, (const uint8_t *)data + have, (size_t)n) == 0);
        have += (size_t)n;
    }
}

/* ---- channels ---- */

static uint32_t accept_channel(peer *p, int fd, uint32_t window, uint32_t max_packet)
{
    rt_peer_side side = {PEER_CHANNEL_ID, window, max_packet};
    uint32_t id = 0;
    CHECK(rt_engine_accept(p->engine, fd, &side, PEER_WINDOW_BYTES, PEER_PACKET_BYTES,
                           RT_PRIORITY_AUTO, &id) == 0);
    const peer_message *m = peer_expect(p, SAY_OPEN_CONFIRMATION);
    CHECK(m->len == 17);
    CHECK(word(m, 0) == PEER_CHANNEL_ID && word(m, 1) == id);
    CHECK(word(m, 2) == PEER_WINDOW_BYTES && word(m, 3) == PEER_PACKET_BYTES);
    return id;
}

uint32_t peer_channel_with(peer *p, int *app, uint32_t window, uint32_t max_packet)
{
    int fds[2];
    stream_pair(fds);
    *app = fds[1];
    return accept_channel(p, fds[0], window, max_packet);
}

uint32_t peer_channel(peer *p, int *app)
{
    return peer_channel_with(p, app, PEER_WINDOW_BYTES, PEER_PACKET_BYTES);
}

uint32_t peer_tcp_channel(peer *p, int *app)
{
    int fds[2];
    small_tcp_pair(fds);
    *app = fds[1];
    return accept_channel(p, fds[0], PEER_WINDOW_BYTES, PEER_PACKET_BYTES);
}
