#include "reactor.h"

#include "live.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RT_WAKE_KEY UINT64_MAX
#define RT_NO_SLOT UINT32_MAX
/* A key is generation (32), index (30), descriptor (2). */
#define RT_MAX_ENTRIES (1u << 30)
/* How long a busy loop may keep from the thread whose signals Python handles. */
#define RT_SIGNAL_PATIENCE_NS 50000000u
/* Deadlines are rounded up to this, so that throttled pairs share their wake-ups. */
#define RT_TICK_NS 1000000u

typedef struct {
    rt_entry *entry; /* NULL: free */
    uint32_t generation;
    uint32_t next_free;
} rt_slot;

struct rt_reactor {
    pthread_mutex_t lock;

    /* Guarded by the lock. */
    rt_slot *slots;
    uint32_t capacity;
    uint32_t free_slot; /* head of the free list, or RT_NO_SLOT */
    uint32_t attached;
    rt_entry *first, *last; /* ready list */
    bool waiting;           /* in rt_poller_wait: a touch has to wake it */
    bool entered;
    bool closing;
    bool released; /* closing, and nothing is attached */

    int wake_fd; /* eventfd; set once */
    rt_poller poller;

    /* Of the thread that entered. */
    rt_io io;
    rt_entry **throttled;
    uint32_t throttled_count, throttled_capacity;
    rt_rate *rates;   /* that ports wait for */
    uint64_t tick_ns; /* the earliest deadline of one of both; 0: none */
};

static void close_wake_fd(rt_reactor *reactor)
{
    if (reactor->wake_fd < 0)
        return;
    close(reactor->wake_fd);
    reactor->wake_fd = -1;
    rt_gone(RT_LIVE_DESCRIPTOR);
}

rt_reactor *rt_reactor_new(rt_poller_kind kind)
{
    rt_reactor *reactor = calloc(1, sizeof *reactor);
    if (reactor == NULL)
        return NULL;
    reactor->free_slot = RT_NO_SLOT;
    rt_born(RT_LIVE_REACTOR);
    /* First: it has to be there for rt_poller_free, whatever else fails. */
    int error = rt_poller_init(&reactor->poller, kind);
    reactor->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (reactor->wake_fd >= 0)
        rt_born(RT_LIVE_DESCRIPTOR);
    else if (error == 0)
        error = -errno;
    if (error == 0)
        error = rt_poller_add(&reactor->poller, reactor->wake_fd, RT_WAKE_KEY);
    if (error == 0)
        error = -pthread_mutex_init(&reactor->lock, NULL);
    if (error != 0) {
        close_wake_fd(reactor);
        rt_poller_free(&reactor->poller);
        free(reactor);
        rt_gone(RT_LIVE_REACTOR);
        errno = -error;
        return NULL;
    }
    rt_io_init(&reactor->io, reactor->poller.epoll_fd);
    return reactor;
}

/* The ready list. Under the lock. */

static void ready_push(rt_reactor *reactor, rt_entry *entry)
{
    if (entry->queued || !entry->attached)
        return;
    entry->queued = true;
    entry->next = NULL;
    entry->previous = reactor->last;
    *(reactor->last != NULL ? &reactor->last->next : &reactor->first) = entry;
    reactor->last = entry;
}

static void ready_remove(rt_reactor *reactor, rt_entry *entry)
{
    if (!entry->queued)
        return;
    *(entry->previous != NULL ? &entry->previous->next : &reactor->first) = entry->next;
    *(entry->next != NULL ? &entry->next->previous : &reactor->last) = entry->previous;
    entry->queued = false;
}

static void wake(rt_reactor *reactor)
{
    if (!reactor->waiting)
        return;
    reactor->waiting = false;
    uint64_t one = 1;
    /* Full is as good as written, and an eventfd fails in no other way. */
    ssize_t n = write(reactor->wake_fd, &one, sizeof one);
    (void)n;
}

/* Slots. Under the lock. */

static int slots_grow(rt_reactor *reactor)
{
    uint32_t capacity = reactor->capacity == 0 ? 64 : reactor->capacity * 2;
    if (capacity > RT_MAX_ENTRIES)
        return -ENFILE;
    rt_slot *slots = realloc(reactor->slots, capacity * sizeof *slots);
    if (slots == NULL)
        return -ENOMEM;
    for (uint32_t i = capacity; i > reactor->capacity; i--) {
        slots[i - 1] = (rt_slot){NULL, 0, reactor->free_slot};
        reactor->free_slot = i - 1;
    }
    reactor->slots = slots;
    reactor->capacity = capacity;
    return 0;
}

static uint64_t slot_key(const rt_reactor *reactor, uint32_t index, unsigned which)
{
    return (uint64_t)reactor->slots[index].generation << 32 | (uint64_t)index << 2 | which;
}

static rt_entry *slot_find(const rt_reactor *reactor, uint64_t key)
{
    uint32_t index = (uint32_t)key >> 2;
    if (index >= reactor->capacity ||
        reactor->slots[index].generation != (uint32_t)(key >> 32))
        return NULL;
    return reactor->slots[index].entry;
}

static void slot_release(rt_reactor *reactor, rt_entry *entry)
{
    rt_slot *slot = &reactor->slots[entry->index];
    slot->entry = NULL;
    slot->generation++;
    slot->next_free = reactor->free_slot;
    reactor->free_slot = entry->index;
    entry->attached = false;
    reactor->attached--;
    ready_remove(reactor, entry);
}

static int attach(rt_reactor *reactor, rt_entry *entry)
{
    if (reactor->closing)
        return -ESHUTDOWN;
    for (unsigned i = 0; i < 2; i++) {
        int error = entry->ends[i].read_fd < 0 ? 0 : rt_end_prepare(&entry->ends[i]);
        if (error != 0)
            return error;
    }
    if (reactor->free_slot == RT_NO_SLOT) {
        int error = slots_grow(reactor);
        if (error != 0)
            return error;
    }
    uint32_t index = reactor->free_slot;
    for (unsigned which = 0; which < RT_ENTRY_FDS; which++) {
        int fd = rt_entry_fd(entry, which);
        int error = fd < 0 ? 0
                           : rt_poller_add(&reactor->poller, fd,
                                           slot_key(reactor, index, which));
        if (error != 0) {
            /* Registered under this generation: an event of them must find nobody. */
            for (unsigned undo = 0; undo < which; undo++)
                rt_poller_remove(&reactor->poller, rt_entry_fd(entry, undo));
            reactor->slots[index].generation++;
            return error;
        }
    }
    reactor->free_slot = reactor->slots[index].next_free;
    reactor->slots[index].entry = entry;
    reactor->attached++;
    entry->index = index;
    entry->reactor = reactor;
    entry->attached = true;
    ready_push(reactor, entry);
    wake(reactor);
    return 0;
}

int rt_reactor_attach(rt_reactor *reactor, rt_entry *entry)
{
    pthread_mutex_lock(&reactor->lock);
    int error = attach(reactor, entry);
    pthread_mutex_unlock(&reactor->lock);
    return error;
}

void rt_reactor_touch(rt_reactor *reactor, rt_entry *entry)
{
    pthread_mutex_lock(&reactor->lock);
    ready_push(reactor, entry);
    if (entry->attached)
        wake(reactor);
    pthread_mutex_unlock(&reactor->lock);
}

void rt_reactor_abort(rt_reactor *reactor, rt_entry *entry)
{
    atomic_store_explicit(&entry->abort, ECONNABORTED, memory_order_release);
    rt_reactor_touch(reactor, entry);
}

/* Throttled entries. Of the loop's thread. */

static void throttled_remove(rt_reactor *reactor, rt_entry *entry)
{
    if (entry->throttled == 0)
        return;
    rt_entry *moved = reactor->throttled[--reactor->throttled_count];
    reactor->throttled[entry->throttled - 1] = moved;
    moved->throttled = entry->throttled;
    entry->throttled = 0;
}

static int throttled_add(rt_reactor *reactor, rt_entry *entry)
{
    if (reactor->tick_ns == 0 || entry->due_ns < reactor->tick_ns)
        reactor->tick_ns = entry->due_ns;
    if (entry->throttled != 0)
        return 0;
    if (reactor->throttled_count == reactor->throttled_capacity) {
        uint32_t capacity = reactor->throttled_capacity * 2 + 16;
        rt_entry **grown = realloc(reactor->throttled, capacity * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        reactor->throttled = grown;
        reactor->throttled_capacity = capacity;
    }
    reactor->throttled[reactor->throttled_count++] = entry;
    entry->throttled = reactor->throttled_count;
    return 0;
}

/* Rates that ports wait for. Of the loop's thread. */

static void tick_by(rt_reactor *reactor, uint64_t due_ns)
{
    due_ns += RT_TICK_NS - due_ns % RT_TICK_NS;
    if (reactor->tick_ns == 0 || due_ns < reactor->tick_ns)
        reactor->tick_ns = due_ns;
}

/* Returns whether somebody waits for it still. */
static bool share_wake(rt_reactor *reactor, rt_share *share, uint64_t now)
{
    for (unsigned turns = rt_share_turns(share, now); turns > 0; turns--) {
        rt_taker *taker = rt_share_call(share);
        if (taker == NULL)
            break;
        ready_push(reactor, taker->owner); /* a port is an entry */
    }
    if (!rt_share_has_line(share))
        return false;
    tick_by(reactor, rt_share_ready_at(share));
    return true;
}

static void rate_add(rt_reactor *reactor, rt_rate *rate)
{
    if (!rate->listed) {
        rate->listed = true;
        rate->next = reactor->rates;
        reactor->rates = rate;
        atomic_fetch_add_explicit(&rate->references, 1, memory_order_relaxed);
    }
    if (rt_share_has_line(&rate->in))
        tick_by(reactor, rt_share_ready_at(&rate->in));
    if (rt_share_has_line(&rate->out))
        tick_by(reactor, rt_share_ready_at(&rate->out));
}

/* Call who may go on; forget the rates that nobody waits for. Under the lock. */
static void rates_wake(rt_reactor *reactor, uint64_t now)
{
    rt_rate **place = &reactor->rates;
    while (*place != NULL) {
        rt_rate *rate = *place;
        bool in_waits = share_wake(reactor, &rate->in, now);
        bool out_waits = share_wake(reactor, &rate->out, now);
        if (in_waits || out_waits) {
            place = &rate->next;
        } else {
            *place = rate->next;
            rate->listed = false;
            rt_rate_release(rate);
        }
    }
}

static void rates_forget(rt_reactor *reactor)
{
    while (reactor->rates != NULL) {
        rt_rate *rate = reactor->rates;
        reactor->rates = rate->next;
        rate->listed = false;
        rt_rate_release(rate);
    }
}

/* Queue what is due; at most once per tick, however many are throttled. Under the lock. */
static void throttled_wake(rt_reactor *reactor, uint64_t now)
{
    if (reactor->tick_ns == 0 || now < reactor->tick_ns)
        return;
    reactor->tick_ns = 0;
    rates_wake(reactor, now);
    for (uint32_t i = reactor->throttled_count; i > 0; i--) {
        rt_entry *entry = reactor->throttled[i - 1];
        if (entry->due_ns <= now) {
            ready_push(reactor, entry);
            throttled_remove(reactor, entry);
        } else if (reactor->tick_ns == 0 || entry->due_ns < reactor->tick_ns) {
            reactor->tick_ns = entry->due_ns;
        }
    }
}

/* Steps. */

static void end_entry(rt_reactor *reactor, rt_entry *entry, rt_batch *batch)
{
    pthread_mutex_lock(&reactor->lock);
    slot_release(reactor, entry);
    pthread_mutex_unlock(&reactor->lock);
    throttled_remove(reactor, entry);
    rt_report *report = NULL;
    if (batch != NULL)
        report = rt_batch_add(
            batch, entry->kind == RT_PAIR ? RT_REPORT_PAIR_END : RT_REPORT_PORT_END,
            entry->owner);
    if (entry->kind == RT_PAIR) {
        rt_pair *pair = (rt_pair *)entry;
        rt_pair_close(pair, &reactor->io);
        if (report != NULL) {
            report->bytes_ab = atomic_load(&pair->ab.bytes);
            report->bytes_ba = atomic_load(&pair->ba.bytes);
        }
    } else {
        rt_port_end((rt_port *)entry, &reactor->io);
    }
    if (report != NULL)
        report->error = entry->error;
}

static void step_entry(rt_reactor *reactor, rt_entry *entry, unsigned events, uint64_t now,
                       rt_batch *batch)
{
    int outcome = entry->kind == RT_PAIR
                      ? rt_pair_step((rt_pair *)entry, events, &reactor->io, now)
                      : rt_port_step((rt_port *)entry, events, batch, now);
    if (outcome & RT_STEP_WAIT && entry->kind == RT_PORT) {
        rate_add(reactor, ((rt_port *)entry)->rate);
    } else if (outcome & RT_STEP_WAIT) {
        entry->due_ns += RT_TICK_NS - entry->due_ns % RT_TICK_NS;
        /* Without memory to wait in order, it asks again at once. */
        if (throttled_add(reactor, entry) != 0)
            outcome |= RT_STEP_MORE;
    }
    if (outcome & RT_STEP_ENDED) {
        end_entry(reactor, entry, batch);
    } else if (outcome & RT_STEP_MORE) {
        pthread_mutex_lock(&reactor->lock);
        ready_push(reactor, entry);
        pthread_mutex_unlock(&reactor->lock);
    }
}

/* Step what is ready now, each once; what comes back waits for the next round. */
static void run_ready(rt_reactor *reactor, uint64_t now, rt_batch *batch)
{
    pthread_mutex_lock(&reactor->lock);
    const rt_entry *last = reactor->last;
    bool done = last == NULL;
    while (!done && reactor->first != NULL && rt_batch_has_room(batch)) {
        rt_entry *entry = reactor->first;
        unsigned events = entry->events;
        done = entry == last;
        ready_remove(reactor, entry);
        entry->events = 0;
        pthread_mutex_unlock(&reactor->lock);
        step_entry(reactor, entry, events, now, batch);
        pthread_mutex_lock(&reactor->lock);
    }
    pthread_mutex_unlock(&reactor->lock);
}

static void end_all(rt_reactor *reactor, rt_batch *batch)
{
    for (uint32_t i = 0; i < reactor->capacity; i++) {
        rt_entry *entry = reactor->slots[i].entry;
        if (batch != NULL && !rt_batch_has_room(batch))
            return;
        if (entry == NULL)
            continue;
        entry->error = ECONNABORTED;
        end_entry(reactor, entry, batch);
    }
}

/* Tell a poller without edges what each entry is blocked on. Under the lock. */
static int watch_all(rt_reactor *reactor)
{
    int error = rt_poller_watch(&reactor->poller, reactor->wake_fd, RT_EVENT_IN, RT_WAKE_KEY);
    for (uint32_t i = 0; i < reactor->capacity && error == 0; i++) {
        rt_entry *entry = reactor->slots[i].entry;
        if (entry == NULL)
            continue;
        for (unsigned which = 0; which < RT_ENTRY_FDS && error == 0; which++) {
            int fd = rt_entry_fd(entry, which);
            if (fd < 0 || entry->hung_up & 1u << which)
                continue; /* a hang-up is reported without end, and tells nothing new */
            unsigned bits = entry->kind == RT_PAIR ? rt_entry_blocked_on(entry, which)
                                                   : rt_port_blocked_on((rt_port *)entry);
            error = rt_poller_watch(&reactor->poller, fd, bits, slot_key(reactor, i, which));
        }
    }
    return error;
}

/* Under the lock. */
static int timeout_ms(const rt_reactor *reactor)
{
    if (reactor->first != NULL || reactor->closing)
        return 0;
    if (reactor->tick_ns == 0)
        return -1;
    uint64_t now = rt_now_ns();
    uint64_t left = reactor->tick_ns > now ? reactor->tick_ns - now : 0;
    return (int)((left + RT_TICK_NS - 1) / RT_TICK_NS); /* a tick is never far away */
}

/* Under the lock. */
static void note_event(rt_reactor *reactor, const rt_event *event)
{
    if (event->key == RT_WAKE_KEY) {
        uint64_t count;
        ssize_t n = read(reactor->wake_fd, &count, sizeof count);
        (void)n;
        return;
    }
    rt_entry *entry = slot_find(reactor, event->key);
    if (entry == NULL)
        return;
    unsigned which = (unsigned)event->key & 3;
    entry->events = (uint16_t)(entry->events | event->bits << (RT_EVENT_BITS * which));
    ready_push(reactor, entry);
}

/* Wait for events and queue those they concern. Returns 0 or -errno. */
static int collect(rt_reactor *reactor)
{
    rt_event events[RT_EVENTS_PER_WAIT];
    pthread_mutex_lock(&reactor->lock);
    int timeout = timeout_ms(reactor);
    int error = reactor->poller.kind == RT_EPOLL ? 0 : watch_all(reactor);
    reactor->waiting = timeout != 0;
    pthread_mutex_unlock(&reactor->lock);
    if (error != 0)
        return error;
    int n = rt_poller_wait(&reactor->poller, timeout, &reactor->io.wait_mask, events);
    pthread_mutex_lock(&reactor->lock);
    reactor->waiting = false;
    for (int i = 0; i < n; i++)
        note_event(reactor, &events[i]);
    pthread_mutex_unlock(&reactor->lock);
    return n < 0 ? n : 0;
}

/* Everything has ended: give the descriptors back at once, whoever still holds us. */
static void release(rt_reactor *reactor)
{
    rt_io_leave(&reactor->io);
    rt_io_free(&reactor->io);
    rt_poller_free(&reactor->poller);
    pthread_mutex_lock(&reactor->lock);
    close_wake_fd(reactor);
    reactor->released = true;
    pthread_mutex_unlock(&reactor->lock);
}

static int reactor_step(rt_reactor *reactor, rt_batch *batch, bool attentive)
{
    uint64_t started = rt_now_ns();
    for (;;) {
        int error = collect(reactor);
        if (error == -EINTR)
            return RT_REACTOR_INTERRUPTED;
        if (error != 0)
            return error;
        uint64_t now = rt_now_ns();
        pthread_mutex_lock(&reactor->lock);
        bool closing = reactor->closing;
        throttled_wake(reactor, now);
        pthread_mutex_unlock(&reactor->lock);
        if (closing) {
            end_all(reactor, batch);
            if (batch->n == 0) {
                release(reactor);
                return RT_REACTOR_CLOSED;
            }
        } else {
            run_ready(reactor, now, batch);
        }
        if (batch->n != 0)
            return RT_REACTOR_REPORTS;
        /* A wait that finds events at once does not look for signals. */
        if (attentive && now - started > RT_SIGNAL_PATIENCE_NS)
            return RT_REACTOR_INTERRUPTED;
    }
}

int rt_reactor_step(rt_reactor *reactor, rt_batch *batch, bool attentive)
{
    batch->n = 0;
    batch->arena_used = 0;
    rt_io_enter(&reactor->io);
    int outcome = reactor_step(reactor, batch, attentive);
    rt_io_leave(&reactor->io);
    return outcome;
}

int rt_reactor_enter(rt_reactor *reactor)
{
    pthread_mutex_lock(&reactor->lock);
    int outcome = 0;
    if (reactor->released || (reactor->entered && reactor->closing))
        outcome = -ESHUTDOWN;
    else if (reactor->entered)
        outcome = -EBUSY;
    else
        reactor->entered = true;
    pthread_mutex_unlock(&reactor->lock);
    return outcome;
}

void rt_reactor_leave(rt_reactor *reactor)
{
    pthread_mutex_lock(&reactor->lock);
    reactor->entered = false;
    pthread_mutex_unlock(&reactor->lock);
}

void rt_reactor_close(rt_reactor *reactor)
{
    pthread_mutex_lock(&reactor->lock);
    reactor->closing = true;
    wake(reactor);
    pthread_mutex_unlock(&reactor->lock);
}

void rt_reactor_detach(rt_reactor *reactor, rt_entry *entry)
{
    if (!entry->attached)
        return;
    entry->error = ECONNABORTED;
    end_entry(reactor, entry, NULL);
}

void rt_reactor_free(rt_reactor *reactor)
{
    end_all(reactor, NULL);
    release(reactor);
    pthread_mutex_destroy(&reactor->lock);
    rates_forget(reactor);
    free(reactor->throttled);
    free(reactor->slots);
    free(reactor);
    rt_gone(RT_LIVE_REACTOR);
}
