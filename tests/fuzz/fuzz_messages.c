/* A whole engine (engine.h) between a scripted peer and its targets, which do what the
 * input says: open, data, extended data, adjust, EOF, CLOSE, requests, rekeys, resets,
 * rates, slow and dead targets, a peer that does not read, and messages of any bytes.
 *
 * Lawful peers are never cut off, and for each channel at any time:
 *   - what is heard is the stream that the target wrote, in order, within the window and
 *     the maximum packet; no data after EOF, nothing after CLOSE;
 *   - what the target gets is the stream that the peer said, in order;
 *   - the window that the engine keeps is what it promised less what it got.
 * In the end all bytes have arrived, but for those of an end that broke by itself.
 *
 * The clock is the input's, too (clock.h).
 */
#include "check.h"
#include "clock.h"
#include "peer.h"
#include "wire.h"
#include "world.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_STEPS 200

/* ---- what the owner does ---- */

static void open_channel(world *w, rt_input *in)
{
    if (w->count == MOST_CHANNELS)
        return;
    uint8_t how = take8(in);
    uint32_t window = take_number(in), max_packet = take_number(in);
    rt_peer_side side = {w->next_remote_id++, window, max_packet};
    rt_priority priority = (rt_priority)(how / 2u % 3);
    channel *c = &w->channels[w->count];
    *c = (channel){.remote_id = side.remote_id, .allowed = window, .app = -1};
    c->max_packet = max_packet;
    uint32_t ours = how & 128 ? PEER_WINDOW_BYTES : 1u + take16(in);
    if (how & 1) {
        CHECK(rt_engine_reserve(w->engine, ours, PEER_PACKET_BYTES, priority, &c->id) ==
              0);
        c->opening = 1;
        c->promised = ours;
        w->count++;
        return;
    }
    int fds[2];
    stream_pair(fds);
    rt_rate_of rate = {how & 8, 1u << (17 + how / 16 % 8)};
    int result = rt_engine_accept_limited(w->engine, fds[0], &side, ours,
                                          PEER_PACKET_BYTES, priority,
                                          how & 64 ? &rate : NULL, &c->id);
    CHECK_EQ(result, max_packet == 0 ? RT_EINVAL : 0);
    if (result != 0) {
        close(fds[0]);
        close(fds[1]);
        return;
    }
    c->app = fds[1];
    w->count++;
}

static void confirm_or_cancel(world *w, channel *c, unsigned how)
{
    if (!c->opening)
        return;
    if (how % 4 == 0) {
        CHECK(rt_engine_cancel(w->engine, c->id) == 0);
        CHECK(rt_engine_cancel(w->engine, c->id) == RT_EGONE);
        *c = w->channels[--w->count];
        return;
    }
    int fds[2];
    stream_pair(fds);
    rt_peer_side side = {c->remote_id, (uint32_t)c->allowed, c->max_packet};
    int result = rt_engine_confirm(w->engine, c->id, fds[0], &side);
    CHECK_EQ(result, c->max_packet == 0 ? RT_EINVAL : 0);
    if (result != 0) {
        close(fds[0]);
        close(fds[1]);
        return;
    }
    c->app = fds[1];
    c->opening = 0;
    c->confirmed = 1;
}

static void rekey(world *w, unsigned how)
{
    static const uint8_t kexinit[] = {SAY_KEXINIT, 0};
    if (w->deaf)
        return;
    settle(w);
    if (w->over)
        return;
    if (how & 1 && !w->hold) {
        rt_engine_hold(w->engine);
        w->hold = 1;
        return;
    }
    if (how & 2 && !w->peer_kex) {
        say(w, kexinit, sizeof kexinit);
        w->peer_kex = 1;
        return;
    }
    if (rt_packets_unsent(&w->wire) > 0)
        return;
    w->keys++;
    set_test_key(w->engine, &w->wire, (uint8_t)(w->keys | 1), (uint8_t)(w->keys | 2));
    w->hold = w->peer_kex = 0;
}

static void owner_sends(world *w)
{
    uint8_t payload[9] = {OWNERS_MESSAGE};
    rt_put64(payload + 1, w->owners_sent);
    if (rt_engine_send(w->engine, payload, sizeof payload) == 0)
        w->owners_sent++;
}

static void reset_channel(world *w, channel *c)
{
    int result = rt_engine_reset(w->engine, c->id);
    CHECK(result == 0 || result == RT_EGONE);
    CHECK(!c->opening || result == RT_EGONE);
    if (result == 0)
        c->reset = 1;
}

/* ---- the end ---- */

/* The connection ended: nobody is told of a clean end who has lost something. */
static void check_lost(world *w)
{
    rt_engine_end_channels(w->engine);
    take_ended(w);
    for (unsigned i = 0; i < w->count; i++) {
        channel *c = &w->channels[i];
        if (c->opening)
            continue;
        CHECK(w->wild || c->ended);
        app_reads(w, c, SIZE_MAX);
    }
}

/* Everybody goes on until all is through: then nothing is lost, and nothing is left. */
static void check_finished(world *w)
{
    w->deaf = 0;
    for (int round = 0; round < 1000 && !w->over; round++) {
        int done = 1;
        if (w->hold || w->peer_kex)
            rekey(w, 0);
        for (unsigned i = 0; i < w->count && !w->over; i++) {
            channel *c = &w->channels[i];
            if (c->opening) {
                confirm_or_cancel(w, c, 0);
                i--;
                continue;
            }
            done &= c->ended && c->said_close;
            app_reads(w, c, SIZE_MAX);
            if (c->confirmed && !c->said_close && !w->peer_kex) {
                if (c->heard_close) {
                    say_words(w, SAY_CLOSE, c->id, 0, 1);
                    c->said_close = c->said_eof = 1;
                    continue;
                }
                if (c->allowed < c->written) {
                    uint64_t more = c->written - c->allowed;
                    say_words(w, SAY_ADJUST, c->id, (uint32_t)more, 2);
                    c->allowed += more;
                }
                if (!c->said_eof)
                    say_words(w, SAY_EOF, c->id, 0, 1);
                c->said_eof = 1;
            }
            if (c->app >= 0 && !c->app_eof)
                app_ends(c, 0);
        }
        while (w->probe_count > 0 && !w->peer_kex)
            answer_probe(w, 0);
        settle(w);
        clock_us += 500000;
        if (done)
            break;
    }
    if (w->over)
        return;
    for (unsigned i = 0; i < w->count; i++) {
        channel *c = &w->channels[i];
        ssize_t last = app_reads(w, c, SIZE_MAX);
        CHECK(c->ended && c->heard_close && c->said_close);
        if (!is_lossless(c))
            continue;
        CHECK_EQ(c->got, c->said);
        CHECK(last == 0); /* the end of the stream, and no reset */
    }
    CHECK_EQ(w->owners_heard, w->owners_sent);
    rt_engine_stats stats;
    rt_engine_stats_now(w->engine, &stats);
    CHECK_EQ(stats.channels, 0);
    CHECK(w->engine->limits == NULL);
}

static void close_world(world *w)
{
    rt_engine_free(w->engine);
    close(w->engine_fd);
    close(w->wire.fd);
    rt_packets_free(&w->wire);
    for (unsigned i = 0; i < w->count; i++)
        if (w->channels[i].app >= 0)
            close(w->channels[i].app);
}

static void step(world *w, rt_input *in)
{
    uint8_t what = take8(in);
    channel *c = w->count ? &w->channels[take8(in) % w->count] : NULL;
    if (c == NULL) {
        open_channel(w, in);
        return;
    }
    int may_say = !c->opening && c->confirmed && !c->said_close && !w->peer_kex;
    switch (what % 24) {
    case 0:
        open_channel(w, in);
        break;
    case 1:
    case 2:
    case 3: {
        size_t most = take_number(in);
        for (int i = take8(in) % 8; i >= 0 && may_say; i--)
            lawful_data(w, c, most);
        break;
    }
    case 4: {
        size_t most = take_number(in);
        if (may_say)
            lawful_extended(w, c, most);
        break;
    }
    case 5:
    case 6: {
        uint32_t n = take_number(in);
        if (may_say && n <= UINT32_MAX - (c->allowed - c->heard)) {
            say_words(w, SAY_ADJUST, c->id, n, 2);
            c->allowed += n;
        }
        break;
    }
    case 7:
        if (may_say && !c->said_eof)
            say_words(w, SAY_EOF, c->id, 0, 1);
        c->said_eof |= may_say;
        break;
    case 8:
        if (may_say)
            say_words(w, SAY_CLOSE, c->id, 0, 1);
        c->said_close |= may_say;
        break;
    case 9:
        if (may_say)
            request(w, c, take8(in) & 1);
        break;
    case 10:
        if (!w->peer_kex)
            answer_probe(w, take8(in) & 1);
        break;
    case 11:
    case 12:
    case 13:
        app_writes(c, take_number(in) % (1u << 18));
        break;
    case 14:
    case 15:
        app_reads(w, c, take_number(in));
        break;
    case 16:
        app_ends(c, take8(in));
        break;
    case 17:
        clock_us += (uint64_t)take16(in) * 100;
        break;
    case 18:
        rekey(w, take8(in));
        break;
    case 19:
        w->deaf = take8(in) & 1;
        break;
    case 20:
        confirm_or_cancel(w, c, take8(in));
        break;
    case 21: {
        uint8_t how = take8(in);
        if (how < 64)
            reset_channel(w, c);
        else if (how < 128)
            owner_sends(w);
        else if (how < 160)
            rt_engine_wake(w->engine);
        else if (how < 168)
            wild_message(w, in);
        else if (how < 200 && may_say)
            over_the_window(w, c, take16(in) % 40000);
        break;
    }
    case 22:
        settle(w);
        break;
    default:
        turn(w);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static world w;
    rt_input in = {data, data + size};
    char why[256];
    int fds[2];
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    clock_us = 1000000;
    memset(&w, 0, sizeof w);
    stream_pair(fds);
    w.engine_fd = fds[0];
    w.engine = rt_engine_new(fds[0]);
    CHECK(w.engine != NULL);
    CHECK(rt_packets_init(&w.wire, fds[1]) == 0);
    set_test_key(w.engine, &w.wire, 1, 2);

    for (int i = 0; left_of(&in) > 0 && i < MOST_STEPS && !w.over; i++)
        step(&w, &in);
    if (w.wild)
        settle(&w);
    else
        check_finished(&w);
    if (w.over || w.wild)
        check_lost(&w);
    close_world(&w);
    return 0;
}
