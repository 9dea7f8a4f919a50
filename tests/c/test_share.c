/* Several takers of one rate, on a clock of our own. */
#include "check.h"
#include "share.h"

#include <stddef.h>

#define TAKERS 7

typedef struct {
    rt_share share;
    rt_taker takers[TAKERS];
    uint64_t moved[TAKERS];
    uint64_t now;
} world;

static void begin(world *w, uint64_t rate)
{
    *w = (world){.now = 1};
    rt_share_init(&w->share, rate, w->now);
    for (size_t i = 0; i < TAKERS; i++)
        w->takers[i].owner = &w->moved[i];
}

static uint64_t take(world *w, size_t i, uint64_t most)
{
    uint64_t n = rt_share_ask(&w->share, &w->takers[i], w->now);
    n = n < most ? n : most;
    rt_share_spend(&w->share, n);
    w->moved[i] += n;
    return n;
}

/* Wait until somebody can be called, then call those who can. */
static void turn(world *w, uint64_t most)
{
    uint64_t ready = rt_share_ready_at(&w->share);
    w->now = ready > w->now ? ready : w->now;
    for (unsigned n = rt_share_turns(&w->share, w->now); n > 0; n--) {
        rt_taker *taker = rt_share_call(&w->share);
        if (taker == NULL)
            return;
        size_t i = (size_t)((uint64_t *)taker->owner - w->moved);
        take(w, i, most);
        rt_share_ask(&w->share, taker, w->now); /* it always has more */
    }
}

static void all_get_the_same_and_the_rate_together(void)
{
    static const uint64_t rates[] = {200, 5000, 1000003, 125000000, RT_RATE_MAX};
    for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) {
        world w;
        begin(&w, rates[r]);
        for (size_t i = 0; i < TAKERS; i++)
            CHECK_EQ(take(&w, i, UINT64_MAX), 0);
        for (int i = 0; i < 700; i++)
            turn(&w, UINT64_MAX);
        uint64_t sum = 0, least = UINT64_MAX, most = 0;
        for (size_t i = 0; i < TAKERS; i++) {
            sum += w.moved[i];
            least = w.moved[i] < least ? w.moved[i] : least;
            most = w.moved[i] > most ? w.moved[i] : most;
        }
        double exact = (double)rates[r] * (double)(w.now - 1) / 1e9;
        CHECK((double)sum <= exact);
        CHECK((double)sum >= exact * 0.98);
        CHECK((double)least >= 0.95 * (double)most);
    }
}

static void who_is_alone_gets_what_there_is(void)
{
    world w;
    begin(&w, 1000000);
    w.now += 55000000;
    CHECK_EQ(take(&w, 0, UINT64_MAX), 55000);
    CHECK(!rt_share_has_line(&w.share));
    CHECK_EQ(take(&w, 0, UINT64_MAX), 0);
    CHECK(rt_share_has_line(&w.share));
}

static void nobody_goes_before_those_who_wait(void)
{
    world w;
    begin(&w, 1000000);
    CHECK_EQ(take(&w, 0, UINT64_MAX), 0);
    w.now += 55000000;
    CHECK_EQ(take(&w, 1, UINT64_MAX), 0);
    rt_taker *called = rt_share_call(&w.share);
    CHECK(called == &w.takers[0]);
    CHECK_EQ(take(&w, 0, UINT64_MAX), 5000); /* a quantum: another one waits */
}

static void a_turn_that_is_not_used_costs_nothing(void)
{
    world w;
    begin(&w, 1000000);
    take(&w, 0, UINT64_MAX);
    take(&w, 1, UINT64_MAX);
    w.now += 10000000;
    CHECK_EQ(rt_share_turns(&w.share, w.now), 2);
    CHECK(rt_share_call(&w.share) == &w.takers[0]); /* and moves nothing */
    CHECK(rt_share_call(&w.share) == &w.takers[1]);
    CHECK_EQ(take(&w, 1, UINT64_MAX), 10000);
    CHECK(rt_share_call(&w.share) == NULL);
}

static void who_leaves_is_not_called(void)
{
    world w;
    begin(&w, 1000000);
    for (size_t i = 0; i < 3; i++)
        take(&w, i, UINT64_MAX);
    rt_taker_leave(&w.takers[1]);
    rt_taker_leave(&w.takers[1]);
    CHECK(rt_share_call(&w.share) == &w.takers[0]);
    CHECK(rt_share_call(&w.share) == &w.takers[2]);
    CHECK(rt_share_call(&w.share) == NULL);
    CHECK(w.takers[2].turn);
    rt_taker_leave(&w.takers[2]);
    CHECK(!w.takers[2].turn);
}

int main(void)
{
    RUN(all_get_the_same_and_the_rate_together);
    RUN(who_is_alone_gets_what_there_is);
    RUN(nobody_goes_before_those_who_wait);
    RUN(a_turn_that_is_not_used_costs_nothing);
    RUN(who_leaves_is_not_called);
    return 0;
}
