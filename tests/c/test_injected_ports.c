/* Each allocation and system call of a port fails in mid-stream, once, in every way that
 * it may: docs/faults.md says what must happen then.
 *
 * The owner feeds back what two ports bring; who is at the other end reads it late. So
 * bytes are granted, reported, written at once, queued, and written later. */
#include "check.h"
#include "faults.h"
#include "pattern.h"
#include "reactor.h"
#include "sockets.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORTS 2u
#define DATA_BYTES 100000u
#define READS_FROM 20 /* the step */
#define RESETS_AT 5
#define STEPS_MAX 20000

typedef struct {
    rt_port *core;
    int app; /* the other end of its socket */
    int taken, over, error, was_reset;
    size_t sent, fed, consumed, got;
    int end; /* what the app saw: 1 end of stream, -1 a reset */
} port;

static rt_poller_kind poller;
static uint64_t bytes_per_s; /* 0: no limit */
static int closes;           /* ends with close, else with the end of the stream */
static int is_reset;         /* the first app resets its connection */

static void app_sends(port *p, unsigned stream)
{
    uint8_t some[8192];
    size_t left = DATA_BYTES - p->sent;
    size_t n = left < sizeof some ? left : sizeof some;
    if (n == 0 || p->end != 0)
        return;
    fill_bytes(some, n, p->sent, stream);
    ssize_t done = send(p->app, some, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (done < 0 && errno != EAGAIN)
        p->end = -1; /* a reset is told once: by this call, or by recv */
    if (done <= 0)
        return;
    p->sent += (size_t)done;
    if (p->sent == DATA_BYTES)
        (void)shutdown(p->app, SHUT_WR);
}

static void app_reads(port *p, unsigned stream)
{
    uint8_t some[8192];
    if (p->end != 0)
        return;
    ssize_t n = recv(p->app, some, sizeof some, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        p->end = n == 0 ? 1 : -1;
        return;
    }
    check_bytes(some, (size_t)n, p->got, stream);
    p->got += (size_t)n;
}

static void app_resets(port *p)
{
    const struct linger hard = {.l_onoff = 1, .l_linger = 0};
    CHECK(setsockopt(p->app, SOL_SOCKET, SO_LINGER, &hard, sizeof hard) == 0);
    close(p->app);
    p->was_reset = 1;
    p->end = -1;
}

static void port_start(port *p, rt_reactor *reactor, rt_rate *rate)
{
    int fds[2];
    memset(p, 0, sizeof *p);
    small_tcp_pair(fds);
    p->app = fds[1];
    faults_begin();
    p->core = rt_port_new(fds[0], rate, p);
    if (p->core != NULL)
        p->taken = rt_reactor_attach(reactor, &p->core->entry) == 0;
    if (p->taken && rt_port_grant(p->core, 2 * DATA_BYTES) == 1)
        rt_reactor_touch(reactor, &p->core->entry);
    faults_end();
    CHECK(p->taken || faults_fired() != NULL);
    if (!p->taken) {
        close(fds[0]); /* it is still ours */
        p->over = 1;
    }
}

/* The owner: what came goes back, and so does the end. */
static void take_report(port *p, unsigned stream, const rt_report *report)
{
    int is_new = 0;
    CHECK(!p->over);
    switch (report->kind) {
    case RT_REPORT_READABLE:
        check_bytes(report->data, (size_t)report->n, p->fed, stream);
        p->fed += (size_t)report->n;
        is_new = rt_port_feed(p->core, report->data, (size_t)report->n);
        break;
    case RT_REPORT_CONSUMED:
        p->consumed += (size_t)report->n;
        CHECK(p->consumed <= p->fed);
        break;
    case RT_REPORT_EOF:
        CHECK(p->fed == DATA_BYTES);
        is_new = closes ? rt_port_close(p->core) : rt_port_feed_eof(p->core);
        break;
    default:
        CHECK(report->kind == RT_REPORT_PORT_END);
        p->over = 1;
        p->error = report->error;
    }
    CHECK(is_new >= 0);
    if (is_new)
        rt_reactor_touch(p->core->entry.reactor, &p->core->entry);
}

static int all_over(const port *ports)
{
    for (unsigned i = 0; i < PORTS; i++)
        if (!ports[i].over)
            return 0;
    return 1;
}

/* Returns whether the port broke. */
static int check_end(port *p, unsigned stream)
{
    while (p->taken && p->end == 0)
        app_reads(p, stream);
    if (!p->taken)
        return 1;
    /* EPIPE said that the app takes no more; it is told nothing of what it did not. */
    int takes_no_more = faults_fired_by("sendmsg: EPIPE");
    if (p->end == 1)
        CHECK(p->got == DATA_BYTES || takes_no_more);
    if (p->error == 0) {
        CHECK(!p->was_reset && p->end == 1);
        CHECK(p->fed == DATA_BYTES && p->consumed == DATA_BYTES);
    }
    return p->error != 0 && !p->was_reset;
}

static void move_bytes(void)
{
    port ports[PORTS];
    int broken = 0, closed = 0; /* with errors that end the loop, its owner closes it */
    rt_batch *batch = calloc(1, sizeof *batch);
    rt_reactor *reactor = rt_reactor_new(poller);
    CHECK(batch != NULL && reactor != NULL && rt_reactor_enter(reactor) == 0);
    faults_begin();
    rt_rate *rate = bytes_per_s > 0 ? rt_rate_new(bytes_per_s, rt_now_ns()) : NULL;
    faults_end();
    CHECK(rate != NULL || bytes_per_s == 0 || faults_fired() != NULL);
    for (unsigned i = 0; i < PORTS; i++)
        port_start(&ports[i], reactor, rate);
    for (int step = 0; !all_over(ports); step++) {
        CHECK(step < STEPS_MAX);
        if (is_reset && step == RESETS_AT && ports[0].taken)
            app_resets(&ports[0]);
        for (unsigned i = 0; i < PORTS; i++) {
            app_sends(&ports[i], i);
            if (step >= READS_FROM)
                app_reads(&ports[i], i);
        }
        faults_begin();
        int outcome = rt_reactor_step(reactor, batch, false);
        for (unsigned i = 0; i < batch->n; i++) {
            port *p = batch->reports[i].owner;
            take_report(p, (unsigned)(p - ports), &batch->reports[i]);
        }
        if (outcome < 0 && !closed) {
            CHECK(outcome == -ENOMEM && faults_fired() != NULL);
            closed = 1;
            rt_reactor_close(reactor);
        }
        faults_end();
        if (outcome == RT_REACTOR_INTERRUPTED && rate != NULL)
            usleep(500); /* in place of its wait */
    }
    for (unsigned i = 0; i < PORTS; i++) {
        broken += check_end(&ports[i], i);
        if (!ports[i].was_reset)
            close(ports[i].app);
        if (ports[i].core != NULL)
            rt_port_free(ports[i].core);
    }
    CHECK(broken == 0 || faults_fired() != NULL);
    CHECK(broken <= 1 || closed); /* the others go on */
    rt_reactor_leave(reactor);
    rt_reactor_free(reactor);
    if (rate != NULL)
        rt_rate_release(rate);
    free(batch->arena);
    free(batch);
}

static void what_a_port_brings_is_exact_or_it_ends_with_an_error(void)
{
    for (poller = RT_EPOLL; poller <= RT_SELECT; poller++)
        CHECK(faults_exhaust(move_bytes) > 50);
    poller = RT_EPOLL;
}

static void the_same_with_a_rate(void)
{
    bytes_per_s = 1000000000;
    CHECK(faults_exhaust(move_bytes) > 50);
    bytes_per_s = 0;
}

static void the_same_when_the_owner_closes(void)
{
    closes = 1;
    CHECK(faults_exhaust(move_bytes) > 50);
    closes = 0;
}

static void the_same_beside_a_port_that_is_reset(void)
{
    is_reset = 1;
    CHECK(faults_exhaust(move_bytes) > 50);
    is_reset = 0;
}

int main(void)
{
    faults_never_wait(true);
    RUN(what_a_port_brings_is_exact_or_it_ends_with_an_error);
    RUN(the_same_with_a_rate);
    RUN(the_same_when_the_owner_closes);
    RUN(the_same_beside_a_port_that_is_reset);
    return 0;
}
