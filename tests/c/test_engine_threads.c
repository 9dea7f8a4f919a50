/* The loop on its own thread, everybody else on others; also run by ThreadSanitizer. */
#include "check.h"
#include "peer.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BULK_BYTES (8u * 1024 * 1024)

/* An engine whose loop runs until it ends; what ended is counted. */
typedef struct {
    rt_engine *engine;
    pthread_t thread;
    atomic_uint ended, woken, heard; /* heard: SAY_OTHER */
    rt_event last;
} looped;

static void *run_loop(void *argument)
{
    looped *l = argument;
    rt_ended ended[8];
    for (;;) {
        rt_engine_next(l->engine, -1, &l->last);
        switch (l->last.kind) {
        case RT_EV_ENDED:
            atomic_fetch_add(&l->ended,
                             (unsigned)rt_engine_take_ended(l->engine, ended, 8));
            break;
        case RT_EV_WOKEN:
            atomic_fetch_add(&l->woken, 1);
            break;
        case RT_EV_PACKET:
            if (l->last.payload[0] == SAY_OTHER)
                atomic_fetch_add(&l->heard, 1);
            break;
        default:
            return NULL;
        }
    }
}

static void start_loop(looped *l, rt_engine *engine)
{
    memset(l, 0, sizeof *l);
    l->engine = engine;
    CHECK(pthread_create(&l->thread, NULL, run_loop, l) == 0);
}

static void stop_loop(looped *l)
{
    rt_engine_close(l->engine);
    CHECK(pthread_join(l->thread, NULL) == 0);
    CHECK_EQ(l->last.kind, RT_EV_EOF);
}

static void wait_for(const atomic_uint *count, unsigned wanted)
{
    while (atomic_load(count) < wanted)
        usleep(200);
    CHECK_EQ(atomic_load(count), wanted);
}

/* Two engines that share an SSH connection and the keys of its two directions. */
typedef struct {
    looped a, b;
    int fds[2];
} engines;

static void set_key(int (*set)(rt_engine *, const uint8_t *, size_t, const uint8_t *),
                    rt_engine *e, uint8_t fill)
{
    uint8_t key[16];
    const uint8_t iv[RT_GCM_IV_BYTES] = {0};
    memset(key, fill, sizeof key);
    CHECK(set(e, key, sizeof key, iv) == 0);
}

static void open_engines(engines *s)
{
    char why[256];
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    tcp_pair(s->fds);
    rt_engine *a = rt_engine_new(s->fds[0]), *b = rt_engine_new(s->fds[1]);
    set_key(rt_engine_set_seal_key, a, 1);
    set_key(rt_engine_set_open_key, b, 1);
    set_key(rt_engine_set_seal_key, b, 2);
    set_key(rt_engine_set_open_key, a, 2);
    start_loop(&s->a, a);
    start_loop(&s->b, b);
}

static void close_engines(engines *s)
{
    stop_loop(&s->a);
    stop_loop(&s->b);
    rt_engine_free(s->a.engine);
    rt_engine_free(s->b.engine);
    close(s->fds[0]);
    close(s->fds[1]);
}

/* A channel between two engines; `ends` are the far ends of its two local sockets.
 * Its messages are the engines' own: b reserves an id and a is told of it, so that a's
 * confirmation goes to b as a packet for its owner. Both ends are there before anything
 * is said. */
static void join_engines(engines *s, int ends[2], uint32_t window)
{
    int at_a[2], at_b[2];
    uint32_t id_a, id_b;
    stream_pair(at_a);
    stream_pair(at_b);
    CHECK(rt_engine_reserve(s->a.engine, window, 32768, RT_PRIORITY_AUTO, &id_a) == 0);
    CHECK(rt_engine_reserve(s->b.engine, window, 32768, RT_PRIORITY_AUTO, &id_b) == 0);
    rt_peer_side side_b = {id_b, window, 32768}, side_a = {id_a, window, 32768};
    CHECK(rt_engine_confirm(s->a.engine, id_a, at_a[0], &side_b) == 0);
    CHECK(rt_engine_confirm(s->b.engine, id_b, at_b[0], &side_a) == 0);
    ends[0] = at_a[1];
    ends[1] = at_b[1];
}

typedef struct {
    int fd;
    size_t len;
    uint8_t seed;
    int slow;
} flow;

static void *write_flow(void *argument)
{
    const flow *f = argument;
    uint8_t some[10000];
    for (size_t at = 0; at < f->len;) {
        size_t n = f->len - at < sizeof some ? f->len - at : sizeof some;
        for (size_t i = 0; i < n; i++)
            some[i] = (uint8_t)((at + i) * 31 + ((at + i) >> 8) + f->seed);
        ssize_t sent = send(f->fd, some, n, MSG_NOSIGNAL);
        CHECK(sent > 0);
        at += (size_t)sent;
    }
    CHECK(shutdown(f->fd, SHUT_WR) == 0);
    return NULL;
}

static void *read_flow(void *argument)
{
    const flow *f = argument;
    uint8_t some[20000];
    size_t at = 0;
    for (;;) {
        ssize_t n = recv(f->fd, some, f->slow ? 3000 : sizeof some, 0);
        CHECK(n >= 0);
        if (n == 0)
            break;
        for (size_t i = 0; i < (size_t)n; i++)
            CHECK(some[i] == (uint8_t)((at + i) * 31 + ((at + i) >> 8) + f->seed));
        at += (size_t)n;
        if (f->slow && at % 16 == 0)
            usleep(50);
    }
    CHECK_EQ(at, f->len);
    return NULL;
}

static void bytes_go_both_ways_between_two_engines_whatever_the_readers_do(void)
{
    for (uint32_t window = 1000; window <= 2u * 1024 * 1024; window *= 2048) {
        engines s;
        int ends[2];
        size_t len = window == 1000 ? BULK_BYTES / 64 : BULK_BYTES;
        pthread_t threads[4];
        open_engines(&s);
        join_engines(&s, ends, window);
        flow flows[4] = {{ends[0], len, 1, 0},
                         {ends[1], len, 2, 0},
                         {ends[0], len, 2, 1},
                         {ends[1], len, 1, 0}};
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL, i < 2 ? write_flow : read_flow,
                                 &flows[i]) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        wait_for(&s.a.ended, 1);
        wait_for(&s.b.ended, 1);
        close(ends[0]);
        close(ends[1]);
        close_engines(&s);
    }
}

static void many_channels_share_two_engines(void)
{
    enum { CHANNELS = 20 };
    engines s;
    int ends[CHANNELS][2];
    flow flows[CHANNELS][2];
    pthread_t threads[CHANNELS][2];
    open_engines(&s);
    for (int i = 0; i < CHANNELS; i++) {
        join_engines(&s, ends[i], 65536);
        flows[i][0] = (flow){ends[i][0], 300000, (uint8_t)i, 0};
        flows[i][1] = (flow){ends[i][1], 300000, (uint8_t)i, i % 2};
        CHECK(pthread_create(&threads[i][0], NULL, write_flow, &flows[i][0]) == 0);
        CHECK(pthread_create(&threads[i][1], NULL, read_flow, &flows[i][1]) == 0);
    }
    for (int i = 0; i < CHANNELS; i++) {
        CHECK(pthread_join(threads[i][0], NULL) == 0);
        CHECK(pthread_join(threads[i][1], NULL) == 0);
        close(ends[i][0]);
        close(ends[i][1]);
    }
    wait_for(&s.a.ended, CHANNELS);
    wait_for(&s.b.ended, CHANNELS);
    close_engines(&s);
}

static void a_wake_reaches_a_loop_that_waits(void)
{
    engines s;
    open_engines(&s);
    for (unsigned i = 1; i <= 100; i++) {
        rt_engine_wake(s.a.engine);
        wait_for(&s.a.woken, i);
    }
    close_engines(&s);
}

static void a_reset_is_told_to_a_loop_that_waits_even_during_a_hold(void)
{
    engines s;
    open_engines(&s);
    for (unsigned i = 1; i <= 20; i++) {
        int fds[2];
        uint32_t id;
        rt_peer_side side = {1, 1000, 1000};
        if (i == 10)
            rt_engine_hold(s.a.engine);
        stream_pair(fds);
        CHECK(rt_engine_accept(s.a.engine, fds[0], &side, 1000, 1000, RT_PRIORITY_AUTO, &id) == 0);
        CHECK(rt_engine_reset(s.a.engine, id) == 0);
        wait_for(&s.a.ended, i);
        close(fds[1]);
    }
    close_engines(&s);
}

/* ---- everything at once ---- */

#define CALLERS 4
#define ROUNDS 300

static void *call_everything(void *argument)
{
    rt_engine *e = argument;
    rt_peer_side side = {5, 100000, 1000};
    rt_channel_stats channel;
    rt_engine_stats stats;
    const uint8_t message[100] = {SAY_OTHER};
    for (int i = 0; i < ROUNDS; i++) {
        int fds[2];
        uint32_t id, other;
        stream_pair(fds);
        CHECK(rt_engine_accept(e, fds[0], &side, 1000, 1000, RT_PRIORITY_AUTO, &id) == 0);
        CHECK(send(fds[1], message, sizeof message, 0) == sizeof message);
        CHECK(rt_engine_wait_room(e) == 0);
        CHECK(rt_engine_send(e, message, sizeof message) == 0);
        CHECK(rt_engine_channel_stats(e, id, &channel) == 0);
        CHECK(rt_engine_reserve(e, 1000, 1000, RT_PRIORITY_AUTO, &other) == 0);
        rt_engine_stats_now(e, &stats);
        CHECK(stats.channels > 0);
        CHECK(rt_engine_cancel(e, other) == 0);
        CHECK(rt_engine_reset(e, id) == 0);
        close(fds[1]);
    }
    return NULL;
}

static void all_calls_may_come_from_all_threads_at_once(void)
{
    engines s;
    pthread_t callers[CALLERS];
    open_engines(&s);
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_create(&callers[i], NULL, call_everything, s.a.engine) == 0);
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_join(callers[i], NULL) == 0);
    wait_for(&s.a.ended, CALLERS * ROUNDS);
    CHECK(rt_engine_drain(s.a.engine, 10000) == 0);
    wait_for(&s.b.heard, CALLERS * ROUNDS);
    close_engines(&s);
}

static void a_failed_send_of_another_thread_reaches_a_loop_that_waits(void)
{
    char why[256];
    int fds[2];
    looped l;
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    stream_pair(fds);
    rt_engine *e = rt_engine_new(fds[0]);
    set_key(rt_engine_set_seal_key, e, 1);
    start_loop(&l, e);
    rt_engine_wake(e);
    wait_for(&l.woken, 1);
    CHECK(shutdown(fds[1], SHUT_RD) == 0);
    CHECK(rt_engine_send(e, (const uint8_t *)"\xc0", 1) == 0);
    CHECK(pthread_join(l.thread, NULL) == 0);
    CHECK_EQ(l.last.kind, RT_EV_ERROR);
    rt_engine_free(e);
    close(fds[0]);
    close(fds[1]);
}

static void *wait_for_room(void *argument)
{
    CHECK(rt_engine_wait_room(argument) == RT_ECLOSED);
    return NULL;
}

static void a_close_frees_the_loop_and_whoever_waits_for_room(void)
{
    static const uint8_t message[100000] = {SAY_OTHER};
    char why[256];
    int fds[2];
    pthread_t waiter;
    rt_engine_stats stats;
    looped l;
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    stream_pair(fds); /* nobody receives */
    rt_engine *e = rt_engine_new(fds[0]);
    set_key(rt_engine_set_seal_key, e, 1);
    start_loop(&l, e);
    do {
        CHECK(rt_engine_send(e, message, sizeof message) == 0);
        rt_engine_stats_now(e, &stats);
    } while (stats.unsent < RT_SEND_QUEUE_BYTES);
    CHECK(pthread_create(&waiter, NULL, wait_for_room, e) == 0);
    stop_loop(&l);
    CHECK(pthread_join(waiter, NULL) == 0);
    rt_engine_free(e);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    RUN(a_wake_reaches_a_loop_that_waits);
    RUN(a_reset_is_told_to_a_loop_that_waits_even_during_a_hold);
    RUN(a_failed_send_of_another_thread_reaches_a_loop_that_waits);
    RUN(a_close_frees_the_loop_and_whoever_waits_for_room);
    RUN(all_calls_may_come_from_all_threads_at_once);
    RUN(many_channels_share_two_engines);
    RUN(bytes_go_both_ways_between_two_engines_whatever_the_readers_do);
    return 0;
}
