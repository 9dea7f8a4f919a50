/* Bytes that tell where they belong: of a stream with this number, at this place. */
#ifndef RT_PATTERN_H
#define RT_PATTERN_H

#include "check.h"

#include <stddef.h>
#include <stdint.h>

static inline uint8_t byte_at(size_t at, unsigned stream)
{
    return (uint8_t)(at * 31 + (at >> 8) + stream * 101);
}

static inline void fill_bytes(uint8_t *into, size_t n, size_t at, unsigned stream)
{
    for (size_t i = 0; i < n; i++)
        into[i] = byte_at(at + i, stream);
}

static inline void check_bytes(const uint8_t *bytes, size_t n, size_t at, unsigned stream)
{
    for (size_t i = 0; i < n; i++)
        CHECK_EQ(bytes[i], byte_at(at + i, stream));
}

#endif
