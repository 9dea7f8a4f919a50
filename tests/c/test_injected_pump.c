/* Each allocation and system call of the pump fails, once, in every way that it may: docs/faults.md
 * says what must happen then. Never is there a crash, a leak or an open descriptor, nor a
 * wrong byte, nor an end of stream in place of bytes that are missing. */
#include "check.h"
#include "faults.h"
#include "reactor.h"
#include "sockets.h"

#include <errno.h>
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

typedef struct {
    rt_pair *core;
    int apps[2];
    int taken, over, error;
    size_t sent[2], got[2]; /* by the app of this number */
    int end[2];             /* what it saw: 0 nothing, 1 end of stream, -1 a reset */
} pair;

static bool splices;

static uint8_t byte_at(size_t at, unsigned seed)
{
    return (uint8_t)(at * 31 + (at >> 8) + seed * 101);
}

static void app_sends(pair *p, int side)
{
    uint8_t some[8192];
    size_t n = DATA_BYTES - p->sent[side] < sizeof some ? DATA_BYTES - p->sent[side]
                                                        : sizeof some;
    for (size_t i = 0; i < n; i++)
        some[i] = byte_at(p->sent[side] + i, (unsigned)side);
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
    for (ssize_t i = 0; i < n; i++)
        CHECK_EQ(some[i], byte_at(p->got[side] + (size_t)i, (unsigned)!side));
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
        tcp_pair(fds);
        p->apps[i] = fds[0];
        ends[i].read_fd = ends[i].write_fd = fds[1];
        ends[i].is_socket = true;
    }
    faults_begin();
    p->core = rt_pair_new(ends[0], ends[1], 0, rt_now_ns(), p);
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
                app_reads(&pairs[i], side);
            }
        faults_begin();
        outcome = rt_reactor_step(reactor, batch, false);
        faults_end();
        take_reports(batch);
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

int main(void)
{
    RUN(a_reactor_is_made_or_the_errno_says_why_not);
    RUN(bytes_of_pairs_arrive_exactly_or_one_pair_ends_with_an_error);
    return 0;
}
