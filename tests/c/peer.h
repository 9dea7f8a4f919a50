/* The other end of an engine's connection, made by hand: it can say what no engine
 * would, and sees every message that leaves.
 *
 * One thread runs both ends in turns, so that a test is a sequence. What the engine has
 * not said after a few turns that moved nothing, it does not say.
 */
#ifndef RT_PEER_H
#define RT_PEER_H

#include "engine.h"
#include "packets.h"
#include "sockets.h"

#define PEER_WINDOW_BYTES (2u * 1024 * 1024)
#define PEER_PACKET_BYTES 32768u
/* Recipient channel of what the engine says, where a test does not choose one. */
#define PEER_CHANNEL_ID 7u

#define PEER_ENDINGS 4u

enum {
    SAY_KEXINIT = 20,
    SAY_OPEN_CONFIRMATION = 91,
    SAY_ADJUST = 93,
    SAY_DATA = 94,
    SAY_EXTENDED_DATA = 95,
    SAY_EOF = 96,
    SAY_CLOSE = 97,
    SAY_REQUEST = 98,
    SAY_SUCCESS = 99,
    SAY_FAILURE = 100,
    SAY_OTHER = 192, /* of no meaning to the engine */
};

typedef struct {
    uint8_t *payload; /* the first byte is the message number */
    size_t len;
} peer_message;

typedef struct {
    rt_engine *engine;
    int engine_fd;
    rt_packets wire;
    int deaf;  /* set by a test: receive nothing */
    int hasty; /* set by a test: a turn waits for nothing */

    rt_event event;       /* the last one that was no timeout */
    unsigned told[8];     /* how many events of each kind */
    uint8_t *packet;      /* the payload of the last RT_EV_PACKET */
    rt_ended ended;       /* the last channel that ended */
    unsigned ended_count;
    rt_ended endings[PEER_ENDINGS]; /* the first that ended */

    peer_message *heard; /* not yet expected by the test */
    size_t heard_first, heard_end, heard_capacity;
    size_t probes; /* heard, and left unanswered */
} peer;

void peer_open(peer *p);
void peer_close(peer *p);
/* Take the channels that have ended. */
void peer_take_ended(peer *p);

/* Run both ends once. Returns whether anything moved. Faults of the engine count. */
int peer_turn(peer *p);
/* Run both ends until nothing moves. */
void peer_settle(peer *p);
/* Run both ends until the engine tells this event. */
void peer_await(peer *p, rt_event_kind kind);
/* The same, and it has to be a fault with this code. */
void peer_await_fault(peer *p, int code);
/* Run both ends until a channel has ended that had not yet; it is in `ended`. */
void peer_await_end(peer *p);

/* Say a message: of any bytes, of integers, or CHANNEL_DATA. */
void peer_say(peer *p, const void *payload, size_t len);
void peer_say_words(peer *p, uint8_t type, const uint32_t *words, size_t count);
void peer_say_data(peer *p, uint32_t id, const void *data, size_t len);
#define PEER_SAY(p, type, ...)                                                            \
    peer_say_words(p, type, (const uint32_t[]){__VA_ARGS__},                              \
                   sizeof((const uint32_t[]){__VA_ARGS__}) / 4)

/* The next message that the engine said, which has to be of this type. Valid until the
 * next call. */
const peer_message *peer_expect(peer *p, uint8_t type);
/* It says nothing more. */
void peer_expect_silence(peer *p);
/* The data that is heard, next to each other, until there are `len` bytes. */
void peer_expect_data(peer *p, const void *data, size_t len);
/* The same bytes at the other end of a local socket, read slowly. */
void peer_expect_at(peer *p, int fd, const void *data, size_t len);
/* The sum of all credit that is heard; any other message is a failure. */
uint32_t peer_sum_credit(peer *p);
/* The word at this place of a message, counted after the message number. */
uint32_t word(const peer_message *m, size_t at);

/* A channel that the engine has accepted and confirmed, to the other end `*app` of
 * whose local socket the test may speak. `remote_id` is PEER_CHANNEL_ID. */
uint32_t peer_channel(peer *p, int *app);
uint32_t peer_channel_with(peer *p, int *app, uint32_t window, uint32_t max_packet);
/* The same over TCP, which knows resets and urgent data; its buffers are small. */
uint32_t peer_tcp_channel(peer *p, int *app);

void set_test_key(rt_engine *e, rt_packets *wire, uint8_t out, uint8_t in);
/* Have close(2) reset the connection. */
void reset_on_close(int fd);
/* Nothing can be read now, and the stream has not ended. */
int is_silent(int fd);
/* 1: the stream has ended; 0: it has not; -1: it was reset. Leaves nothing to read. */
int has_ended(int fd);

#endif
