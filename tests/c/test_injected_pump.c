/* Each allocation and system call of the pump fails, once, in every way that it may:
 * docs/faults.md says what must happen then. Never is there a crash, a leak or an open descriptor, nor a
 * wrong byte, nor an end of stream in place of bytes that are missing. */
#include "check.h"
#include "faults.h"
#include "pattern.h"
#include "reactor.h"
#include "sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- what is made ---- */

static rt_poller_kind poller;

static void make_a_reactor(void)
{
    faults_begin();
    errno = 0;
    rt_reactor *reactor = rt_reactor_new(poller);
    if (reactor != NULL)
        rt_reactor_free(reactor);
    faults_end();
    CHECK((reactor == NULL) == (faults_fired() != NULL));
    CHECK(reactor != NULL || errno != 0);
}

static void a_reactor_is_made_or_the_errno_says_why_not(void)
{
    for (poller = RT_EPOLL; poller <= RT_SELECT; poller++)
        CHECK(faults_exhaust(make_a_reactor) > 3);
}

/* ---- pairs that move bytes ---- */

#define DATA_BYTES 50000u
#define PAIRS 2
#define STEPS_MAX 20000
#define READS_FROM 20 /* the step */

typedef struct {
    rt_pair *core;
    int apps[2];
    int taken, over, error;
    size_t sent[2], got[2]; /* by the app of this number */
    int end[2];             /* what it saw: 0 nothing, 1 end of stream, -1 a reset */
} pair;

static bool splices;
static int reads_late;       /* so that bytes are buffered */
static uint64_t bytes_per_s; /* 0: no limit */

static void app_sends(pair *p, int side)
{
    uint8_t some[8192];
    size_t n = DATA_BYTES - p->sent[side] < sizeof some ? DATA_BYTES - p->sent[side]
                                                        : sizeof some;
    fill_bytes(some, n, p->sent[side], (unsigned)side);
    ssize_t done = n == 0 ? 0 : send(p->apps[side], some, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (done < 0 && errno != EAGAIN)
        p->end[side] = -1; /* a reset is told once: by this call, or by recv */
    if (done <= 0)
        return;
    p->sent[side] += (size_t)done;
    if (p->sent[side] == DATA_BYTES)
        (void)shutdown(p->apps[side], SHUT_WR);
}

static void app_reads(pair *p, int side)
{
    uint8_t some[8192];
    if (p->end[side] != 0)
        return;
    ssize_t n = recv(p->apps[side], some, sizeof some, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        p->end[side] = n == 0 ? 1 : -1;
        return;
    }
    check_bytes(some, (size_t)n, p->got[side], (unsigned)!side);
    p->got[side] += (size_t)n;
    CHECK(p->got[side] <= DATA_BYTES);
}

static void pair_start(pair *p, rt_reactor *reactor)
{
    rt_end ends[2];
    memset(p, 0, sizeof *p);
    memset(ends, 0, sizeof ends);
    for (int i = 0; i < 2; i++) {
        int fds[2];
        (reads_late ? small_tcp_pair : tcp_pair)(fds);
        p->apps[i] = fds[1];
        ends[i].read_fd = ends[i].write_fd = fds[0];
        ends[i].is_socket = true;
    }
    faults_begin();
    p->core = rt_pair_new(ends[0], ends[1], bytes_per_s, rt_now_ns(), p);
    if (p->core != NULL) {
        p->core->ab.splice = p->core->ba.splice = splices;
        p->taken = rt_reactor_attach(reactor, &p->core->entry) == 0;
    }
    faults_end();
    CHECK(p->taken || faults_fired() != NULL);
    if (!p->taken) { /* they are still ours */
        close(ends[0].read_fd);
        close(ends[1].read_fd);
        p->over = 1;
    }
}

static int all_over(const pair *pairs)
{
    for (int i = 0; i < PAIRS; i++)
        if (!pairs[i].over)
            return 0;
    return 1;
}

static void take_reports(const rt_batch *batch)
{
    for (unsigned i = 0; i < batch->n; i++) {
        pair *p = batch->reports[i].owner;
        CHECK(batch->reports[i].kind == RT_REPORT_PAIR_END && !p->over);
        p->over = 1;
        p->error = batch->reports[i].error;
    }
}

static void move_bytes(void)
{
    pair pairs[PAIRS];
    rt_batch *batch = calloc(1, sizeof *batch);
    rt_reactor *reactor = rt_reactor_new(poller);
    CHECK(batch != NULL && reactor != NULL && rt_reactor_enter(reactor) == 0);
    for (int i = 0; i < PAIRS; i++)
        pair_start(&pairs[i], reactor);
    int outcome = RT_REACTOR_REPORTS;
    int closed = 0; /* with errors that end the loop, its owner closes it */
    for (int step = 0; !all_over(pairs); step++) {
        CHECK(step < STEPS_MAX);
        for (int i = 0; i < PAIRS; i++)
            for (int side = 0; side < 2; side++) {
                app_sends(&pairs[i], side);
                if (!reads_late || step >= READS_FROM)
                    app_reads(&pairs[i], side);
            }
        faults_begin();
        outcome = rt_reactor_step(reactor, batch, false);
        faults_end();
        take_reports(batch);
        if (outcome == RT_REACTOR_INTERRUPTED && bytes_per_s != 0)
            usleep(500); /* in place of its wait */
        if (outcome < 0 && !closed) {
            CHECK(outcome == -ENOMEM && faults_fired() != NULL);
            closed = 1;
            rt_reactor_close(reactor);
        }
    }
    int broken = 0;
    for (int i = 0; i < PAIRS; i++) {
        pair *p = &pairs[i];
        for (int side = 0; side < 2; side++) {
            while (p->taken && p->end[side] == 0)
                app_reads(p, side);
            /* An end of stream is the end of all of it. */
            if (p->taken && p->end[side] == 1)
                CHECK(p->got[side] == DATA_BYTES || p->error == EPIPE);
            if (p->taken && p->error == 0)
                CHECK(p->got[side] == DATA_BYTES && p->end[side] == 1);
            close(p->apps[side]);
        }
        broken += !p->taken || p->error != 0;
        if (p->core != NULL)
            rt_pair_free(p->core);
    }
    CHECK(broken == 0 || faults_fired() != NULL);
    CHECK(broken <= 1 || closed); /* the others go on */
    rt_reactor_leave(reactor);
    rt_reactor_free(reactor);
    free(batch);
}

static void bytes_of_pairs_arrive_exactly_or_one_pair_ends_with_an_error(void)
{
    faults_never_wait(true);
    for (poller = RT_EPOLL; poller <= RT_SELECT; poller++)
        for (int i = 0; i < 2; i++) {
            splices = i == 0;
            CHECK(faults_exhaust(move_bytes) > 20);
        }
    faults_never_wait(false);
}

static void the_same_with_bytes_that_are_buffered(void)
{
    faults_never_wait(true);
    reads_late = 1;
    for (int i = 0; i < 2; i++) {
        splices = i == 0;
        CHECK(faults_exhaust(move_bytes) > 20);
    }
    reads_late = 0;
    faults_never_wait(false);
}

static void the_same_with_a_rate(void)
{
    faults_never_wait(true);
    bytes_per_s = 1000000000;
    CHECK(faults_exhaust(move_bytes) > 20);
    bytes_per_s = 0;
    faults_never_wait(false);
}

/* ---- pipes, which end but cannot be reset ---- */

static void fill_a_pipe(void)
{
    int sockets[2], in[2], out[2], over = 0, error = 0;
    uint8_t some[8192];
    size_t sent = 0, got = 0;
    tcp_pair(sockets);
    CHECK(pipe(in) == 0 && pipe(out) == 0);
    CHECK(close(in[1]) == 0); /* the pipe has nothing to say */
    CHECK(fcntl(out[0], F_SETFL, O_NONBLOCK) == 0);
    rt_batch *batch = calloc(1, sizeof *batch);
    rt_reactor *reactor = rt_reactor_new(RT_EPOLL);
    CHECK(batch != NULL && reactor != NULL && rt_reactor_enter(reactor) == 0);
    const rt_end socket_end = {sockets[0], sockets[0], true, false, false};
    const rt_end pipe_end = {in[0], out[1], false, false, false};
    faults_begin();
    rt_pair *core = rt_pair_new(socket_end, pipe_end, 0, rt_now_ns(), NULL);
    int taken = 0;
    if (core != NULL) {
        core->ab.splice = core->ba.splice = false;
        taken = rt_reactor_attach(reactor, &core->entry) == 0;
    }
    faults_end();
    for (int step = 0; taken && !over; step++) {
        CHECK(step < STEPS_MAX);
        size_t n = DATA_BYTES - sent < sizeof some ? DATA_BYTES - sent : sizeof some;
        fill_bytes(some, n, sent, 0);
        ssize_t done = n == 0 ? 0 : send(sockets[1], some, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        sent += done > 0 ? (size_t)done : 0;
        if (sent == DATA_BYTES)
            (void)shutdown(sockets[1], SHUT_WR);
        faults_begin();
        CHECK(rt_reactor_step(reactor, batch, false) >= 0);
        faults_end();
        for (unsigned i = 0; i < batch->n; i++) {
            over = 1;
            error = batch->reports[i].error;
        }
        for (ssize_t m; (m = read(out[0], some, sizeof some)) > 0; got += (size_t)m)
            check_bytes(some, (size_t)m, got, 0);
    }
    CHECK((taken && error == 0) || faults_fired() != NULL);
    CHECK(!taken || error != 0 || got == DATA_BYTES);
    if (!taken) { /* they are still ours */
        close(sockets[0]);
        close(in[0]);
        close(out[1]);
    }
    if (core != NULL)
        rt_pair_free(core);
    rt_reactor_leave(reactor);
    rt_reactor_free(reactor);
    free(batch);
    close(sockets[1]);
    close(out[0]);
}

static void the_same_into_a_pipe(void)
{
    faults_never_wait(true);
    CHECK(faults_exhaust(fill_a_pipe) > 20);
    faults_never_wait(false);
}

int main(void)
{
    RUN(a_reactor_is_made_or_the_errno_says_why_not);
    RUN(bytes_of_pairs_arrive_exactly_or_one_pair_ends_with_an_error);
    RUN(the_same_with_bytes_that_are_buffered);
    RUN(the_same_with_a_rate);
    RUN(the_same_into_a_pipe);
    return 0;
}
