/* Framing (packets.h): what a peer seals, in any pieces, against a model that looks at
 * the bytes alone.
 *
 * Input: a sequence of steps. The packets are sealed with the right key, so that what
 * the input says of lengths and padding gets past the authentication; a flipped bit must
 * not. The other way, what is built has to open again with the payload that went in.
 */
#include "check.h"
#include "input.h"
#include "packets.h"
#include "peer.h"
#include "wire.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_ON_THE_WIRE (2u * 1024 * 1024)
#define MOST_PACKETS 512
#define MOST_STEPS 300

typedef struct {
    size_t end;  /* on the wire */
    uint8_t bad; /* a bit was flipped: it may not open */
} sealed;

typedef struct {
    rt_packets packets;
    int peer_fd;
    rt_gcm *seal, *open; /* the peer's */
    uint8_t *wire;       /* all that the peer has sealed */
    size_t made, written, opened; /* bytes of it */
    sealed packet[MOST_PACKETS];
    size_t packets_made, packets_opened;
    uint64_t stream; /* bytes that we have built, ever */
    int over;        /* the peer broke the rules, and it was seen */
} world;

static const uint8_t no_iv[RT_GCM_IV_BYTES];

static void new_keys(world *w, uint8_t byte)
{
    uint8_t key[32];
    size_t len = byte & 1 ? 32 : 16;
    memset(key, byte, sizeof key);
    rt_gcm_free(w->seal);
    rt_gcm_free(w->open);
    w->seal = rt_gcm_new(key, len, no_iv, 1);
    w->open = rt_gcm_new(key, len, no_iv, 0);
    CHECK(w->seal != NULL && w->open != NULL);
    rt_packets_set_open_key(&w->packets, rt_gcm_new(key, len, no_iv, 0));
    rt_packets_set_seal_key(&w->packets, rt_gcm_new(key, len, no_iv, 1));
}

/* What has to come of the bytes that were written. */
static rt_next_result expected(const world *w, size_t *body)
{
    size_t have = w->written - w->opened;
    const uint8_t *packet = w->wire + w->opened;
    if (have < 4)
        return RT_NEXT_NONE;
    *body = rt_get32(packet);
    if (*body < 16 || *body > RT_MAX_PACKET_BYTES || *body % 16 != 0)
        return RT_NEXT_BAD_LENGTH;
    if (have < 4 + *body + 16)
        return RT_NEXT_NONE;
    CHECK(w->packets_opened < w->packets_made);
    const sealed *next = &w->packet[w->packets_opened];
    if (next->bad || next->end != w->opened + 4 + *body + 16)
        return RT_NEXT_BAD_TAG;
    return RT_NEXT_PACKET; /* or its padding is bad: seen in clear */
}

static void open_all(world *w)
{
    while (!w->over) {
        uint8_t *payload = NULL;
        size_t len = 0, body = 0;
        uint32_t sequence = w->packets.sequence_in;
        rt_next_result wanted = expected(w, &body);
        rt_next_result got = rt_packets_next(&w->packets, &payload, &len);
        if (wanted == RT_NEXT_PACKET && got == RT_NEXT_BAD_PADDING) {
            /* Opened in place, so that its padding can be looked at. */
            const uint8_t *packet = w->packets.received + w->packets.received_start;
            CHECK(packet[4] < 4 || packet[4] + 2u > body);
            w->over = 1;
            return;
        }
        CHECK_EQ(got, wanted);
        if (got == RT_NEXT_NONE)
            return;
        if (got != RT_NEXT_PACKET) {
            w->over = 1;
            CHECK(w->packets.sequence_in == sequence);
            return;
        }
        size_t padding = payload[-1];
        CHECK(len >= 1 && padding >= 4 && 1 + len + padding == body);
        CHECK(stream_is(payload, w->packets_opened, len + padding));
        CHECK(w->packets.sequence_in == sequence + 1);
        w->opened += 4 + body + 16;
        w->packets_opened++;
    }
}

/* The peer seals a packet as the input says. */
static void make_packet(world *w, rt_input *in)
{
    uint8_t how = take8(in);
    size_t body = take16(in) % 2048;
    uint8_t padding = take8(in);
    if (how & 1)
        body = body * 161; /* up to over the maximum */
    if (how & 2)
        body = (body + 15) / 16 * 16;
    else if (!(how & 4))
        body = body % 64;
    size_t whole = 4 + body + 16;
    if (body == 0 || w->packets_made == MOST_PACKETS ||
        MOST_ON_THE_WIRE - w->made < whole)
        return;
    uint8_t *packet = w->wire + w->made;
    rt_put32(packet, (uint32_t)body);
    packet[4] = padding;
    stream_fill(packet + 5, w->packets_made, body - 1);
    sealed *made = &w->packet[w->packets_made++];
    made->bad = 0;
    CHECK(rt_gcm_seal(w->seal, packet, body, packet + 4 + body) == 0);
    if (how & 8) { /* a bit, anywhere */
        made->bad = 1;
        packet[take32(in) % whole] ^= (uint8_t)(1u << (how >> 5));
    }
    w->made += whole;
    made->end = w->made;
}

static void write_some(world *w, size_t most)
{
    size_t n = w->made - w->written < most ? w->made - w->written : most;
    if (n == 0 || w->over)
        return;
    ssize_t sent = send(w->peer_fd, w->wire + w->written, n, MSG_DONTWAIT);
    CHECK(sent > 0);
    w->written += (size_t)sent;
    w->packets.readable = 1;
    while (!w->over && rt_packets_receive(&w->packets) == RT_RECEIVE_SOME)
        open_all(w);
    CHECK(w->packets.bytes_in == w->written);
}

/* We build a packet; the peer opens it. */
static void build_packet(world *w, size_t len)
{
    static uint8_t got[RT_MAX_PACKET_BYTES + 64];
    uint8_t *room = rt_packets_begin(&w->packets, len);
    if (room == NULL) {
        CHECK(len > RT_MAX_PACKET_BYTES - 32);
        return;
    }
    stream_fill(room, w->stream, len);
    CHECK(rt_packets_finish(&w->packets, len) == 0);
    size_t whole = rt_packet_wire_bytes(len), have = 0;
    CHECK(rt_packets_unsent(&w->packets) == whole && whole <= sizeof got);
    while (have < whole) {
        w->packets.writable = 1;
        rt_packets_flush(&w->packets);
        ssize_t n = recv(w->peer_fd, got + have, whole - have, MSG_DONTWAIT);
        CHECK(n > 0);
        have += (size_t)n;
    }
    CHECK(rt_packets_unsent(&w->packets) == 0);
    size_t body = rt_get32(got);
    CHECK(body % 16 == 0 && 4 + body + 16 == whole && body <= RT_MAX_PACKET_BYTES);
    CHECK(rt_gcm_open(w->open, got, body, got + 4 + body) == 0);
    CHECK(got[4] >= 4 && 1 + len + got[4] == body);
    CHECK(stream_is(got + 5, w->stream, len));
    w->stream += len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static world w;
    static uint8_t *wire; /* kept: it is large, and fully written before it is read */
    rt_input in = {data, data + size};
    char why[256];
    int fds[2];
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    if (wire == NULL)
        wire = malloc(MOST_ON_THE_WIRE);
    memset(&w, 0, sizeof w);
    w.wire = wire;
    stream_pair(fds);
    w.peer_fd = fds[1];
    CHECK(rt_packets_init(&w.packets, fds[0]) == 0);
    new_keys(&w, 1);

    for (int step = 0; left_of(&in) > 0 && step < MOST_STEPS; step++) {
        uint8_t what = take8(&in);
        switch (what % 8) {
        case 0:
        case 1:
        case 2:
            make_packet(&w, &in);
            break;
        case 3:
            write_some(&w, 1 + take8(&in) % 32u);
            break;
        case 4:
            write_some(&w, 1 + take16(&in));
            break;
        case 5:
            build_packet(&w, take16(&in) % 4096);
            break;
        case 6:
            what = take8(&in);
            build_packet(&w, what < 16 ? RT_MAX_PACKET_BYTES - 4 * what : what);
            break;
        default:
            if (w.opened == w.made) /* between two packets */
                new_keys(&w, what);
        }
    }
    while (!w.over && w.written < w.made)
        write_some(&w, 65536);

    close(fds[0]);
    close(fds[1]);
    rt_packets_free(&w.packets);
    rt_gcm_free(w.seal);
    rt_gcm_free(w.open);
    return 0;
}
