/* SSH binary packets over one socket (RFC 4253, section 6; RFC 5647 for AES-GCM).
 *
 * Receives in big chunks and opens packets in place; builds packets in one queue,
 * seals them in place and sends many at a time. Not thread-safe: the engine's lock.
 */
#ifndef RT_PACKETS_H
#define RT_PACKETS_H

#include "buffer.h"
#include "gcm.h"

#include <stdint.h>
#include <time.h>

/* OpenSSH's PACKET_MAX_SIZE; RFC 4253, section 6.1 asks for at least 35000. */
#define RT_MAX_PACKET_BYTES (256u * 1024)
/* The largest payload of ours: the rest is header and padding. */
#define RT_MAX_PAYLOAD_BYTES (RT_MAX_PACKET_BYTES - 2 * RT_GCM_BLOCK_BYTES)
/* One recv(2). Large enough to amortise the call, small enough to stay in cache. */
#define RT_RECEIVE_BYTES (256u * 1024)
/* What arrives in less is a message, and its sender may wait for the acknowledgement. */
#define RT_SMALL_BYTES 8192u
/* Sealed and unsent: more data waits in its socket, more control messages still go. */
#define RT_SEND_QUEUE_BYTES (256u * 1024)
/* Control messages that the peer provokes but does not read: past this, it is cut. */
#define RT_SEND_QUEUE_MAX_BYTES (16u * 1024 * 1024)
/* Sent and not yet on its way, in the kernel: what stands there is past all ordering. */
#define RT_NOT_SENT_BYTES (128 * 1024)
/* Memory kept for an idle connection. */
#define RT_SEND_QUEUE_KEEP_BYTES (1024u * 1024)

#define RT_PACKET_HEADER_BYTES 5 /* packet_length, padding_length */
#define RT_MIN_PADDING_BYTES 4

typedef struct {
    int fd; /* not owned */
    rt_gcm *open_key;
    rt_gcm *seal_key;

    uint8_t *received;
    size_t received_start, received_end;

    rt_buffer unsent;

    /* Readiness as told by edge-triggered epoll, cleared by EAGAIN. */
    uint8_t readable, writable, hung_up;
    uint8_t not_tcp; /* TCP_QUICKACK is unknown to this socket */
    uint8_t ack_due; /* a message came, and nothing was sent since */
    int wake_at;     /* SO_RCVLOWAT */
    int send_error; /* errno of a failed send; nothing is sent any more */

    uint32_t sequence_in, sequence_out;
    /* Since the keys in use were set, for the rekey limits. */
    uint64_t key_bytes_in, key_bytes_out;
    uint64_t key_packets_in, key_packets_out;
    /* Since the start. */
    uint64_t bytes_in, bytes_out;
} rt_packets;

/* 0, or -1: out of memory. rt_packets_free zeroes keys and clear text. */
int rt_packets_init(rt_packets *p, int fd);
void rt_packets_free(rt_packets *p);

/* Put new keys in use for all packets from here on. Takes the key over. */
void rt_packets_set_open_key(rt_packets *p, rt_gcm *key);
void rt_packets_set_seal_key(rt_packets *p, rt_gcm *key);

typedef enum {
    RT_RECEIVE_ERROR = -2,
    RT_RECEIVE_EOF = -1,
    RT_RECEIVE_NOTHING = 0, /* EAGAIN: `readable` is now 0 */
    RT_RECEIVE_SOME = 1,
} rt_receive_result;

/* One recv(2). errno is set at RT_RECEIVE_ERROR. Payloads handed out before are no
 * longer valid. */
rt_receive_result rt_packets_receive(rt_packets *p);

typedef enum {
    RT_NEXT_BAD_LENGTH = -3,
    RT_NEXT_BAD_TAG = -2,
    RT_NEXT_BAD_PADDING = -1,
    RT_NEXT_NONE = 0, /* no whole packet has arrived */
    RT_NEXT_PACKET = 1,
} rt_next_result;

/* Open the next packet. `*payload` points into the receive buffer and stays valid
 * until rt_packets_receive; `*len` is at least 1. */
rt_next_result rt_packets_next(rt_packets *p, uint8_t **payload, size_t *len);

/* Bytes that a packet with this payload takes on the wire. */
size_t rt_packet_wire_bytes(size_t payload_len);

/* Build a packet: write the payload to the pointer that begin returns, then finish
 * seals it. NULL and -1: over RT_MAX_PAYLOAD_BYTES, over RT_SEND_QUEUE_MAX_BYTES
 * (rt_packets_is_full), out of memory, or libcrypto failed; the connection cannot go on. */
uint8_t *rt_packets_begin(rt_packets *p, size_t payload_len);
int rt_packets_finish(rt_packets *p, size_t payload_len);

/* Send what the socket takes. Sets `writable` to 0 at EAGAIN, `send_error` if it is
 * over. Never blocks. */
void rt_packets_flush(rt_packets *p);

/* Have the kernel acknowledge a message that came and was not answered; call it before
 * a wait. sshd leaves Nagle's algorithm on: its next small packet waits until the last
 * one is acknowledged, which our kernel puts off by up to 40 ms. */
void rt_packets_acknowledge(rt_packets *p);

/* Have the socket be readable from so many bytes on (1: from any), or at its end;
 * `wake_at` says what holds. */
void rt_packets_wake_at(rt_packets *p, int bytes);

static inline size_t rt_packets_unsent(const rt_packets *p)
{
    return rt_buffer_len(&p->unsent);
}

/* Whether one more packet would be over RT_SEND_QUEUE_MAX_BYTES: then that is why
 * rt_packets_begin refuses it, and not a want of memory. */
static inline int rt_packets_is_full(const rt_packets *p, size_t payload_len)
{
    return rt_packets_unsent(p) + rt_packet_wire_bytes(payload_len) >
           RT_SEND_QUEUE_MAX_BYTES;
}

#endif
