#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#define RT_BUFFER_FIRST_BYTES 4096

void rt_buffer_init(rt_buffer *b, size_t maximum)
{
    memset(b, 0, sizeof *b);
    b->maximum = maximum;
}

void rt_buffer_free(rt_buffer *b)
{
    free(b->data);
    b->data = NULL;
    b->start = b->end = b->capacity = 0;
}

static void slide_to_front(rt_buffer *b)
{
    if (b->start == 0)
        return;
    memmove(b->data, b->data + b->start, b->end - b->start);
    b->end -= b->start;
    b->start = 0;
}

uint8_t *rt_buffer_reserve(rt_buffer *b, size_t n)
{
    size_t len = rt_buffer_len(b);
    if (n > b->maximum || len > b->maximum - n)
        return NULL;
    if (b->data != NULL && b->capacity - b->end >= n)
        return b->data + b->end;
    /* Sliding moves at most as many bytes as have been consumed since the last slide,
     * so that it costs O(1) a byte. */
    if (b->data != NULL && b->capacity >= len + n && b->start >= len) {
        slide_to_front(b);
        return b->data + b->end;
    }
    size_t capacity = b->capacity ? b->capacity : RT_BUFFER_FIRST_BYTES;
    while (capacity < len + n)
        capacity *= 2; /* len + n <= maximum, far from overflow */
    uint8_t *data = malloc(capacity);
    if (data == NULL)
        return NULL;
    if (len > 0)
        memcpy(data, b->data + b->start, len);
    free(b->data);
    b->data = data;
    b->capacity = capacity;
    b->start = 0;
    b->end = len;
    return b->data + b->end;
}

void rt_buffer_commit(rt_buffer *b, size_t n)
{
    b->end += n;
}

int rt_buffer_append(rt_buffer *b, const void *data, size_t n)
{
    if (n == 0)
        return 0;
    uint8_t *room = rt_buffer_reserve(b, n);
    if (room == NULL)
        return -1;
    memcpy(room, data, n);
    rt_buffer_commit(b, n);
    return 0;
}

void rt_buffer_consume(rt_buffer *b, size_t n, size_t keep)
{
    b->start += n;
    if (b->start < b->end)
        return;
    b->start = b->end = 0;
    if (b->capacity > keep)
        rt_buffer_free(b);
}
