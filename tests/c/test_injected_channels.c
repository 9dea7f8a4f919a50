/* Each allocation and system call of the engine fails in mid-stream, once, in every way
 * that it may: docs/faults.md says what must happen then.
 *
 * Two channels carry bytes both ways, read late so that the engine has to buffer, until
 * all have ended. Whatever fails: no byte is wrong, an end of stream is the end of all
 * of it, what was cut is reset, and whoever is cut is told why. */
#include "check.h"
#include "faults.h"
#include "pattern.h"
#include "peer.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHANNELS 2u
#define IN_BYTES 100000u /* from the peer to the app: more than the sockets hold */
#define OUT_BYTES 50000u
#define PORTION_BYTES 8192u
#define WAKES_UP_AT 20u /* the step from that on apps read */
#define KEYS_AT 8u
#define RESET_AT 12u
#define STEPS_MAX 200000u

/* What the scenario does besides. */
static enum { NOTHING, CONFIRM, REKEY, RESET, RATE, WINDOW } besides;

/* What was seen in all runs. */
static unsigned one_cut_for_memory, one_cut_for_epoll, all_cut_for_memory;

typedef struct {
    uint32_t id;   /* the engine's */
    int taken;     /* accepted or confirmed */
    int app;       /* the other end of its socket */
    size_t said;   /* by the peer */
    int said_eof, said_close;
    size_t heard;  /* by the peer */
    int heard_eof, heard_close;
    size_t sent, got; /* by the app */
    int end;       /* what it saw: 1 end of stream, -1 a reset */
} stream;

typedef struct {
    peer p;
    stream streams[CHANNELS];
    int over;       /* the connection: the owner ended it, or the engine told so */
    int says_kex;   /* from KEXINIT until the new key the peer says nothing else */
    int has_new_keys;
} scene;

/* ---- the app of a channel ---- */

static void app_sends(stream *s, unsigned seed)
{
    uint8_t some[PORTION_BYTES];
    size_t n = OUT_BYTES - s->sent < sizeof some ? OUT_BYTES - s->sent : sizeof some;
    if (n == 0 || s->end < 0)
        return;
    fill_bytes(some, n, s->sent, seed);
    ssize_t done = send(s->app, some, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (done < 0 && errno != EAGAIN)
        s->end = -1; /* a reset is told once: by this call, or by recv */
    if (done <= 0)
        return;
    s->sent += (size_t)done;
    if (s->sent == OUT_BYTES)
        (void)shutdown(s->app, SHUT_WR);
}

static void app_reads(stream *s, unsigned seed)
{
    uint8_t some[PORTION_BYTES];
    if (s->end != 0)
        return;
    ssize_t n = recv(s->app, some, sizeof some, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        s->end = n == 0 ? 1 : -1;
        return;
    }
    check_bytes(some, (size_t)n, s->got, seed + CHANNELS);
    s->got += (size_t)n;
    CHECK(s->got <= IN_BYTES);
}

/* ---- the peer ---- */

static void peer_speaks(scene *s, stream *c, unsigned seed)
{
    uint8_t some[PORTION_BYTES];
    size_t n = IN_BYTES - c->said < sizeof some ? IN_BYTES - c->said : sizeof some;
    if (!c->taken || s->says_kex || c->said_close)
        return;
    if (c->heard_close) {
        PEER_SAY(&s->p, SAY_CLOSE, c->id);
        c->said_close = 1;
    } else if (n > 0) {
        fill_bytes(some, n, c->said, seed + CHANNELS);
        peer_say_data(&s->p, c->id, some, n);
        c->said += n;
    } else if (!c->said_eof) {
        PEER_SAY(&s->p, SAY_EOF, c->id);
        c->said_eof = 1;
    }
}

static void peer_hears(scene *s)
{
    peer *p = &s->p;
    while (p->heard_first < p->heard_end) {
        const peer_message *m = &p->heard[p->heard_first++];
        if (m->payload[0] == SAY_OTHER)
            continue;
        unsigned at = word(m, 0);
        CHECK(at < CHANNELS);
        stream *c = &s->streams[at];
        CHECK(!c->heard_close);
        switch (m->payload[0]) {
        case SAY_DATA:
            CHECK(!c->heard_eof && m->len == 9 + (size_t)word(m, 1));
            check_bytes(m->payload + 9, m->len - 9, c->heard, at);
            c->heard += m->len - 9;
            break;
        case SAY_EOF:
            CHECK(!c->heard_eof && c->heard == OUT_BYTES);
            c->heard_eof = 1;
            break;
        case SAY_CLOSE:
            c->heard_close = 1;
            break;
        default:
            CHECK(m->payload[0] == SAY_OPEN_CONFIRMATION || m->payload[0] == SAY_ADJUST);
        }
    }
}

/* ---- the owner ---- */

static void open_channel(scene *s, unsigned at)
{
    /* The end of a stream that used it up takes none. */
    uint32_t window = besides == WINDOW ? OUT_BYTES : PEER_WINDOW_BYTES;
    const rt_peer_side side = {at, window, PEER_PACKET_BYTES};
    const rt_rate_of rate = {1, 1000000000};
    stream *c = &s->streams[at];
    rt_engine *e = s->p.engine;
    int fds[2];
    small_tcp_pair(fds);
    c->app = fds[1];
    faults_begin();
    int result;
    if (besides == CONFIRM) {
        result = rt_engine_reserve(e, PEER_WINDOW_BYTES, PEER_PACKET_BYTES,
                                   RT_PRIORITY_AUTO, &c->id);
        if (result == 0) {
            result = rt_engine_confirm(e, c->id, fds[0], &side);
            if (result != 0)
                CHECK(rt_engine_cancel(e, c->id) == 0);
        }
    } else {
        result = rt_engine_accept_limited(e, fds[0], &side, PEER_WINDOW_BYTES,
                                          PEER_PACKET_BYTES, RT_PRIORITY_AUTO,
                                          besides == RATE ? &rate : NULL, &c->id);
    }
    faults_end();
    CHECK(result == 0 || (result == RT_ENOMEM && faults_fired() != NULL));
    c->taken = result == 0;
    if (!c->taken) {
        CHECK(is_silent(c->app)); /* it is still ours */
        close(fds[0]);
    }
}

static void say_something(scene *s)
{
    faults_begin();
    int result = rt_engine_send(s->p.engine, (const uint8_t *)"\xc0hello", 6);
    faults_end();
    CHECK(result == 0 || faults_fired() != NULL);
    CHECK(result == 0 || result == RT_ENOMEM || result == RT_ECLOSED);
}

/* All that was sealed with the old key has arrived, both ways. */
static int is_time_for_new_keys(scene *s)
{
    rt_engine_stats stats;
    rt_engine_stats_now(s->p.engine, &stats);
    return s->says_kex && !s->has_new_keys && s->p.packet != NULL &&
           s->p.packet[0] == SAY_KEXINIT && stats.unsent == 0;
}

static void use_new_keys(scene *s)
{
    const uint8_t iv[RT_GCM_IV_BYTES] = {0}, out[32] = {3}, in[32] = {4};
    peer_turn(&s->p); /* what is in the socket is of the old key */
    if (s->over)
        return;
    faults_begin();
    int seal = rt_engine_set_seal_key(s->p.engine, out, sizeof out, iv);
    int open = rt_engine_set_open_key(s->p.engine, in, sizeof in, iv);
    faults_end();
    CHECK(seal == 0 || seal == RT_ENOMEM);
    CHECK(open == 0 || open == RT_ENOMEM);
    if (seal != 0 || open != 0) {
        CHECK(faults_fired() != NULL);
        s->over = 1; /* without its keys no owner goes on */
        return;
    }
    rt_packets_set_open_key(&s->p.wire, rt_gcm_new(out, sizeof out, iv, 0));
    rt_packets_set_seal_key(&s->p.wire, rt_gcm_new(in, sizeof in, iv, 1));
    s->has_new_keys = 1;
    s->says_kex = 0;
}

static void do_besides(scene *s, unsigned step)
{
    if (step == KEYS_AT && besides == REKEY) {
        rt_engine_hold(s->p.engine);
        PEER_SAY(&s->p, SAY_KEXINIT, 0);
        s->says_kex = 1;
    }
    if (step == RESET_AT && besides == RESET && s->streams[0].taken) {
        faults_begin();
        int result = rt_engine_reset(s->p.engine, s->streams[0].id);
        faults_end();
        CHECK(result == 0 || (result == RT_EGONE && faults_fired() != NULL));
    }
    if (step == KEYS_AT)
        say_something(s);
    if (step == RESET_AT) {
        faults_begin();
        rt_engine_wake(s->p.engine);
        faults_end();
    }
    if (is_time_for_new_keys(s))
        use_new_keys(s);
}

/* ---- what must hold ---- */

static void note_what_ended(scene *s)
{
    const peer *p = &s->p;
    if (p->told[RT_EV_ERROR] + p->told[RT_EV_FAULT] + p->told[RT_EV_EOF] == 0)
        return;
    s->over = 1;
    CHECK(faults_fired() != NULL && p->told[RT_EV_EOF] == 0);
    CHECK(p->event.kind != RT_EV_ERROR || p->event.error != 0);
    CHECK(p->event.kind != RT_EV_FAULT || strcmp(p->event.why, "out of memory") == 0);
}

static int all_ended(const scene *s)
{
    unsigned taken = 0;
    for (unsigned i = 0; i < CHANNELS; i++) {
        const stream *c = &s->streams[i];
        taken += (unsigned)c->taken;
        if (c->taken && (c->end == 0 || !c->said_close))
            return 0;
    }
    return s->p.ended_count == taken;
}

static const rt_ended *ending_of(const scene *s, const stream *c)
{
    for (unsigned i = 0; i < s->p.ended_count; i++)
        if (s->p.endings[i].local_id == c->id)
            return &s->p.endings[i];
    return NULL;
}

/* Returns whether the channel was cut. */
static unsigned check_stream(const scene *s, const stream *c)
{
    const rt_ended *ending = ending_of(s, c);
    CHECK(ending != NULL && c->end != 0);
    int takes_no_more = faults_fired_by("sendmsg: EPIPE"); /* said the socket of one */
    if (c->end == 1)
        CHECK(c->got == IN_BYTES || takes_no_more);
    if (!ending->was_reset) {
        CHECK(c->end == 1 && c->heard_eof && c->heard == OUT_BYTES);
        CHECK_EQ(ending->error, 0);
        return 0;
    }
    int by_owner = besides == RESET && c == &s->streams[0];
    CHECK(s->over || by_owner || ending->error != 0);
    return !by_owner;
}

static int is_of_a_local_socket(void)
{
    return faults_fired_by("recvmsg") || faults_fired_by("sendmsg") || faults_fired_by("epoll_ctl") ||
           faults_fired_by("shutdown") || faults_fired_by("getsockopt") || faults_fired_by("setsockopt");
}

/* Nobody may notice that a call was interrupted, or had nothing yet. */
static int is_nothing(void)
{
    const char *fired = faults_fired();
    return strstr(fired, ": EINTR") != NULL || strstr(fired, ": EAGAIN") != NULL;
}

static void carry_bytes(void)
{
    scene s;
    memset(&s, 0, sizeof s);
    peer_open(&s.p);
    s.p.hasty = 1;
    for (unsigned i = 0; i < CHANNELS; i++)
        open_channel(&s, i);
    for (unsigned step = 0; !s.over && !all_ended(&s); step++) {
        CHECK(step < STEPS_MAX);
        for (unsigned i = 0; i < CHANNELS; i++) {
            stream *c = &s.streams[i];
            peer_speaks(&s, c, i);
            if (c->taken && step >= WAKES_UP_AT)
                app_reads(c, i);
            if (c->taken)
                app_sends(c, i);
        }
        do_besides(&s, step);
        if (!s.over)
            peer_turn(&s.p);
        peer_hears(&s);
        note_what_ended(&s);
    }
    faults_begin();
    rt_engine_end_channels(s.p.engine);
    faults_end();
    peer_take_ended(&s.p);
    unsigned cut = 0, refused = 0;
    for (unsigned i = 0; i < CHANNELS; i++) {
        stream *c = &s.streams[i];
        refused += !c->taken;
        while (c->taken && c->end == 0)
            app_reads(c, i);
        if (c->taken)
            cut += check_stream(&s, c);
        close(c->app);
    }
    CHECK(refused + cut == 0 || (faults_fired() != NULL && !is_nothing()));
    CHECK(refused + cut <= 1 || s.over);
    CHECK(!s.over || !is_of_a_local_socket()); /* the others go on */
    if (faults_fired_by("malloc") && cut > 0)
        *(s.over ? &all_cut_for_memory : &one_cut_for_memory) += 1;
    one_cut_for_epoll += faults_fired_by("epoll_ctl MOD") && cut == 1 && !s.over;
    peer_close(&s.p);
}

static void exhaust(int what)
{
    besides = what;
    CHECK(faults_exhaust(carry_bytes) > 100);
}

static void bytes_arrive_exactly_or_one_channel_is_reset_or_all_are_told_why(void)
{
    exhaust(NOTHING);
    CHECK(one_cut_for_memory > 0); /* for its buffer */
    CHECK(one_cut_for_epoll > 0);
    CHECK(all_cut_for_memory > 0); /* for the send queue, which is of all */
}

static void the_same_with_channels_that_the_peer_confirms(void)
{
    exhaust(CONFIRM);
}

static void the_same_through_an_exchange_of_keys(void)
{
    exhaust(REKEY);
}

static void the_same_while_the_owner_resets_one_channel(void)
{
    exhaust(RESET);
}

static void the_same_with_a_rate(void)
{
    exhaust(RATE);
}

static void the_same_with_streams_that_use_a_window_up(void)
{
    exhaust(WINDOW);
}

/* ---- a reset behind the end of what the app sends ---- */

static void reset_behind_the_end(void)
{
    peer p;
    int fds[2], gone = 0;
    uint32_t id;
    const rt_peer_side side = {PEER_CHANNEL_ID, PEER_WINDOW_BYTES, PEER_PACKET_BYTES};
    peer_open(&p);
    small_tcp_pair(fds);
    CHECK(rt_engine_accept(p.engine, fds[0], &side, PEER_WINDOW_BYTES, PEER_PACKET_BYTES,
                           RT_PRIORITY_AUTO, &id) == 0);
    CHECK(shutdown(fds[1], SHUT_WR) == 0);
    while (p.ended_count == 0 && p.told[RT_EV_ERROR] + p.told[RT_EV_FAULT] == 0) {
        peer_turn(&p);
        for (; p.heard_first < p.heard_end; p.heard_first++)
            if (p.heard[p.heard_first].payload[0] == SAY_EOF) {
                reset_on_close(fds[1]);
                close(fds[1]);
                gone = 1;
            }
    }
    if (p.ended_count > 0)
        CHECK(p.ended.was_reset && p.ended.error != 0);
    else /* the connection broke, or no memory for a message */
        CHECK(faults_fired() != NULL && !faults_fired_by("getsockopt"));
    if (!gone)
        close(fds[1]);
    peer_close(&p);
}

static void a_reset_that_no_read_would_tell_is_told(void)
{
    CHECK(faults_exhaust(reset_behind_the_end) > 10);
}

int main(void)
{
    RUN(bytes_arrive_exactly_or_one_channel_is_reset_or_all_are_told_why);
    RUN(the_same_with_channels_that_the_peer_confirms);
    RUN(the_same_through_an_exchange_of_keys);
    RUN(the_same_while_the_owner_resets_one_channel);
    RUN(the_same_with_a_rate);
    RUN(the_same_with_streams_that_use_a_window_up);
    RUN(a_reset_that_no_read_would_tell_is_told);
    return 0;
}
