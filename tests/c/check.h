/* Checks for the C tests: the first that fails says where, and ends the program. */
#ifndef RT_CHECK_H
#define RT_CHECK_H

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

/* Name a test as a sentence of behaviour, then run it. */
#define RUN(test)                                                                         \
    do {                                                                                  \
        test();                                                                           \
        printf("ok %s\n", #test);                                                         \
        fflush(stdout); /* whoever hangs is the one after it */                           \
    } while (0)

#endif
