/* Every allocation and system call of src/pump that can fail, made to fail on demand.
 *
 * A program that is linked with faults.wrap calls these in place of libc. The n-th call
 * between faults_begin and faults_end fails with one of the errors that this call may
 * have; a test goes through all n, and all errors of each (faults_exhaust).
 *
 * What is not injected, and why: EBADF, EFAULT and EINVAL of arguments are mistakes of
 * ours. An eventfd refuses a write only when it is full, and then it is: the write is
 * made. SO_LINGER and O_NONBLOCK need nothing that could be missing. A short count tells
 * edge-triggered epoll's user that the socket is empty or full (epoll(7)), and so does
 * EAGAIN: the edge that ends it is brought at once.
 */
#ifndef RT_FAULTS_H
#define RT_FAULTS_H

#include <stdbool.h>

#define FAULTS_API __attribute__((visibility("default")))

/* Let call number `nth` (from 1) fail with error number `which` (from 0) of its list, or
 * succeed if the list is shorter. Counts calls of every thread between begin and end. */
FAULTS_API void faults_arm(unsigned nth, unsigned which);
/* No call fails from here on. Returns how many were counted since faults_arm. */
FAULTS_API unsigned faults_disarm(void);
/* How many errors call number `nth` may have; 0: there was none. */
FAULTS_API unsigned faults_errors(void);
/* The call that failed, and with which errno: "recv: ECONNRESET"; or NULL. */
FAULTS_API const char *faults_fired(void);
/* Whether that call failed: "recv", or with its errno, "recv: ECONNRESET". */
FAULTS_API bool faults_fired_by(const char *call);
/* Only calls of this thread between the two count, and fail. They nest. */
FAULTS_API void faults_begin(void);
FAULTS_API void faults_end(void);
/* All calls of all threads count, whether between the two or not. */
FAULTS_API void faults_everywhere(bool on);
/* A wait that finds nothing does not wait: it is interrupted (EINTR). So one thread can
 * run a loop in steps. */
FAULTS_API void faults_never_wait(bool on);

/* Run `scenario` without a fault, then once for every error of every call that it makes,
 * until a run has no more calls. Ends the program if something lives after it, or a
 * descriptor is open that was not (exhaust.c). Returns the number of runs. */
unsigned faults_exhaust(void (*scenario)(void));

#endif
