/* What a fuzzer found, read as decisions: bytes, numbers and the rest. Never fails: past
 * its end there are zeros, so that every input is a run of its own length. */
#ifndef RT_INPUT_H
#define RT_INPUT_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *at;
    const uint8_t *end;
} rt_input;

static inline size_t left_of(const rt_input *in)
{
    return (size_t)(in->end - in->at);
}

static inline uint8_t take8(rt_input *in)
{
    return left_of(in) > 0 ? *in->at++ : 0;
}

static inline uint32_t take16(rt_input *in)
{
    uint32_t high = take8(in);
    return high << 8 | take8(in);
}

static inline uint32_t take32(rt_input *in)
{
    uint32_t high = take16(in);
    return high << 16 | take16(in);
}

/* A number that is small, large, or at one of the ends of what 32 bits hold. */
static inline uint32_t take_number(rt_input *in)
{
    uint8_t kind = take8(in);
    switch (kind >> 6) {
    case 0:
        return kind & 63u;
    case 1:
        return take16(in);
    case 2:
        return take32(in);
    default:
        return UINT32_MAX - (kind & 63u);
    }
}

/* Up to `most` bytes of the input itself. */
static inline const uint8_t *take_bytes(rt_input *in, size_t most, size_t *len)
{
    const uint8_t *at = in->at;
    *len = most < left_of(in) ? most : left_of(in);
    in->at += *len;
    return at;
}

/* The stream that everybody sends, and whether it is what came: `n` bytes from `at`. Its
 * period is a prime, so that a piece in the wrong place is seen. */
void stream_fill(uint8_t *to, uint64_t at, size_t n);
int stream_is(const uint8_t *from, uint64_t at, size_t n);

#endif
