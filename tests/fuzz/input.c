#include "input.h"

#include <string.h>

#define PERIOD 65521u

static const uint8_t *stream_at(uint64_t at)
{
    static uint8_t stream[2 * PERIOD];
    static int filled;
    uint32_t seed = 1;
    for (size_t i = 0; !filled && i < PERIOD; i++) {
        seed = seed * 1664525 + 1013904223;
        stream[i] = stream[PERIOD + i] = (uint8_t)(seed >> 24);
    }
    filled = 1;
    return stream + at % PERIOD;
}

void stream_fill(uint8_t *to, uint64_t at, size_t n)
{
    for (size_t done = 0, part; done < n; done += part) {
        part = n - done < PERIOD ? n - done : PERIOD;
        memcpy(to + done, stream_at(at + done), part);
    }
}

int stream_is(const uint8_t *from, uint64_t at, size_t n)
{
    for (size_t done = 0, part; done < n; done += part) {
        part = n - done < PERIOD ? n - done : PERIOD;
        if (memcmp(from + done, stream_at(at + done), part) != 0)
            return 0;
    }
    return 1;
}
