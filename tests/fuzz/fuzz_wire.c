/* The checked reader of messages (wire.h), against one that counts bytes by hand.
 *
 * Input: the number of reads, the reads, then the message. What is read and written again
 * has to be the message; a read that does not fit ends it for good.
 */
#include "check.h"
#include "input.h"
#include "wire.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    rt_input in = {data, data + size};
    size_t reads, len;
    const uint8_t *script = take_bytes(&in, take8(&in), &reads);
    len = left_of(&in);
    /* A copy of its own, so that one byte too many is seen. */
    uint8_t *message = malloc(len ? len : 1);
    uint8_t *again = malloc(len ? len : 1);
    CHECK(message != NULL && again != NULL);
    if (len > 0)
        memcpy(message, in.at, len);

    rt_reader r = rt_reader_over(message, len);
    size_t at = 0;
    int ok = 1;
    for (size_t i = 0; i < reads; i++) {
        size_t n, room = len - at;
        const uint8_t *text;
        uint32_t word = room >= 4 ? rt_get32(message + at) : 0;
        switch (script[i] % 3) {
        case 0:
            ok = ok && room >= 1;
            CHECK_EQ(rt_read8(&r), ok ? message[at] : 0);
            if (ok)
                again[at] = message[at];
            at += ok;
            break;
        case 1:
            ok = ok && room >= 4;
            CHECK_EQ(rt_read32(&r), ok ? word : 0);
            if (ok)
                rt_put32(again + at, word);
            at += ok ? 4 : 0;
            break;
        default:
            ok = ok && room >= 4 && room - 4 >= word;
            text = rt_read_string(&r, &n);
            CHECK_EQ(n, ok ? word : 0);
            if (!ok)
                break;
            CHECK(text == message + at + 4);
            rt_put32(again + at, (uint32_t)n);
            if (n > 0)
                memcpy(again + at + 4, text, n);
            at += 4 + n;
        }
        CHECK_EQ(r.ok, ok);
        CHECK(rt_left(&r) <= len);
        if (ok)
            CHECK_EQ(rt_left(&r), len - at);
    }
    CHECK(at == 0 || memcmp(message, again, at) == 0);

    if (len >= 8) {
        uint8_t number[8];
        rt_put64(number, rt_get64(message));
        CHECK(memcmp(number, message, 8) == 0);
    }
    free(message);
    free(again);
    return 0;
}
