/* Big-endian integers of SSH messages (RFC 4251, section 5), and a checked reader.
 *
 * Nothing here allocates or owns. A reader never goes past `end`: once a read does
 * not fit, `ok` is 0 for good and every further read returns 0, so that a parser may
 * read a whole message and check `ok` once.
 */
#ifndef RT_WIRE_H
#define RT_WIRE_H

#include <stddef.h>
#include <stdint.h>

static inline uint32_t rt_get32(const uint8_t *p)
{
    return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) |
           (uint32_t)p[3];
}

static inline void rt_put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

static inline uint64_t rt_get64(const uint8_t *p)
{
    return ((uint64_t)rt_get32(p) << 32) | rt_get32(p + 4);
}

static inline void rt_put64(uint8_t *p, uint64_t v)
{
    rt_put32(p, (uint32_t)(v >> 32));
    rt_put32(p + 4, (uint32_t)v);
}

typedef struct {
    const uint8_t *at;
    const uint8_t *end;
    int ok;
} rt_reader;

static inline rt_reader rt_reader_over(const uint8_t *data, size_t len)
{
    rt_reader r = {data, data + len, 1};
    return r;
}

static inline size_t rt_left(const rt_reader *r)
{
    return (size_t)(r->end - r->at);
}

static inline uint32_t rt_read32(rt_reader *r)
{
    if (!r->ok || rt_left(r) < 4) {
        r->ok = 0;
        return 0;
    }
    uint32_t v = rt_get32(r->at);
    r->at += 4;
    return v;
}

static inline uint8_t rt_read8(rt_reader *r)
{
    if (!r->ok || rt_left(r) < 1) {
        r->ok = 0;
        return 0;
    }
    return *r->at++;
}

/* Points into the message: valid as long as the message is. */
static inline const uint8_t *rt_read_string(rt_reader *r, size_t *len)
{
    uint32_t n = rt_read32(r);
    if (!r->ok || rt_left(r) < n) {
        r->ok = 0;
        *len = 0;
        return r->at;
    }
    const uint8_t *p = r->at;
    r->at += n;
    *len = n;
    return p;
}

#endif
