/* A queue of bytes in one block of memory: appended at the end, consumed at the start.
 *
 * Grows on demand up to a hard maximum and gives its memory back when it runs empty,
 * so that a thousand idle channels hold none. Not thread-safe.
 */
#ifndef RT_BUFFER_H
#define RT_BUFFER_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *data;
    size_t start; /* first byte not consumed */
    size_t end;   /* one past the last byte */
    size_t capacity;
    size_t maximum; /* never holds more than this */
} rt_buffer;

void rt_buffer_init(rt_buffer *b, size_t maximum);
void rt_buffer_free(rt_buffer *b);

static inline size_t rt_buffer_len(const rt_buffer *b)
{
    return b->end - b->start;
}

static inline uint8_t *rt_buffer_at(rt_buffer *b)
{
    return b->data + b->start;
}

/* Room for `n` more bytes behind the last one: a pointer valid until the next call on
 * this buffer, or NULL (over the maximum, or out of memory; nothing changed). Follow
 * it by rt_buffer_commit with what was written. */
uint8_t *rt_buffer_reserve(rt_buffer *b, size_t n);
void rt_buffer_commit(rt_buffer *b, size_t n);

/* Copy `n` bytes in. Returns 0, or -1 as rt_buffer_reserve. */
int rt_buffer_append(rt_buffer *b, const void *data, size_t n);

/* Drop `n` bytes from the start; `n` is at most rt_buffer_len. Memory over `keep`
 * bytes is freed when the buffer runs empty. */
void rt_buffer_consume(rt_buffer *b, size_t n, size_t keep);

#endif
