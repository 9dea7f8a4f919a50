/* Live objects, counted in debug builds (RT_DEBUG=1): once everything is closed, each
 * count is zero, and every test ends so. Each extension counts for itself. Elsewhere
 * counting costs nothing. Any thread. */
#ifndef RT_LIVE_H
#define RT_LIVE_H

typedef enum {
    RT_LIVE_ENGINE,
    RT_LIVE_CHANNEL,
    RT_LIVE_KEY,
    RT_LIVE_LIMIT,
    RT_LIVE_REACTOR,
    RT_LIVE_PAIR,
    RT_LIVE_PORT,
    RT_LIVE_RATE,
    RT_LIVE_DESCRIPTOR, /* made here, or taken over from the caller */
    RT_LIVE_BLOCK,      /* memory that this module allocated (tests/c/faults.c) */
    RT_LIVE_KINDS,
} rt_live_kind;

#if RT_DEBUG
void rt_live_add(rt_live_kind kind, int n);
int rt_live_count(rt_live_kind kind);
const char *rt_live_name(rt_live_kind kind);
#else
static inline void rt_live_add(rt_live_kind kind, int n)
{
    (void)kind;
    (void)n;
}
static inline int rt_live_count(rt_live_kind kind)
{
    (void)kind;
    return 0;
}
static inline const char *rt_live_name(rt_live_kind kind)
{
    (void)kind;
    return "";
}
#endif

static inline void rt_born(rt_live_kind kind)
{
    rt_live_add(kind, 1);
}

static inline void rt_gone(rt_live_kind kind)
{
    rt_live_add(kind, -1);
}

#endif
