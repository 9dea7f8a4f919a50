#include "check.h"
#include "path.h"

static void leave(rt_path *p, uint32_t id, uint64_t now_us)
{
    rt_probe probe = {.local_id = id, .sent_us = now_us};
    CHECK(rt_path_may_probe(p));
    rt_path_sent(p, &probe);
}

static void an_answer_gives_the_round_trip_and_the_best_one_is_kept(void)
{
    rt_path p = {0};
    rt_probe probe;
    leave(&p, 1, 1000);
    CHECK(rt_path_answered(&p, 1, 41000, &probe));
    CHECK_EQ(p.rtt_us, 40000);
    leave(&p, 1, 50000);
    CHECK(rt_path_answered(&p, 1, 80000, &probe));
    leave(&p, 1, 100000);
    CHECK(rt_path_answered(&p, 1, 200000, &probe));
    CHECK_EQ(p.rtt_us, 100000);
    CHECK_EQ(p.rtt_min_us, 30000);
}

static void answers_come_in_the_order_of_the_probes(void)
{
    rt_path p = {0};
    rt_probe probe;
    leave(&p, 1, 10);
    leave(&p, 2, 20);
    leave(&p, 1, 30);
    CHECK(rt_path_answered(&p, 1, 40, &probe) && probe.sent_us == 10);
    CHECK(rt_path_answered(&p, 2, 40, &probe) && probe.sent_us == 20);
    CHECK(rt_path_answered(&p, 1, 40, &probe) && probe.sent_us == 30);
    CHECK(!rt_path_answered(&p, 1, 40, &probe));
}

static void an_answer_to_no_probe_is_nothing(void)
{
    rt_path p = {0};
    rt_probe probe;
    CHECK(!rt_path_answered(&p, 1, 10, &probe));
    leave(&p, 1, 10);
    CHECK(!rt_path_answered(&p, 2, 20, &probe));
    CHECK_EQ(p.count, 1);
}

static void probes_of_a_channel_that_ended_are_not_waited_for(void)
{
    rt_path p = {0};
    rt_probe probe;
    leave(&p, 1, 10);
    leave(&p, 2, 20);
    leave(&p, 1, 30);
    rt_path_forget(&p, 1);
    CHECK_EQ(p.count, 2); /* the first is gone, the last waits behind another */
    CHECK(rt_path_answered(&p, 2, 50, &probe));
    rt_path_forget(&p, 1);
    CHECK_EQ(p.count, 0);
}

static void only_so_many_probes_are_under_way(void)
{
    rt_path p = {0};
    for (unsigned i = 0; i < RT_MAX_PROBES; i++)
        leave(&p, 1, i);
    CHECK(!rt_path_may_probe(&p));
}

static void a_peer_that_does_not_answer_is_asked_no_more(void)
{
    rt_path p = {0};
    leave(&p, 1, 10);
    rt_path_expire(&p, 10 + RT_PROBE_TIMEOUT_US - 1);
    CHECK(rt_path_may_probe(&p));
    rt_path_expire(&p, 10 + RT_PROBE_TIMEOUT_US);
    CHECK(!rt_path_may_probe(&p));
}

int main(void)
{
    RUN(an_answer_gives_the_round_trip_and_the_best_one_is_kept);
    RUN(answers_come_in_the_order_of_the_probes);
    RUN(an_answer_to_no_probe_is_nothing);
    RUN(probes_of_a_channel_that_ended_are_not_waited_for);
    RUN(only_so_many_probes_are_under_way);
    RUN(a_peer_that_does_not_answer_is_asked_no_more);
    return 0;
}
