/* The time that the code under test sees: it stands still but for what a fuzzer adds, so
 * that an input is the same run each time (clock_gettime is wrapped by the linker). */
#ifndef RT_FUZZ_CLOCK_H
#define RT_FUZZ_CLOCK_H

#include <stdint.h>

extern uint64_t clock_us;

#endif
