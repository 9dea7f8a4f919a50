#include "check.h"
#include "faults.h"

#include <dirent.h>

static unsigned run_nth, run_which;
static void (*running)(void);

static unsigned open_descriptors(void)
{
    unsigned n = 0;
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder != NULL);
    while (readdir(folder) != NULL)
        n++;
    closedir(folder);
    return n;
}

static void tell_what_ran(void)
{
    const char *fired = faults_fired();
    if (running != NULL)
        fprintf(stderr, "at call %u, error %u: %s\n", run_nth, run_which,
                fired != NULL ? fired : "no fault");
}

static unsigned run_once(void (*scenario)(void))
{
    unsigned before = open_descriptors();
    faults_arm(run_nth, run_which);
    scenario();
    unsigned calls = faults_disarm();
    CHECK_NOTHING_LIVES();
    CHECK_EQ(open_descriptors(), before);
    return calls;
}

unsigned faults_exhaust(void (*scenario)(void))
{
    static int registered;
    unsigned runs = 0;
    if (!registered++)
        CHECK(atexit(tell_what_ran) == 0);
    running = scenario;
    run_which = 0;
    for (run_nth = 0;; run_nth++) {
        unsigned calls = 0;
        run_which = 0;
        do {
            calls = run_once(scenario);
            runs++;
        } while (++run_which < faults_errors());
        if (calls < run_nth)
            break;
    }
    running = NULL;
    return runs;
}
