/* Pairs and ports, stepped by hand: every event is delivered when the test says so. */
#include "check.h"
#include "port.h"
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVERYTHING = 0x3333 }; /* IN and OUT of all four descriptors */

static void unix_pair(int fds[2])
{
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
}

static void tcp_pair(int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0);
    CHECK(listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(connect(fds[0], (struct sockaddr *)&address, size) == 0);
    fds[1] = accept(listener, NULL, NULL);
    CHECK(fds[1] >= 0);
    close(listener);
}

static rt_end socket_end(int fd)
{
    rt_end end = {.read_fd = fd, .write_fd = fd, .is_socket = true};
    CHECK_EQ(rt_end_prepare(&end), 0);
    return end;
}

/* peer[0] <-> pair <-> peer[1] */
typedef struct {
    rt_io io;
    rt_pair *pair;
    int peer[2];
} rig;

static rig rig_new(void (*make)(int fds[2]), uint64_t rate)
{
    rig r;
    int a[2], b[2];
    make(a);
    make(b);
    rt_io_init(&r.io, -1);
    r.pair = rt_pair_new(socket_end(a[1]), socket_end(b[1]), rate, 0, NULL);
    CHECK(r.pair != NULL);
    r.peer[0] = a[0];
    r.peer[1] = b[0];
    for (int i = 0; i < 2; i++)
        CHECK(fcntl(r.peer[i], F_SETFL, O_NONBLOCK) == 0);
    return r;
}

static int rig_step(rig *r)
{
    int outcome = rt_pair_step(r->pair, EVERYTHING, &r->io, 1);
    rt_io_leave(&r->io);
    return outcome;
}

static void rig_free(rig *r)
{
    rt_pair_close(r->pair, &r->io);
    rt_pair_free(r->pair);
    rt_io_free(&r->io);
    close(r->peer[0]);
    close(r->peer[1]);
}

/* Send `total` bytes through and compare; both ends get what they can take, by turns. */
static void transfer(rig *r, int from, int to, size_t total)
{
    static uint8_t chunk[30011], got[30011];
    size_t sent = 0, received = 0;
    for (size_t i = 0; i < sizeof chunk; i++)
        chunk[i] = (uint8_t)(i * 7 + i / 251);
    while (received < total) {
        size_t offset = sent % sizeof chunk;
        size_t n = sizeof chunk - offset;
        if (n > total - sent)
            n = total - sent;
        ssize_t done = n == 0 ? 0 : send(r->peer[from], chunk + offset, n, MSG_NOSIGNAL);
        sent += done > 0 ? (size_t)done : 0;
        CHECK(rig_step(r) != RT_STEP_ENDED);
        n = 1 + received % sizeof got;
        done = recv(r->peer[to], got, n, 0);
        for (ssize_t i = 0; i < done; i++)
            CHECK_EQ(got[i], chunk[(received + (size_t)i) % sizeof chunk]);
        received += done > 0 ? (size_t)done : 0;
    }
    const rt_flow *flow = from == 0 ? &r->pair->ab : &r->pair->ba;
    CHECK_EQ(flow->bytes, total);
}

static void bytes_pass_exactly_by_splice(void)
{
    void (*const make[])(int[2]) = {unix_pair, tcp_pair};
    for (int i = 0; i < 2; i++) {
        rig r = rig_new(make[i], 0);
        transfer(&r, 0, 1, 3000000);
        transfer(&r, 1, 0, 3000000);
        CHECK(r.pair->ab.splice && r.pair->ba.splice);
        rig_free(&r);
    }
}

static void bytes_pass_exactly_by_copy(void)
{
    rig r = rig_new(tcp_pair, 0);
    r.pair->ab.splice = r.pair->ba.splice = false;
    transfer(&r, 0, 1, 3000000);
    transfer(&r, 1, 0, 3000000);
    rig_free(&r);
}

/* splice(2) answers EINVAL for a target in append mode: by then the pipe is full. */
static void a_sink_that_cannot_be_spliced_to_gets_the_piped_bytes_by_copy(void)
{
    rig r = rig_new(unix_pair, 0);
    CHECK(fcntl(r.pair->entry.ends[1].write_fd, F_SETFL, O_NONBLOCK | O_APPEND) == 0);
    transfer(&r, 0, 1, 1000000);
    CHECK(!r.pair->ab.splice);
    transfer(&r, 1, 0, 1000000);
    CHECK(r.pair->ba.splice);
    rig_free(&r);
}

static void an_idle_pair_holds_no_pipe_and_no_memory(void)
{
    rig r = rig_new(tcp_pair, 0);
    transfer(&r, 0, 1, 100000);
    CHECK_EQ(r.pair->ab.pipe.read_fd, -1);
    CHECK(r.pair->ab.ring.data == NULL);
    CHECK_EQ(r.io.spares, 1);
    rig_free(&r);
}

static void each_end_of_stream_is_passed_on_once_and_both_end_the_pair(void)
{
    char byte;
    rig r = rig_new(tcp_pair, 0);
    CHECK(send(r.peer[0], "x", 1, 0) == 1);
    CHECK(shutdown(r.peer[0], SHUT_WR) == 0);
    CHECK_EQ(rig_step(&r), 0);
    CHECK(recv(r.peer[1], &byte, 1, 0) == 1 && byte == 'x');
    CHECK(recv(r.peer[1], &byte, 1, 0) == 0);
    CHECK(r.pair->ab.state == RT_FLOW_DONE);
    transfer(&r, 1, 0, 50000);
    CHECK(shutdown(r.peer[1], SHUT_WR) == 0);
    CHECK_EQ(rig_step(&r), RT_STEP_ENDED);
    CHECK_EQ(r.pair->entry.error, 0);
    rig_free(&r);
}

static void a_reset_reaches_the_other_side_as_a_reset(void)
{
    const struct linger now = {1, 0};
    char byte;
    rig r = rig_new(tcp_pair, 0);
    CHECK(setsockopt(r.peer[0], SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
    close(r.peer[0]);
    r.peer[0] = -1;
    CHECK_EQ(rig_step(&r), RT_STEP_ENDED);
    CHECK_EQ(r.pair->entry.error, ECONNRESET);
    rt_pair_close(r.pair, &r.io);
    CHECK(recv(r.peer[1], &byte, 1, 0) < 0 && errno == ECONNRESET);
    rig_free(&r);
}

/* SIGPIPE has its default action here: one that came through would end the program. */
static void a_sink_without_reader_is_a_broken_pair_and_no_signal(void)
{
    for (int copy = 0; copy < 2; copy++) {
        rig r = rig_new(unix_pair, 0);
        r.pair->ab.splice = copy == 0;
        CHECK(shutdown(r.peer[1], SHUT_RD) == 0);
        CHECK(send(r.peer[0], "lost", 4, MSG_NOSIGNAL) == 4);
        CHECK_EQ(rig_step(&r), 0);
        CHECK(r.pair->ab.state == RT_FLOW_BROKEN);
        /* The other direction is whole, and goes on to its end. */
        transfer(&r, 1, 0, 10000);
        CHECK(shutdown(r.peer[1], SHUT_WR) == 0);
        CHECK_EQ(rig_step(&r), RT_STEP_ENDED);
        CHECK_EQ(r.pair->entry.error, EPIPE);
        rig_free(&r);
    }
}

static void a_pipe_without_reader_raises_no_signal(void)
{
    int in[2], out[2], sockets[2];
    rt_io io;
    rt_io_init(&io, -1);
    CHECK(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
    unix_pair(sockets);
    rt_end pipes = {.read_fd = in[0], .write_fd = out[1], .is_socket = false};
    CHECK_EQ(rt_end_prepare(&pipes), 0);
    rt_pair *pair = rt_pair_new(socket_end(sockets[1]), pipes, 0, 0, NULL);
    close(out[0]);
    CHECK(send(sockets[0], "lost", 4, 0) == 4);
    close(in[1]);
    CHECK_EQ(rt_pair_step(pair, EVERYTHING, &io, 1), RT_STEP_ENDED);
    rt_io_leave(&io);
    CHECK_EQ(pair->entry.error, EPIPE);
    rt_pair_close(pair, &io);
    rt_pair_free(pair);
    rt_io_free(&io);
    close(sockets[0]);
}

static void a_limited_pair_moves_what_its_bucket_holds_and_says_when_more(void)
{
    static uint8_t data[100000];
    rig r = rig_new(unix_pair, 1000000);
    uint64_t now = 0, moved = 0;
    for (int i = 0; i < 200; i++) {
        while (send(r.peer[0], data, sizeof data, MSG_NOSIGNAL) > 0)
            continue;
        int outcome = rt_pair_step(r.pair, EVERYTHING, &r.io, now);
        CHECK_EQ(outcome, RT_STEP_WAIT);
        CHECK(r.pair->entry.due_ns > now);
        CHECK(r.pair->ab.bytes <= now / 1000);
        now = r.pair->entry.due_ns;
        for (ssize_t n; (n = recv(r.peer[1], data, sizeof data, 0)) > 0;)
            moved += (uint64_t)n;
    }
    rt_io_leave(&r.io);
    CHECK(moved >= now / 1000 * 95 / 100);
    rig_free(&r);
}

/* Ports. */

typedef struct {
    rt_io io;
    rt_port *port;
    rt_batch *batch;
    int peer;
} port_rig;

static port_rig port_rig_new(void)
{
    port_rig r;
    int fds[2];
    unix_pair(fds);
    rt_io_init(&r.io, -1);
    socket_end(fds[1]);
    r.port = rt_port_new(fds[1], NULL, NULL);
    r.batch = calloc(1, sizeof *r.batch);
    r.peer = fds[0];
    CHECK(r.port != NULL && r.batch != NULL);
    CHECK(fcntl(r.peer, F_SETFL, O_NONBLOCK) == 0);
    return r;
}

static int port_rig_step(port_rig *r)
{
    r->batch->n = 0;
    r->batch->arena_used = 0;
    return rt_port_step(r->port, EVERYTHING, r->batch, 1);
}

static void port_rig_free(port_rig *r)
{
    rt_port_end(r->port, &r->io);
    rt_port_free(r->port);
    free(r->batch->arena);
    free(r->batch);
    close(r->peer);
}

static void a_port_reads_no_more_than_was_granted(void)
{
    port_rig r = port_rig_new();
    CHECK(send(r.peer, "abcdefgh", 8, 0) == 8);
    CHECK_EQ(port_rig_step(&r), 0);
    CHECK_EQ(r.batch->n, 0);
    CHECK_EQ(rt_port_grant(r.port, 5), 1);
    CHECK_EQ(port_rig_step(&r), RT_STEP_MORE);
    CHECK_EQ(r.batch->n, 1);
    CHECK_EQ(r.batch->reports[0].n, 5);
    CHECK(memcmp(r.batch->reports[0].data, "abcde", 5) == 0);
    CHECK_EQ(port_rig_step(&r), 0);
    CHECK_EQ(r.batch->n, 0);
    CHECK_EQ(rt_port_grant(r.port, RT_GRANT_MAX), 1);
    CHECK_EQ(rt_port_grant(r.port, 1), -ERANGE);
    port_rig_free(&r);
}

static void a_port_notices_the_end_of_the_stream_without_a_grant(void)
{
    port_rig r = port_rig_new();
    CHECK(shutdown(r.peer, SHUT_WR) == 0);
    CHECK_EQ(port_rig_step(&r), 0);
    CHECK_EQ(r.batch->n, 1);
    CHECK_EQ(r.batch->reports[0].kind, RT_REPORT_EOF);
    CHECK_EQ(port_rig_step(&r), 0);
    CHECK_EQ(r.batch->n, 0);
    port_rig_free(&r);
}

static void fed_bytes_wait_behind_a_full_socket_and_are_counted_once(void)
{
    static uint8_t data[100000], got[100000];
    port_rig r = port_rig_new();
    uint64_t fed = 0, consumed = 0, received = 0;
    for (int i = 0; i < 30; i++, fed += sizeof data)
        CHECK_EQ(rt_port_feed(r.port, data, sizeof data), 1);
    CHECK(rt_port_buffered(r.port) > 0);
    CHECK_EQ(rt_port_feed_eof(r.port), 1);
    CHECK_EQ(rt_port_feed(r.port, data, 1), -ESHUTDOWN);
    while (received < fed) {
        CHECK(port_rig_step(&r) != RT_STEP_ENDED);
        for (unsigned i = 0; i < r.batch->n; i++)
            consumed += r.batch->reports[i].n;
        for (ssize_t n; (n = recv(r.peer, got, sizeof got, 0)) > 0;)
            received += (uint64_t)n;
    }
    port_rig_step(&r);
    CHECK_EQ(consumed, fed);
    CHECK_EQ(rt_port_buffered(r.port), 0);
    CHECK(r.port->queue.data == NULL);
    CHECK(recv(r.peer, got, 1, 0) == 0);
    port_rig_free(&r);
}

static void a_port_refuses_more_than_its_wall(void)
{
    port_rig r = port_rig_new();
    uint8_t *data = calloc(1, RT_PORT_BUFFER_MAX);
    CHECK_EQ(rt_port_feed(r.port, data, RT_PORT_BUFFER_MAX), 1);
    CHECK_EQ(rt_port_feed(r.port, data, RT_PORT_BUFFER_MAX), -ENOBUFS);
    free(data);
    port_rig_free(&r);
}

static void what_cannot_be_written_is_still_reported_as_consumed(void)
{
    port_rig r = port_rig_new();
    CHECK(send(r.peer, "bye", 3, 0) == 3);
    CHECK(shutdown(r.peer, SHUT_RD) == 0);
    CHECK_EQ(rt_port_feed(r.port, (const uint8_t *)"lost", 4), 1);
    CHECK_EQ(rt_port_grant(r.port, 100), 1);
    CHECK_EQ(port_rig_step(&r), RT_STEP_MORE);
    CHECK_EQ(r.batch->reports[0].kind, RT_REPORT_CONSUMED);
    CHECK_EQ(r.batch->reports[0].n, 4);
    CHECK_EQ(r.batch->reports[1].kind, RT_REPORT_READABLE);
    CHECK_EQ(rt_port_feed(r.port, (const uint8_t *)"too", 3), 1);
    CHECK_EQ(port_rig_step(&r), 0);
    CHECK_EQ(r.batch->reports[0].n, 3);
    CHECK_EQ(r.port->bytes_out, 0);
    port_rig_free(&r);
}

int main(void)
{
    RUN(bytes_pass_exactly_by_splice);
    RUN(bytes_pass_exactly_by_copy);
    RUN(a_sink_that_cannot_be_spliced_to_gets_the_piped_bytes_by_copy);
    RUN(an_idle_pair_holds_no_pipe_and_no_memory);
    RUN(each_end_of_stream_is_passed_on_once_and_both_end_the_pair);
    RUN(a_reset_reaches_the_other_side_as_a_reset);
    RUN(a_sink_without_reader_is_a_broken_pair_and_no_signal);
    RUN(a_pipe_without_reader_raises_no_signal);
    RUN(a_limited_pair_moves_what_its_bucket_holds_and_says_when_more);
    RUN(a_port_reads_no_more_than_was_granted);
    RUN(a_port_notices_the_end_of_the_stream_without_a_grant);
    RUN(fed_bytes_wait_behind_a_full_socket_and_are_counted_once);
    RUN(a_port_refuses_more_than_its_wall);
    RUN(what_cannot_be_written_is_still_reported_as_consumed);
    return 0;
}
