/* Each allocation and system call of the engine fails, once, in every way that it may:
 * docs/faults.md says what must happen then. */
#include "check.h"
#include "faults.h"
#include "peer.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

static void make_an_engine(void)
{
    static const uint8_t key[16], iv[RT_GCM_IV_BYTES];
    const rt_rate_of rate = {1, 1000000};
    const rt_peer_side side = {5, 100000, 1000};
    uint32_t id;
    int ssh[2], local[2];
    stream_pair(ssh);
    stream_pair(local);
    faults_begin();
    rt_engine *e = rt_engine_new(ssh[0]);
    CHECK(e != NULL || (faults_fired() != NULL && errno != 0));
    int ours = 1;
    if (e != NULL) {
        int keyed = rt_engine_set_seal_key(e, key, sizeof key, iv);
        CHECK(keyed == 0 || keyed == RT_ENOMEM);
        int accepted = rt_engine_accept_limited(e, local[0], &side, 1000, 1000,
                                                RT_PRIORITY_AUTO, &rate, &id);
        CHECK(accepted == 0 || accepted == RT_ENOMEM);
        CHECK(accepted == 0 || faults_fired() != NULL);
        ours = accepted != 0; /* owned at success only */
        rt_engine_free(e);
    }
    faults_end();
    CHECK_EQ(has_ended(local[1]) != 0, !ours);
    if (ours)
        close(local[0]);
    close(local[1]);
    close(ssh[0]);
    close(ssh[1]);
}

static void an_engine_and_its_channel_are_made_or_refused_and_keep_nothing(void)
{
    char why[256];
    CHECK(rt_gcm_load(NULL, why, sizeof why) == 0);
    CHECK(faults_exhaust(make_an_engine) > 10);
}

static void tune_a_socket(void)
{
    rt_packets p;
    int ssh[2];
    tcp_pair(ssh);
    faults_begin();
    int made = rt_packets_init(&p, ssh[0]);
    faults_end();
    CHECK(made == 0 || faults_fired() != NULL);
    for (int i = 0; made == 0 && i < 2; i++) {
        int low_water = 0;
        socklen_t size = sizeof low_water;
        CHECK(send(ssh[1], "hello", 5, 0) == 5);
        p.readable = 1;
        faults_begin();
        rt_packets_wake_at(&p, i == 0 ? 4096 : 1);
        rt_receive_result received = rt_packets_receive(&p);
        rt_packets_acknowledge(&p);
        faults_end();
        CHECK(received == RT_RECEIVE_SOME || faults_fired() != NULL);
        CHECK(getsockopt(ssh[0], SOL_SOCKET, SO_RCVLOWAT, &low_water, &size) == 0);
        CHECK_EQ(p.wake_at, low_water); /* else it would wait for what does not come */
    }
    rt_packets_free(&p);
    close(ssh[0]);
    close(ssh[1]);
}

static void an_option_that_the_ssh_socket_refuses_changes_nothing(void)
{
    CHECK(faults_exhaust(tune_a_socket) > 10);
}

int main(void)
{
    RUN(an_engine_and_its_channel_are_made_or_refused_and_keep_nothing);
    RUN(an_option_that_the_ssh_socket_refuses_changes_nothing);
    return 0;
}
