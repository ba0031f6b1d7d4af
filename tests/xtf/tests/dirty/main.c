/*
 * tests/dirty: a guest that dirties pages at a steady rate and tells how long
 * it was ever kept from running.
 *
 * It writes one word of each page in turn, round and round through its working
 * set.
 *
 * Command line:
 *   rate=1000     pages a second
 *   pages=1000    working set
 *   spin=0        1: look at the clock all the time instead of sleeping
 *                 between bunches, which sees every stop and takes a CPU
 *   publish=500   milliseconds between the writes to xenstore
 *   count=0       end after so many pages; 0 is never
 *
 * In xenstore, under the domain's directory:
 *   data/state    pages written so far
 *   data/stall    "LONGEST SUSPENDED SUSPENDS BLACKOUT", times in microseconds:
 *                 the longest standstill; the longest one in a suspend that was
 *                 cancelled, from the acknowledgement on; how many of those
 *                 there were; and how long the last restore took by the hosts'
 *                 clocks. Sleep is no standstill, but what exceeds it is. The
 *                 first two are by the TSC and know nothing of a restore.
 *   data/reset    whoever writes here sets data/stall to 0
 */

#include <xtf/clock.h>
#include <xtf/console.h>
#include <xtf/control.h>
#include <xtf/lib.h>
#include <xtf/platform.h>
#include <xtf/test.h>
#include <xtf/xenstore.h>

const char test_title[] = "Dirty pages at a steady rate";

#define SLICE 5000000UL /* ns */

static uint8_t *pages;
static uint64_t npages, rate, spin, last;
static uint64_t written;

static uint64_t began, began_written; /* from which the rate counts */
static uint64_t publish_every, publish_at;

static uint64_t seen; /* when the guest last ran for sure */
static uint64_t wall; /* and what the host took for the time */
static uint64_t longest, suspended, suspends, blackout;

static void publish(void)
{
    char value[96];

    format(value, sizeof value, "%lu", written);
    xs_write(0, "data/state", value);
    format(value, sizeof value, "%lu %lu %lu %lu", longest / 1000,
           suspended / 1000, suspends, blackout / 1000);
    xs_write(0, "data/stall", value);
    publish_at = clock_now() + publish_every;
}

/* ran notes that the guest runs, and had no reason to wait until when. */
static void ran(uint64_t when)
{
    uint64_t now = clock_now();

    if (now > when && now - when > longest)
        longest = now - when;
    seen = now;
    wall = clock_wall();
}

static void restart_rate(void)
{
    began = clock_now();
    began_written = written;
}

static void watch(void)
{
    if (xs_watch("data/reset", WATCH_TEST))
        xtf_error("can't watch data/reset\n");
}

static void woken(enum outcome outcome)
{
    uint64_t now = clock_now();

    if (outcome == OUTCOME_CANCELLED) {
        suspends++;
        if (now - seen > suspended)
            suspended = now - seen;
        ran(seen);
    } else {
        blackout = clock_wall() - wall;
        printk("restored after %lu pages, out for %lu us\n", written,
               blackout / 1000);
        watch();
        ran(now);
        publish();
    }
    restart_rate();
}

static void fired(unsigned bits)
{
    char value[XS_VALUE_MAX + 1];

    /* A watch fires when it is set, too; then there is nothing to read. */
    if (bits & 1U << WATCH_TEST && xs_read(0, "data/reset", value) >= 0)
        longest = suspended = suspends = 0;
}

static void finish(void)
{
    publish();
    xtf_success("%lu pages, longest standstill %lu us, suspended %lu us, %lu suspends\n",
                written, longest / 1000, suspended / 1000, suspends);
}

static const struct test_hooks hooks = {
    .woken = woken, .fired = fired, .stopping = finish,
};

static void dirty(void)
{
    uint64_t due = began_written + (clock_now() - began) * rate / 1000000000;

    for (; written < due && written != last; written++)
        *(volatile uint64_t *)(pages + written % npages * PAGE_SIZE) = written + 1;
}

void test_main(void)
{
    npages = option("pages", 1000);
    rate = option("rate", 1000);
    spin = option("spin", 0);
    publish_every = option("publish", 500) * 1000000;
    last = option("count", 0);
    if (!last)
        last = UINT64_MAX;
    if (!npages) {
        xtf_error("pages must not be 0\n");
        return;
    }
    pages = ram_alloc(npages);
    watch();
    printk("%lu pages a second of %lu\n", rate, npages);
    publish();
    restart_rate();
    ran(UINT64_MAX);

    while (written != last) {
        dirty();
        ran(seen);
        if (seen >= publish_at) {
            publish();
            ran(UINT64_MAX); /* the time that xenstored takes is no standstill */
        }
        if (spin) {
            serve(&hooks);
            ran(seen);
        } else {
            ran(rest(&hooks, SLICE));
        }
    }
    finish();
}
