/* The reactor with its loop on a thread of its own, over every poller. */
#include "check.h"
#include "reactor.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const rt_poller_kind KINDS[] = {RT_EPOLL, RT_POLL, RT_SELECT};

typedef struct {
    rt_reactor *reactor;
    pthread_t thread;
    rt_batch *batch;
    atomic_uint pair_ends, port_ends, eofs;
    _Atomic uint64_t consumed, readable;
} loop;

static void *loop_run(void *argument)
{
    loop *l = argument;
    int outcome;
    CHECK_EQ(rt_reactor_enter(l->reactor), 0);
    CHECK(rt_reactor_enter(l->reactor) != 0);
    while ((outcome = rt_reactor_step(l->reactor, l->batch, false)) != RT_REACTOR_CLOSED) {
        CHECK(outcome >= 0);
        for (unsigned i = 0; i < l->batch->n; i++) {
            const rt_report *report = &l->batch->reports[i];
            switch (report->kind) {
            case RT_REPORT_CONSUMED:
                l->consumed += report->n;
                break;
            case RT_REPORT_READABLE:
                l->readable += report->n;
                break;
            case RT_REPORT_EOF:
                l->eofs++;
                break;
            case RT_REPORT_PORT_END:
                l->port_ends++;
                break;
            case RT_REPORT_PAIR_END:
                l->pair_ends++;
                break;
            }
        }
    }
    rt_reactor_leave(l->reactor);
    return NULL;
}

static loop *loop_start(rt_poller_kind kind)
{
    loop *l = calloc(1, sizeof *l);
    l->batch = calloc(1, sizeof *l->batch);
    l->reactor = rt_reactor_new(kind);
    CHECK(l->reactor != NULL);
    CHECK(pthread_create(&l->thread, NULL, loop_run, l) == 0);
    return l;
}

static void loop_join(loop *l)
{
    rt_reactor_close(l->reactor);
    CHECK(pthread_join(l->thread, NULL) == 0);
    CHECK_EQ(rt_reactor_enter(l->reactor), -ESHUTDOWN);
}

static void loop_free(loop *l)
{
    rt_reactor_free(l->reactor);
    free(l->batch->arena);
    free(l->batch);
    free(l);
}

static int peer_of(int *fd)
{
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    *fd = fds[1];
    return fds[0];
}

static rt_pair *pair_start(loop *l, int peers[2])
{
    rt_end ends[2];
    memset(ends, 0, sizeof ends);
    for (int i = 0; i < 2; i++) {
        peers[i] = peer_of(&ends[i].read_fd);
        ends[i].write_fd = ends[i].read_fd;
        ends[i].is_socket = true;
    }
    rt_pair *pair = rt_pair_new(ends[0], ends[1], 0, rt_now_ns(), NULL);
    CHECK_EQ(rt_reactor_attach(l->reactor, &pair->entry), 0);
    return pair;
}

static rt_port *port_start(loop *l, int *peer)
{
    int fd;
    *peer = peer_of(&fd);
    rt_port *port = rt_port_new(fd, NULL, NULL);
    CHECK_EQ(rt_reactor_attach(l->reactor, &port->entry), 0);
    return port;
}

static void read_all(int fd, size_t n)
{
    uint8_t waste[65536];
    while (n > 0) {
        ssize_t got = read(fd, waste, n < sizeof waste ? n : sizeof waste);
        CHECK(got > 0);
        n -= (size_t)got;
    }
}

static void many_pairs_pass_bytes_at_the_same_time(void)
{
    enum { PAIRS = 100, BYTES = 40000 };
    static const uint8_t data[BYTES];
    for (size_t k = 0; k < sizeof KINDS / sizeof *KINDS; k++) {
        int peers[PAIRS][2];
        rt_pair *pairs[PAIRS];
        loop *l = loop_start(KINDS[k]);
        for (int i = 0; i < PAIRS; i++)
            pairs[i] = pair_start(l, peers[i]);
        for (int i = 0; i < PAIRS; i++)
            CHECK(write(peers[i][i & 1], data, BYTES) == BYTES);
        for (int i = 0; i < PAIRS; i++)
            read_all(peers[i][~i & 1], BYTES);
        for (int i = 0; i < PAIRS; i++) {
            close(peers[i][0]);
            close(peers[i][1]);
        }
        while (l->pair_ends < PAIRS)
            usleep(1000);
        loop_join(l);
        for (int i = 0; i < PAIRS; i++) {
            CHECK_EQ(pairs[i]->ab.bytes + pairs[i]->ba.bytes, BYTES);
            rt_pair_free(pairs[i]);
        }
        loop_free(l);
    }
}

static void fed_bytes_reach_a_reader_that_comes_late(void)
{
    enum { ROUNDS = 200, BYTES = 10000 };
    static const uint8_t data[BYTES];
    for (size_t k = 0; k < sizeof KINDS / sizeof *KINDS; k++) {
        int peer;
        loop *l = loop_start(KINDS[k]);
        rt_port *port = port_start(l, &peer);
        for (int i = 0; i < ROUNDS; i++) {
            int outcome = rt_port_feed(port, data, BYTES);
            CHECK_EQ(outcome, 1);
            rt_reactor_touch(l->reactor, &port->entry);
        }
        read_all(peer, (size_t)ROUNDS * BYTES);
        while (l->consumed < (uint64_t)ROUNDS * BYTES)
            usleep(1000);
        close(peer);
        while (l->eofs == 0)
            usleep(1000);
        loop_join(l);
        CHECK_EQ(l->port_ends, 1);
        rt_port_free(port);
        loop_free(l);
    }
}

/* Entries come and go from several threads while events for them are under way. */
enum { THREADS = 4, VISITS = 300 };

typedef struct {
    loop *l;
    pthread_t thread;
    rt_port *ports[VISITS];
    rt_pair *pairs[VISITS];
} visitor;

static void *come_and_go(void *argument)
{
    visitor *v = argument;
    loop *l = v->l;
    for (int i = 0; i < VISITS; i++) {
        int peers[2], peer;
        rt_port *port = v->ports[i] = port_start(l, &peer);
        rt_pair *pair = v->pairs[i] = pair_start(l, peers);
        CHECK(rt_port_grant(port, 5) == 1);
        rt_reactor_touch(l->reactor, &port->entry);
        CHECK(write(peer, "hello", 5) == 5);
        CHECK(write(peers[0], "hello", 5) == 5);
        if (i % 3 != 0)
            read_all(peers[1], 5);
        rt_reactor_abort(l->reactor, &port->entry);
        rt_reactor_abort(l->reactor, &pair->entry);
        char byte;
        while (read(peer, &byte, 1) > 0)
            continue;
        while (read(peers[1], &byte, 1) > 0)
            continue;
        close(peer);
        close(peers[0]);
        close(peers[1]);
    }
    return NULL;
}

static void entries_come_and_go_from_many_threads(void)
{
    visitor *visitors = calloc(THREADS, sizeof *visitors);
    loop *l = loop_start(RT_EPOLL);
    for (int i = 0; i < THREADS; i++) {
        visitors[i].l = l;
        CHECK(pthread_create(&visitors[i].thread, NULL, come_and_go, &visitors[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(visitors[i].thread, NULL) == 0);
    loop_join(l);
    CHECK_EQ(l->pair_ends, THREADS * VISITS);
    CHECK_EQ(l->port_ends, THREADS * VISITS);
    for (int i = 0; i < THREADS * VISITS; i++) {
        rt_port_free(visitors[i / VISITS].ports[i % VISITS]);
        rt_pair_free(visitors[i / VISITS].pairs[i % VISITS]);
    }
    free(visitors);
    loop_free(l);
}

static void a_closed_reactor_takes_nothing_more(void)
{
    int fd, peer = peer_of(&fd);
    loop *l = loop_start(RT_EPOLL);
    rt_reactor_close(l->reactor);
    rt_port *port = rt_port_new(fd, NULL, NULL);
    CHECK_EQ(rt_reactor_attach(l->reactor, &port->entry), -ESHUTDOWN);
    CHECK(fcntl(fd, F_GETFD) >= 0);
    rt_port_free(port);
    close(fd);
    close(peer);
    loop_join(l);
    loop_free(l);
}

static void what_is_left_is_reset_with_the_reactor(void)
{
    int peer, peers[2];
    loop *l = loop_start(RT_EPOLL);
    rt_port *port = port_start(l, &peer);
    rt_pair *pair = pair_start(l, peers);
    loop_join(l);
    CHECK_EQ(l->port_ends, 1);
    CHECK_EQ(l->pair_ends, 1);
    CHECK_EQ(port->entry.error, ECONNABORTED);
    CHECK_EQ(pair->entry.error, ECONNABORTED);
    rt_port_free(port);
    rt_pair_free(pair);
    loop_free(l);
    close(peer);
    close(peers[0]);
    close(peers[1]);
}

int main(void)
{
    RUN(many_pairs_pass_bytes_at_the_same_time);
    RUN(fed_bytes_reach_a_reader_that_comes_late);
    RUN(entries_come_and_go_from_many_threads);
    RUN(a_closed_reactor_takes_nothing_more);
    RUN(what_is_left_is_reset_with_the_reactor);
    return 0;
}
