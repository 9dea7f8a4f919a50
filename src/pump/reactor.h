/* The reactor: one loop that steps many pairs and ports.
 *
 * Theory of operation
 *
 * - One thread runs rt_reactor_step over and over; it alone steps entries, closes
 *   descriptors and fills the batch of reports. Other threads attach entries, change
 *   ports (port.h) and touch what needs a step.
 * - An entry that has something to do is in the ready list. Events put it there, other
 *   threads do (rt_reactor_touch), and a step that did not finish puts it back at the
 *   end: so each gets its turn, and a turn costs what is ready, not what is registered.
 * - A slot has an index and a generation. Events carry both, so that one which was
 *   fetched before its entry ended does not reach the entry that has the slot now.
 * - Locking: the reactor's lock guards slots, the ready list and the fields of rt_entry
 *   that say so. It is held for a few instructions, never during I/O on an end. A port's
 *   lock may be taken inside it, never the other way round. Callers from Python release
 *   the GIL before either.
 * - A wake-up is written to an eventfd only if the loop waits (`waiting`).
 * - Callbacks are not made here: a step returns with reports, and their owner makes the
 *   calls with no lock held. So they may call anything of the reactor.
 */
#ifndef RT_REACTOR_H
#define RT_REACTOR_H

#include "poller.h"
#include "port.h"
#include "relay.h"

typedef struct rt_reactor rt_reactor;

enum {
    RT_REACTOR_REPORTS = 0,     /* the batch holds reports: make the calls, come back */
    RT_REACTOR_INTERRUPTED = 1, /* perhaps by a signal: handle it, come back */
    RT_REACTOR_CLOSED = 2,      /* everything was ended and reported */
};

/* NULL: errno says why. Freed by rt_reactor_free, which resets what is attached. */
rt_reactor *rt_reactor_new(rt_poller_kind kind);
void rt_reactor_free(rt_reactor *reactor);

/* Take an entry up and step it soon. Owns its descriptors if it returns 0, else they
 * are the caller's: -ESHUTDOWN after rt_reactor_close, -ERANGE for select, or what
 * epoll_ctl(2) said. Any thread. */
int rt_reactor_attach(rt_reactor *reactor, rt_entry *entry);

/* Reset and forget an entry if it is attached, without a report. For owners that go
 * away while nothing runs; never while another thread is in rt_reactor_step. */
void rt_reactor_detach(rt_reactor *reactor, rt_entry *entry);

/* Step an entry soon; nothing if it has ended. The memory of `entry` has to outlive the
 * call, here and below: the loop may end it at any time. Any thread. */
void rt_reactor_touch(rt_reactor *reactor, rt_entry *entry);

/* End an entry: its descriptors are reset in its next step. Any thread. */
void rt_reactor_abort(rt_reactor *reactor, rt_entry *entry);

/* Claim the loop for this thread. 0, -EBUSY (another has it) or -ESHUTDOWN (all gone,
 * or another is about to see to that). Any thread. */
int rt_reactor_enter(rt_reactor *reactor);
void rt_reactor_leave(rt_reactor *reactor);

/* Wait and step until there are reports. `batch` is emptied first. `attentive` is for the
 * thread that handles signals: a busy loop then returns 20 times a second for them.
 * Returns RT_REACTOR_* or -errno. Only between rt_reactor_enter and rt_reactor_leave. */
int rt_reactor_step(rt_reactor *reactor, rt_batch *batch, bool attentive);

/* End everything from the next step on: entries are reset with ECONNABORTED. Any
 * thread. */
void rt_reactor_close(rt_reactor *reactor);

#endif
