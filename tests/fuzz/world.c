#include "world.h"

#include "check.h"
#include "peer.h"
#include "sizing.h"
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- what the peer hears ---- */

static void hear(world *w, const uint8_t *payload, size_t len)
{
    uint8_t type = payload[0];
    if (type == OWNERS_MESSAGE) {
        CHECK(len == 9 && rt_get64(payload + 1) == w->owners_heard);
        w->owners_heard++;
        return;
    }
    CHECK(type >= SAY_OPEN_CONFIRMATION && type <= SAY_FAILURE && len >= 5);
    CHECK(!w->hold);
    channel *c = NULL;
    for (unsigned i = 0; i < w->count; i++)
        if (w->channels[i].remote_id == rt_get32(payload + 1))
            c = &w->channels[i];
    CHECK(c != NULL && !c->opening && !c->heard_close);
    CHECK(c->confirmed == (type != SAY_OPEN_CONFIRMATION));
    switch (type) {
    case SAY_OPEN_CONFIRMATION:
        CHECK(len == 17 && rt_get32(payload + 5) == c->id);
        c->promised = rt_get32(payload + 9);
        c->confirmed = 1;
        break;
    case SAY_ADJUST:
        CHECK(len == 9);
        c->promised += rt_get32(payload + 5);
        CHECK(w->wild || c->promised - c->said <= RT_WINDOW_MAX_BYTES);
        break;
    case SAY_DATA: {
        uint32_t n = rt_get32(payload + 5);
        CHECK(len == 9 + (size_t)n && n > 0 && n <= c->max_packet && !c->heard_eof);
        CHECK(stream_is(payload + 9, c->heard, n));
        c->heard += n;
        CHECK(c->heard <= c->written && (w->wild || c->heard <= c->allowed));
        break;
    }
    case SAY_EOF:
        CHECK(len == 5 && !c->heard_eof);
        CHECK(c->app_eof && c->heard == c->written);
        c->heard_eof = 1;
        break;
    case SAY_CLOSE:
        CHECK(len == 5);
        c->heard_close = 1;
        break;
    case SAY_REQUEST:
        if (w->probe_count < sizeof w->probes / sizeof w->probes[0])
            w->probes[w->probe_count++] = c->id;
        break;
    default:
        CHECK(type == SAY_FAILURE && len == 5);
        CHECK(w->wild || c->answers_due-- > 0);
    }
}

static int listen_to_engine(world *w)
{
    int moved = 0;
    uint8_t *payload;
    size_t len;
    while (rt_packets_receive(&w->wire) == RT_RECEIVE_SOME) {
        rt_next_result next;
        moved = 1;
        while ((next = rt_packets_next(&w->wire, &payload, &len)) == RT_NEXT_PACKET)
            hear(w, payload, len);
        CHECK_EQ(next, RT_NEXT_NONE);
    }
    return moved;
}

/* ---- both ends ---- */

static void note_end(world *w, const rt_ended *ended)
{
    for (unsigned i = 0; i < w->count; i++) {
        channel *c = &w->channels[i];
        if (c->id != ended->local_id)
            continue;
        CHECK(!c->ended && !c->opening);
        c->ended = 1;
        CHECK(ended->bytes_out <= c->written);
        CHECK(w->wild || (ended->bytes_in <= c->said && ended->bytes_out <= c->allowed));
        int broke = c->reset || c->app_gone_unread || w->over || w->wild || c->app_deaf;
        CHECK(broke || (!ended->was_reset && ended->error == 0));
        /* An orderly end is one of both sides: all that was said has arrived. */
        CHECK(broke || ended->was_reset || ended->bytes_in == c->said);
        return;
    }
    CHECK(0); /* nobody's */
}

void take_ended(world *w)
{
    rt_ended ended;
    while (rt_engine_take_ended(w->engine, &ended, 1) == 1)
        note_end(w, &ended);
}

int turn(world *w)
{
    rt_event event;
    rt_engine_stats before, after;
    size_t unsent = rt_packets_unsent(&w->wire);
    w->wire.writable = 1;
    rt_packets_flush(&w->wire);
    int moved = rt_packets_unsent(&w->wire) < unsent;
    rt_engine_stats_now(w->engine, &before);
    rt_engine_next(w->engine, 0, &event);
    rt_engine_stats_now(w->engine, &after);
    moved |= after.bytes_in != before.bytes_in || event.kind != RT_EV_TIMEOUT;
    switch (event.kind) {
    case RT_EV_TIMEOUT:
    case RT_EV_WOKEN:
        break;
    case RT_EV_PACKET:
        CHECK(event.len >= 1);
        break;
    case RT_EV_ENDED:
        take_ended(w);
        break;
    default:
        CHECK(event.kind != RT_EV_REKEY);
        CHECK(event.kind != RT_EV_FAULT || (w->wild && event.why[0] != '\0'));
        w->over = 1;
        w->end = event.kind;
    }
    if (!w->deaf) {
        w->wire.readable = 1;
        moved |= listen_to_engine(w);
    }
    return moved;
}

int is_lossless(const channel *c)
{
    return !c->reset && !c->app_deaf && !c->app_gone_unread;
}

static void check_channels(world *w)
{
    for (unsigned i = 0; i < w->count; i++) {
        const channel *c = &w->channels[i];
        rt_channel *of_engine = rt_channel_find(&w->engine->channels, c->id);
        if (of_engine == NULL) {
            int both = c->said_close && (c->heard_close || w->deaf);
            CHECK(c->opening || w->wild || (c->ended && both));
            continue;
        }
        CHECK(of_engine->pending.capacity <= 2 * of_engine->pending.maximum + 8192);
        /* All that the peer may say still has room behind what waits. */
        CHECK(of_engine->recv_window + (int64_t)rt_buffer_len(&of_engine->pending) <=
              (int64_t)of_engine->pending.maximum);
        if (w->wild || c->opening || c->said_close)
            continue;
        if (c->confirmed && !w->deaf)
            CHECK_EQ(of_engine->recv_window, c->promised - c->said);
        if (!w->deaf)
            CHECK_EQ(of_engine->send_window, c->allowed - c->heard);
    }
}

void settle(world *w)
{
    for (int quiet = 0; quiet < 3 && !w->over;)
        quiet = turn(w) ? 0 : quiet + 1;
    if (!w->over)
        check_channels(w);
}

/* ---- what the peer says ---- */

void say(world *w, const uint8_t *payload, size_t len)
{
    uint8_t *room = rt_packets_begin(&w->wire, len);
    CHECK(room != NULL);
    memcpy(room, payload, len);
    CHECK(rt_packets_finish(&w->wire, len) == 0);
}

void say_words(world *w, uint8_t type, uint32_t a, uint32_t b, size_t count)
{
    uint8_t payload[9] = {type};
    rt_put32(payload + 1, a);
    rt_put32(payload + 5, b);
    say(w, payload, 1 + 4 * count);
}

static void say_data(world *w, channel *c, size_t n, int extended)
{
    size_t header = extended ? 13 : 9;
    uint8_t *room = rt_packets_begin(&w->wire, header + n);
    CHECK(room != NULL);
    room[0] = extended ? SAY_EXTENDED_DATA : SAY_DATA;
    rt_put32(room + 1, c->id);
    rt_put32(room + 5, 1); /* SSH_EXTENDED_DATA_STDERR */
    rt_put32(room + header - 4, (uint32_t)n);
    stream_fill(room + header, c->said, n);
    CHECK(rt_packets_finish(&w->wire, header + n) == 0);
}

static size_t lawful_bytes(const channel *c, size_t most)
{
    uint64_t window = c->promised > c->said ? c->promised - c->said : 0;
    if (most > window)
        most = (size_t)window;
    if (most > PEER_PACKET_BYTES)
        most = PEER_PACKET_BYTES;
    return c->said + most > MOST_BYTES ? 0 : most;
}

void lawful_data(world *w, channel *c, size_t most)
{
    size_t n = lawful_bytes(c, most);
    if (c->said_eof)
        return;
    say_data(w, c, n, 0);
    c->said += n;
}

/* Extended data counts in the window and is thrown away: so it is said only where the
 * stream is over, or it would have a hole. */
void lawful_extended(world *w, channel *c, size_t most)
{
    if (!c->said_eof)
        return;
    size_t n = lawful_bytes(c, most);
    say_data(w, c, n, 1);
    c->promised -= n;
}

void over_the_window(world *w, channel *c, size_t n)
{
    if (c->said_eof || c->said + n > MOST_BYTES || w->deaf || !c->confirmed)
        return;
    settle(w);
    rt_channel *of_engine = rt_channel_find(&w->engine->channels, c->id);
    if (w->over || w->wild || of_engine == NULL)
        return;
    int64_t grace = of_engine->recv_window_size / RT_WINDOW_GRACE_DIVISOR;
    int legal =
        n <= of_engine->recv_max_packet && (int64_t)n <= of_engine->recv_window + grace;
    say_data(w, c, n, 0);
    c->said += n;
    w->wild = !legal;
    settle(w);
    CHECK(w->over == !legal);
    CHECK(legal || w->end == RT_EV_FAULT);
}

void wild_message(world *w, rt_input *in)
{
    uint8_t payload[300];
    size_t n;
    uint8_t type = take8(in), which = take8(in);
    const uint8_t *bytes = take_bytes(in, take8(in), &n);
    w->wild = 1;
    payload[0] = type & 1 ? type : (uint8_t)(90 + type % 11);
    rt_put32(payload + 1, which < w->count ? w->channels[which].id : which << 20 | 1u << 30);
    if (n > 0)
        memcpy(payload + 5, bytes, n);
    if (payload[0] == SAY_KEXINIT)
        w->peer_kex = 1;
    say(w, payload, which == 255 ? 1 + n % 4 : 5 + n);
}

void request(world *w, channel *c, int want_reply)
{
    uint8_t payload[] = {SAY_REQUEST, 0, 0, 0, 0, 0, 0, 0, 1, 'x', (uint8_t)want_reply};
    rt_put32(payload + 1, c->id);
    if (c->answers_due >= RT_MAX_FAILURES_DUE / 2)
        return;
    c->answers_due += want_reply != 0;
    say(w, payload, sizeof payload);
}

void answer_probe(world *w, int granted)
{
    if (w->probe_count == 0)
        return;
    uint32_t id = w->probes[0];
    memmove(w->probes, w->probes + 1, --w->probe_count * sizeof w->probes[0]);
    for (unsigned i = 0; i < w->count; i++)
        if (w->channels[i].id == id && !w->channels[i].said_close)
            say_words(w, granted ? SAY_SUCCESS : SAY_FAILURE, id, 0, 1);
}

/* ---- what the target does ---- */

void app_writes(channel *c, size_t n)
{
    uint8_t bytes[4096];
    if (c->app < 0 || c->app_eof)
        return;
    while (n > 0 && c->written + n <= MOST_BYTES) {
        size_t part = n < sizeof bytes ? n : sizeof bytes;
        stream_fill(bytes, c->written, part);
        ssize_t sent = send(c->app, bytes, part, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        c->written += (uint64_t)sent;
        n -= (size_t)sent;
    }
}

/* Returns what recv said last. */
ssize_t app_reads(const world *w, channel *c, size_t n)
{
    uint8_t bytes[16384];
    ssize_t got = -1;
    errno = EAGAIN;
    while (n > 0 && c->app >= 0) {
        got = recv(c->app, bytes, n < sizeof bytes ? n : sizeof bytes, MSG_DONTWAIT);
        if (got <= 0)
            break;
        CHECK(w->wild || stream_is(bytes, c->got, (size_t)got));
        c->got += (uint64_t)got;
        CHECK(w->wild || c->got <= c->said);
        n -= (size_t)got;
    }
    return got;
}

void app_ends(channel *c, unsigned how)
{
    int unread = 0;
    if (c->app < 0)
        return;
    switch (how % 4) {
    case 0:
    case 1:
        shutdown(c->app, SHUT_WR);
        c->app_eof = 1;
        return;
    case 2:
        shutdown(c->app, SHUT_RD);
        c->app_deaf = 1;
        return;
    default:
        CHECK(ioctl(c->app, FIONREAD, &unread) == 0);
        close(c->app);
        c->app = -1;
        c->app_eof = c->app_deaf = 1;
        c->app_gone_unread = unread > 0;
    }
}
