#include "buffer.h"
#include "check.h"

#include <string.h>

#define MAXIMUM (1024u * 1024)

static rt_buffer new_buffer(void)
{
    rt_buffer b;
    rt_buffer_init(&b, MAXIMUM);
    return b;
}

/* Bytes that tell their place in the stream. */
static void append_pattern(rt_buffer *b, size_t from, size_t n)
{
    uint8_t *room = rt_buffer_reserve(b, n);
    CHECK(room != NULL);
    for (size_t i = 0; i < n; i++)
        room[i] = (uint8_t)((from + i) * 7);
    rt_buffer_commit(b, n);
}

static void check_pattern(rt_buffer *b, size_t from)
{
    for (size_t i = 0; i < rt_buffer_len(b); i++)
        CHECK(rt_buffer_at(b)[i] == (uint8_t)((from + i) * 7));
}

static void a_new_buffer_holds_no_memory(void)
{
    rt_buffer b = new_buffer();
    CHECK(rt_buffer_len(&b) == 0 && b.data == NULL);
    rt_buffer_free(&b);
}

static void bytes_come_out_in_the_order_they_went_in(void)
{
    rt_buffer b = new_buffer();
    CHECK(rt_buffer_append(&b, "one", 3) == 0);
    CHECK(rt_buffer_append(&b, "two", 3) == 0);
    CHECK(rt_buffer_len(&b) == 6 && memcmp(rt_buffer_at(&b), "onetwo", 6) == 0);
    rt_buffer_consume(&b, 3, MAXIMUM);
    CHECK(rt_buffer_len(&b) == 3 && memcmp(rt_buffer_at(&b), "two", 3) == 0);
    rt_buffer_free(&b);
}

static void growth_keeps_what_is_in_it(void)
{
    rt_buffer b = new_buffer();
    for (size_t n = 1, len = 0; len + n < MAXIMUM; len += n, n *= 2)
        append_pattern(&b, len, n);
    check_pattern(&b, 0);
    rt_buffer_free(&b);
}

static void consumed_room_is_used_again_without_growing(void)
{
    rt_buffer b = new_buffer();
    size_t in = 0, out = 0;
    append_pattern(&b, in, 3000);
    in += 3000;
    size_t capacity = b.capacity;
    for (int i = 0; i < 10000; i++) {
        append_pattern(&b, in, 1000);
        in += 1000;
        rt_buffer_consume(&b, 1000, MAXIMUM);
        out += 1000;
        check_pattern(&b, out);
    }
    CHECK(b.capacity <= 2 * capacity);
    rt_buffer_free(&b);
}

static void a_long_queue_is_not_moved_for_every_byte(void)
{
    rt_buffer b = new_buffer();
    size_t slides = 0;
    append_pattern(&b, 0, 100000);
    for (size_t i = 0; i < 100000; i++) {
        const uint8_t *before = rt_buffer_at(&b);
        append_pattern(&b, 100000 + i, 1);
        slides += rt_buffer_at(&b) != before;
        rt_buffer_consume(&b, 1, MAXIMUM);
    }
    CHECK(slides <= 8);
    check_pattern(&b, 100000);
    rt_buffer_free(&b);
}

static void the_maximum_can_be_reached_but_not_passed(void)
{
    rt_buffer b = new_buffer();
    append_pattern(&b, 0, MAXIMUM);
    CHECK(rt_buffer_reserve(&b, 1) == NULL);
    CHECK(rt_buffer_append(&b, "x", 1) == -1);
    CHECK(rt_buffer_len(&b) == MAXIMUM);
    check_pattern(&b, 0);
    rt_buffer_consume(&b, 1, MAXIMUM);
    append_pattern(&b, MAXIMUM, 1);
    check_pattern(&b, 1);
    rt_buffer_free(&b);
}

static void a_size_that_would_overflow_is_refused(void)
{
    rt_buffer b = new_buffer();
    CHECK(rt_buffer_reserve(&b, SIZE_MAX) == NULL);
    append_pattern(&b, 0, 10);
    CHECK(rt_buffer_reserve(&b, SIZE_MAX) == NULL);
    CHECK(rt_buffer_reserve(&b, SIZE_MAX - 5) == NULL);
    CHECK(rt_buffer_len(&b) == 10);
    rt_buffer_free(&b);
}

static void nothing_can_be_appended_to_an_empty_buffer(void)
{
    rt_buffer b = new_buffer();
    CHECK(rt_buffer_append(&b, NULL, 0) == 0);
    CHECK(rt_buffer_append(&b, "", 0) == 0);
    CHECK(rt_buffer_len(&b) == 0);
    rt_buffer_consume(&b, 0, 0);
    CHECK(rt_buffer_len(&b) == 0);
    rt_buffer_free(&b);
}

static void memory_over_the_keep_is_given_back_when_it_runs_empty(void)
{
    rt_buffer b = new_buffer();
    append_pattern(&b, 0, 100000);
    rt_buffer_consume(&b, 99999, 0);
    CHECK(b.data != NULL);
    rt_buffer_consume(&b, 1, 0);
    CHECK(b.data == NULL && b.capacity == 0);
    append_pattern(&b, 0, 100);
    rt_buffer_consume(&b, 100, 65536);
    CHECK(b.data != NULL && b.start == 0);
    rt_buffer_free(&b);
}

static void what_is_reserved_but_not_committed_is_not_in_it(void)
{
    rt_buffer b = new_buffer();
    append_pattern(&b, 0, 10);
    CHECK(rt_buffer_reserve(&b, 50000) != NULL);
    CHECK(rt_buffer_len(&b) == 10);
    check_pattern(&b, 0);
    rt_buffer_free(&b);
}

static void freeing_twice_is_allowed(void)
{
    rt_buffer b = new_buffer();
    append_pattern(&b, 0, 10);
    rt_buffer_free(&b);
    rt_buffer_free(&b);
    append_pattern(&b, 0, 10);
    rt_buffer_free(&b);
}

int main(void)
{
    RUN(a_new_buffer_holds_no_memory);
    RUN(bytes_come_out_in_the_order_they_went_in);
    RUN(growth_keeps_what_is_in_it);
    RUN(consumed_room_is_used_again_without_growing);
    RUN(a_long_queue_is_not_moved_for_every_byte);
    RUN(the_maximum_can_be_reached_but_not_passed);
    RUN(a_size_that_would_overflow_is_refused);
    RUN(nothing_can_be_appended_to_an_empty_buffer);
    RUN(memory_over_the_keep_is_given_back_when_it_runs_empty);
    RUN(what_is_reserved_but_not_committed_is_not_in_it);
    RUN(freeing_twice_is_allowed);
    return 0;
}
