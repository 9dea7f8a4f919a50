/* The token bucket, on a clock of our own. */
#include "bucket.h"
#include "check.h"

static const uint64_t RATES[] = {1, 7, 1000, 65536, 1000003, 125000000, RT_RATE_MAX};

/* A sender that always wants more gets rate x time, whatever the rhythm of the calls. */
static void a_busy_sender_gets_exactly_its_rate(void)
{
    static const uint64_t rhythm_ns[] = {1, 999, 1000000, 4999999, 50000000};
    for (size_t r = 0; r < sizeof RATES / sizeof *RATES; r++) {
        for (size_t s = 0; s < sizeof rhythm_ns / sizeof *rhythm_ns; s++) {
            rt_bucket bucket;
            uint64_t now = 12345, sent = 0, start = now;
            rt_bucket_init(&bucket, RATES[r], now);
            for (int i = 0; i < 2000; i++) {
                uint64_t n = rt_bucket_available(&bucket, now);
                rt_bucket_spend(&bucket, n);
                sent += n;
                /* Sleep until bytes may move, and longer by the rhythm. */
                uint64_t ready = rt_bucket_ready_at(&bucket);
                uint64_t late = rhythm_ns[s] < 40000000 ? rhythm_ns[s] : 40000000;
                now = (ready > now ? ready : now) + late;
            }
            double exact = (double)RATES[r] * (double)(now - start) / 1e9;
            double slack = 0.05 * exact + 1 + 0.05 * (double)RATES[r];
            CHECK((double)sent <= exact);
            CHECK((double)sent >= exact - slack);
        }
    }
}

static void nothing_moves_before_the_time_that_it_names(void)
{
    for (size_t r = 0; r < sizeof RATES / sizeof *RATES; r++) {
        rt_bucket bucket;
        rt_bucket_init(&bucket, RATES[r], 0);
        CHECK_EQ(rt_bucket_available(&bucket, 0), 0);
        uint64_t ready = rt_bucket_ready_at(&bucket);
        CHECK(ready > 0);
        CHECK_EQ(rt_bucket_available(&bucket, ready - 1), 0);
        CHECK(rt_bucket_available(&bucket, ready) > 0);
        CHECK_EQ(rt_bucket_ready_at(&bucket), ready);
    }
}

static void a_pause_saves_up_55_milliseconds_at_most(void)
{
    rt_bucket bucket;
    rt_bucket_init(&bucket, 1000000, 0);
    CHECK_EQ(rt_bucket_available(&bucket, UINT64_MAX / 2), 55000);
    rt_bucket_init(&bucket, RT_RATE_MAX, 0);
    CHECK_EQ(rt_bucket_available(&bucket, UINT64_MAX / 2), RT_RATE_MAX / 200 * 11);
    rt_bucket_init(&bucket, 1, 0);
    CHECK_EQ(rt_bucket_available(&bucket, UINT64_MAX / 2), 1);
}

static void a_clock_that_goes_back_gives_nothing(void)
{
    rt_bucket bucket;
    rt_bucket_init(&bucket, 1000000, 1000000000);
    CHECK_EQ(rt_bucket_available(&bucket, 0), 0);
    CHECK_EQ(rt_bucket_available(&bucket, 1000000000), 0);
}

static void no_rate_means_no_limit(void)
{
    rt_bucket bucket;
    rt_bucket_init(&bucket, 0, 0);
    CHECK(rt_bucket_available(&bucket, 0) == UINT64_MAX);
    rt_bucket_spend(&bucket, 1000);
    CHECK(rt_bucket_available(&bucket, 0) == UINT64_MAX);
}

int main(void)
{
    RUN(a_busy_sender_gets_exactly_its_rate);
    RUN(nothing_moves_before_the_time_that_it_names);
    RUN(a_pause_saves_up_55_milliseconds_at_most);
    RUN(a_clock_that_goes_back_gives_nothing);
    RUN(no_rate_means_no_limit);
    return 0;
}
