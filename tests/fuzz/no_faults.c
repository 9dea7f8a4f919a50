/* The peer marks where faults may be injected (tests/c/faults.h): in fuzzers none are. */
#include "faults.h"

void faults_begin(void)
{
}

void faults_end(void)
{
}
