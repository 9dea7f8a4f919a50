/* Checks for the C tests: the first that fails says where, and ends the program. */
#ifndef RT_CHECK_H
#define RT_CHECK_H

#include "live.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);     \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

#define CHECK_EQ(got, wanted)                                                             \
    do {                                                                                  \
        int64_t got_ = (int64_t)(got), wanted_ = (int64_t)(wanted);                       \
        if (got_ != wanted_) {                                                            \
            fprintf(stderr, "%s:%d: %s is %" PRId64 ", not %" PRId64 "\n", __FILE__,      \
                    __LINE__, #got, got_, wanted_);                                       \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

/* Nothing lives, whatever it was: no object, no descriptor, no memory. */
#define CHECK_NOTHING_LIVES()                                                             \
    do {                                                                                  \
        for (rt_live_kind kind_ = 0; kind_ < RT_LIVE_KINDS; kind_++)                      \
            if (rt_live_count(kind_) != 0) {                                              \
                fprintf(stderr, "%s:%d: %d of kind %s live\n", __FILE__, __LINE__,        \
                        rt_live_count(kind_), rt_live_name(kind_));                       \
                exit(1);                                                                  \
            }                                                                             \
    } while (0)

/* Name a test as a sentence of behaviour, then run it. */
#define RUN(test)                                                                         \
    do {                                                                                  \
        test();                                                                           \
        CHECK_NOTHING_LIVES();                                                            \
        printf("ok %s\n", #test);                                                         \
        fflush(stdout); /* whoever hangs is the one after it */                           \
    } while (0)

#endif
