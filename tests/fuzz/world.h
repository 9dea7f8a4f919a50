/* What one input of fuzz_messages has: an engine, its peer, the targets, and what each of
 * them has said and seen so far. */
#ifndef RT_FUZZ_WORLD_H
#define RT_FUZZ_WORLD_H

#include "engine_impl.h"
#include "input.h"
#include "packets.h"

#define MOST_CHANNELS 8
#define MOST_BYTES (1u << 20) /* of one direction of one channel */
#define OWNERS_MESSAGE 192

typedef struct {
    uint32_t id, remote_id, max_packet;
    int app;          /* the target's end; -1: closed */
    uint8_t opening;  /* reserved, not confirmed */
    uint8_t confirmed; /* its confirmation was heard, or was not needed */
    /* Peer to target. */
    uint64_t said, got, promised;
    uint8_t said_eof, said_close;
    /* Target to peer. */
    uint64_t written, heard, allowed;
    uint8_t heard_eof, heard_close, app_eof;
    /* Why bytes may be lost: the target closed, or we reset it. */
    uint8_t app_deaf, app_gone_unread, reset;
    uint32_t answers_due; /* FAILUREs that the peer has asked for */
    uint8_t ended;
} channel;

typedef struct {
    rt_engine *engine;
    rt_packets wire;
    int engine_fd;
    channel channels[MOST_CHANNELS];
    unsigned count;
    uint32_t next_remote_id;
    uint8_t deaf, hold, peer_kex;
    uint8_t wild; /* said what may be a fault, or nonsense */
    uint8_t over;
    rt_event_kind end;
    uint8_t keys;
    uint64_t owners_sent, owners_heard;
    uint32_t probes[64]; /* remote ids of requests of the engine, unanswered */
    unsigned probe_count;
} world;

/* Run both ends: once, or until nothing moves; then look at all channels. */
int turn(world *w);
void settle(world *w);
/* Take the ends that the engine tells of, and check them. */
void take_ended(world *w);
/* Nothing that the target did may cost a byte. */
int is_lossless(const channel *c);

/* What the peer says: as it is, within the rules, over the window, or of any bytes. */
void say(world *w, const uint8_t *payload, size_t len);
void say_words(world *w, uint8_t type, uint32_t a, uint32_t b, size_t count);
void lawful_data(world *w, channel *c, size_t most);
void lawful_extended(world *w, channel *c, size_t most);
void request(world *w, channel *c, int want_reply);
void answer_probe(world *w, int granted);
void over_the_window(world *w, channel *c, size_t n);
void wild_message(world *w, rt_input *in);

/* What the target does. app_reads returns what recv said last. */
void app_writes(channel *c, size_t n);
ssize_t app_reads(const world *w, channel *c, size_t n);
void app_ends(channel *c, unsigned how);

#endif
