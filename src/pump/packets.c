#include "packets.h"

#include "wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* A whole packet of the largest size, and behind it room for one more recv. */
#define RECEIVE_CAPACITY \
    (4 + RT_MAX_PACKET_BYTES + RT_GCM_TAG_BYTES + (size_t)RT_RECEIVE_BYTES)

int rt_packets_init(rt_packets *p, int fd)
{
    memset(p, 0, sizeof *p);
    p->fd = fd;
    p->readable = p->writable = 1;
    p->wake_at = 1;
    int not_sent = RT_NOT_SENT_BYTES;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &not_sent, sizeof not_sent) != 0)
        p->not_tcp = 1;
    rt_buffer_init(&p->unsent, RT_SEND_QUEUE_MAX_BYTES);
    p->received = malloc(RECEIVE_CAPACITY);
    return p->received == NULL ? -1 : 0;
}

void rt_packets_free(rt_packets *p)
{
    rt_gcm_free(p->open_key);
    rt_gcm_free(p->seal_key);
    p->open_key = p->seal_key = NULL;
    if (p->received != NULL)
        explicit_bzero(p->received, RECEIVE_CAPACITY);
    free(p->received);
    p->received = NULL;
    rt_buffer_free(&p->unsent);
}

void rt_packets_set_open_key(rt_packets *p, rt_gcm *key)
{
    rt_gcm_free(p->open_key);
    p->open_key = key;
    p->key_bytes_in = p->key_packets_in = 0;
}

void rt_packets_set_seal_key(rt_packets *p, rt_gcm *key)
{
    rt_gcm_free(p->seal_key);
    p->seal_key = key;
    p->key_bytes_out = p->key_packets_out = 0;
}

void rt_packets_acknowledge(rt_packets *p)
{
    int on = 1;
    if (!p->ack_due)
        return;
    p->ack_due = 0; /* the option lasts for one acknowledgement only */
    if (!p->not_tcp && setsockopt(p->fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on) != 0)
        p->not_tcp = 1;
}

void rt_packets_wake_at(rt_packets *p, int bytes)
{
    if (p->wake_at == bytes)
        return;
    /* Where it is refused, the socket wakes as before, and the next call asks again. */
    if (setsockopt(p->fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes) == 0)
        p->wake_at = bytes;
}

rt_receive_result rt_packets_receive(rt_packets *p)
{
    if (p->received_start == p->received_end)
        p->received_start = p->received_end = 0;
    if (RECEIVE_CAPACITY - p->received_end < RT_RECEIVE_BYTES) {
        /* What is left is less than one packet, so that it fits before a recv. */
        memmove(p->received, p->received + p->received_start,
                p->received_end - p->received_start);
        p->received_end -= p->received_start;
        p->received_start = 0;
    }
    if (RECEIVE_CAPACITY - p->received_end < RT_RECEIVE_BYTES) {
        errno = ENOBUFS; /* only without a key, when nothing is ever opened */
        return RT_RECEIVE_ERROR;
    }
    ssize_t n;
    do
        n = recv(p->fd, p->received + p->received_end, RT_RECEIVE_BYTES, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return RT_RECEIVE_ERROR;
        p->readable = 0;
        return RT_RECEIVE_NOTHING;
    }
    if (n == 0)
        return RT_RECEIVE_EOF;
    if ((size_t)n < RT_SMALL_BYTES)
        p->ack_due = 1;
    /* A short read emptied the socket (epoll(7)); the end of the stream alone brings
     * no further edge if it was announced before. */
    if ((size_t)n < RT_RECEIVE_BYTES && !p->hung_up)
        p->readable = 0;
    p->received_end += (size_t)n;
    p->bytes_in += (uint64_t)n;
    return RT_RECEIVE_SOME;
}

rt_next_result rt_packets_next(rt_packets *p, uint8_t **payload, size_t *len)
{
    size_t have = p->received_end - p->received_start;
    if (have < 4 || p->open_key == NULL)
        return RT_NEXT_NONE;
    uint8_t *packet = p->received + p->received_start;
    size_t body = rt_get32(packet);
    if (body < RT_GCM_BLOCK_BYTES || body > RT_MAX_PACKET_BYTES ||
        body % RT_GCM_BLOCK_BYTES != 0)
        return RT_NEXT_BAD_LENGTH;
    size_t whole = 4 + body + RT_GCM_TAG_BYTES;
    if (have < whole)
        return RT_NEXT_NONE;
    if (rt_gcm_open(p->open_key, packet, body, packet + 4 + body) != 0)
        return RT_NEXT_BAD_TAG;
    size_t padding = packet[4];
    if (padding < RT_MIN_PADDING_BYTES || padding + 2 > body)
        return RT_NEXT_BAD_PADDING;
    *payload = packet + RT_PACKET_HEADER_BYTES;
    *len = body - 1 - padding;
    p->received_start += whole;
    p->sequence_in++;
    p->key_bytes_in += whole;
    p->key_packets_in++;
    return RT_NEXT_PACKET;
}

/* packet_length for a payload: padding of 4 bytes at least, up to a cipher block. The
 * length field itself is not encrypted and does not count (RFC 5647, section 7.2). */
static size_t body_bytes(size_t payload_len)
{
    size_t least = 1 + payload_len + RT_MIN_PADDING_BYTES;
    return (least + RT_GCM_BLOCK_BYTES - 1) / RT_GCM_BLOCK_BYTES * RT_GCM_BLOCK_BYTES;
}

size_t rt_packet_wire_bytes(size_t payload_len)
{
    return 4 + body_bytes(payload_len) + RT_GCM_TAG_BYTES;
}

uint8_t *rt_packets_begin(rt_packets *p, size_t payload_len)
{
    if (payload_len > RT_MAX_PAYLOAD_BYTES)
        return NULL;
    uint8_t *packet = rt_buffer_reserve(&p->unsent, rt_packet_wire_bytes(payload_len));
    return packet == NULL ? NULL : packet + RT_PACKET_HEADER_BYTES;
}

int rt_packets_finish(rt_packets *p, size_t payload_len)
{
    uint8_t *packet = p->unsent.data + p->unsent.end;
    size_t body = body_bytes(payload_len);
    size_t padding = body - 1 - payload_len;
    rt_put32(packet, (uint32_t)body);
    packet[4] = (uint8_t)padding;
    /* Zeros do: an AEAD hides them, and random bytes cost a system call. */
    memset(packet + RT_PACKET_HEADER_BYTES + payload_len, 0, padding);
    if (p->seal_key == NULL ||
        rt_gcm_seal(p->seal_key, packet, body, packet + 4 + body) != 0)
        return -1;
    size_t whole = 4 + body + RT_GCM_TAG_BYTES;
    rt_buffer_commit(&p->unsent, whole);
    p->sequence_out++;
    p->key_bytes_out += whole;
    p->key_packets_out++;
    return 0;
}

void rt_packets_flush(rt_packets *p)
{
    while (p->writable && !p->send_error && rt_packets_unsent(p) > 0) {
        ssize_t n = send(p->fd, rt_buffer_at(&p->unsent), rt_packets_unsent(p),
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            p->ack_due = 0; /* what is sent acknowledges, too */
            p->bytes_out += (uint64_t)n;
            rt_buffer_consume(&p->unsent, (size_t)n, RT_SEND_QUEUE_KEEP_BYTES);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            p->writable = 0;
        } else if (errno != EINTR) {
            p->send_error = errno;
            p->readable = p->hung_up = 1; /* what came before it is still read */
        }
    }
    if (p->send_error)
        rt_buffer_consume(&p->unsent, rt_packets_unsent(p), 0);
}
