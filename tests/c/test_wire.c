#include "check.h"
#include "wire.h"

#include <string.h>

static void integers_are_big_endian(void)
{
    uint8_t bytes[8];
    rt_put32(bytes, 0x01020304);
    CHECK(memcmp(bytes, "\x01\x02\x03\x04", 4) == 0);
    CHECK(rt_get32(bytes) == 0x01020304);
    rt_put64(bytes, 0x0102030405060708);
    CHECK(memcmp(bytes, "\x01\x02\x03\x04\x05\x06\x07\x08", 8) == 0);
    CHECK(rt_get64(bytes) == 0x0102030405060708);
}

static void integers_keep_every_bit(void)
{
    uint8_t bytes[8];
    rt_put32(bytes, UINT32_MAX);
    CHECK(rt_get32(bytes) == UINT32_MAX);
    rt_put32(bytes, 0x80000000);
    CHECK(rt_get32(bytes) == 0x80000000);
    rt_put64(bytes, UINT64_MAX - 1);
    CHECK(rt_get64(bytes) == UINT64_MAX - 1);
}

static void a_reader_reads_in_order_and_to_the_last_byte(void)
{
    const uint8_t message[] = {7, 0, 0, 0, 9, 0, 0, 0, 2, 'o', 'k'};
    rt_reader r = rt_reader_over(message, sizeof message);
    size_t len = 0;
    CHECK(rt_read8(&r) == 7);
    CHECK(rt_read32(&r) == 9);
    const uint8_t *text = rt_read_string(&r, &len);
    CHECK(len == 2 && memcmp(text, "ok", 2) == 0);
    CHECK(r.ok && rt_left(&r) == 0);
}

static void an_empty_string_is_a_string(void)
{
    const uint8_t message[] = {0, 0, 0, 0};
    rt_reader r = rt_reader_over(message, sizeof message);
    size_t len = 1;
    rt_read_string(&r, &len);
    CHECK(r.ok && len == 0);
}

static void an_integer_that_is_cut_short_is_refused(void)
{
    const uint8_t message[] = {1, 2, 3, 4};
    for (size_t len = 0; len < 4; len++) {
        rt_reader r = rt_reader_over(message, len);
        CHECK(rt_read32(&r) == 0 && !r.ok);
    }
    rt_reader empty = rt_reader_over(message, 0);
    CHECK(rt_read8(&empty) == 0 && !empty.ok);
}

static void a_string_longer_than_its_message_is_refused(void)
{
    const uint8_t lengths[][4] = {{0, 0, 0, 3}, {0, 1, 0, 0}, {0xff, 0xff, 0xff, 0xff}};
    for (size_t i = 0; i < 3; i++) {
        uint8_t message[6] = {0};
        memcpy(message, lengths[i], 4);
        rt_reader r = rt_reader_over(message, sizeof message);
        size_t len = 1;
        rt_read_string(&r, &len);
        CHECK(!r.ok && len == 0);
    }
}

static void after_a_failed_read_nothing_can_be_read(void)
{
    const uint8_t message[] = {0, 0, 0, 9, 1, 2, 3, 4};
    rt_reader r = rt_reader_over(message, sizeof message);
    size_t len = 0;
    rt_read_string(&r, &len);
    CHECK(rt_read8(&r) == 0 && rt_read32(&r) == 0);
    rt_read_string(&r, &len);
    CHECK(!r.ok && len == 0);
}

int main(void)
{
    RUN(integers_are_big_endian);
    RUN(integers_keep_every_bit);
    RUN(a_reader_reads_in_order_and_to_the_last_byte);
    RUN(an_empty_string_is_a_string);
    RUN(an_integer_that_is_cut_short_is_refused);
    RUN(a_string_longer_than_its_message_is_refused);
    RUN(after_a_failed_read_nothing_can_be_read);
    return 0;
}
