/*
 * tests/counter: a guest whose memory tells on itself.
 *
 * Its state is a count, a running checksum, a table that says when each page
 * was last written, and those pages. Each step picks two pages by the
 * checksum, checks every word of both against what the table says must be
 * there, takes what it found into the checksum, and writes the first anew. A
 * page that is stale, lost or torn after a takeover is found at the next step
 * that picks it, or by a check of all pages. tests/xtf/model is the same
 * arithmetic in Go.
 *
 * Command line:
 *   pages=512     how many pages there are
 *   rate=200      steps a second; 0 is as many as the vCPU does
 *   print=1000    a line every so many steps
 *   publish=500   milliseconds between the writes of data/state
 *   seed=1        of the first checksum
 *   count=0       end after so many steps; 0 is never
 *
 * In xenstore, under the domain's directory:
 *   data/state    "COUNT SUM" a while ago
 *   data/woken    "N resumed|restored COUNT": its Nth suspend, and the count
 *                 that it returned with
 *   data/check    whoever writes a word here gets, in
 *   data/result   "WORD ok COUNT SUM DIGEST" if all pages are right (DIGEST is
 *                 of all of them) or "WORD bad ..."
 *
 * A guest that has found a wrong page stops counting. It runs on, to be asked.
 */

#include <xtf/clock.h>
#include <xtf/console.h>
#include <xtf/control.h>
#include <xtf/lib.h>
#include <xtf/platform.h>
#include <xtf/test.h>
#include <xtf/xenstore.h>

#include "arith.h"

const char test_title[] = "Counter whose pages check each other";

#define SLICE 10000000UL /* ns: steps are done in bunches, to sleep between */

static struct {
    uint64_t count, sum;
    uint64_t suspends;
} state;

/* What state must agree with; on another page, so that one alone can't be old. */
static struct {
    uint64_t value;
} __attribute__((aligned(PAGE_SIZE))) seal;

static uint64_t (*pages)[WORDS];
static uint64_t *written; /* the count at which each page was */
static uint64_t npages;

static bool bad;
static char fault[160];

static uint64_t began_steps; /* the clock and count from which the rate counts */
static uint64_t began_count;
static uint64_t rate, publish_every, publish_at;

static void publish(void)
{
    char value[64];

    format(value, sizeof value, "%lu %016lx", state.count, state.sum);
    xs_write(0, "data/state", value);
    publish_at = clock_now() + publish_every;
}

static void found_bad(void)
{
    bad = true;
    xtf_failure("%s\n", fault);
    xs_write(0, "data/result", fault);
}

/* check_page returns the digest of the page as it is. */
static uint64_t check_page(uint64_t page)
{
    uint64_t key = page_key(page, written[page]), digest = 0;

    for (unsigned i = 0; i < WORDS; i++) {
        uint64_t found = pages[page][i], want = page_word(key, i);

        if (found != want && !bad) {
            format(fault, sizeof fault,
                   "page %lu word %u at count %lu: found %016lx, want %016lx of count %lu",
                   page, i, state.count, found, want, written[page]);
            found_bad();
        }
        digest = digest_add(digest, found);
    }
    return digest;
}

static void write_page(uint64_t page)
{
    uint64_t key = page_key(page, written[page]);

    for (unsigned i = 0; i < WORDS; i++)
        pages[page][i] = page_word(key, i);
}

static void check_seal(void)
{
    uint64_t want = seal_of(state.count, state.sum);

    if (seal.value != want && !bad) {
        format(fault, sizeof fault,
               "seal at count %lu sum %016lx: found %016lx, want %016lx",
               state.count, state.sum, seal.value, want);
        found_bad();
    }
}

static void step(void)
{
    struct pick p = pick_of(state.count, state.sum, npages);
    uint64_t a, b;

    check_seal();
    a = check_page(p.change);
    b = check_page(p.look);
    if (bad)
        return;
    state.count++;
    state.sum = sum_add(state.sum, state.count, a, b);
    written[p.change] = state.count;
    write_page(p.change);
    seal.value = seal_of(state.count, state.sum);
}

static uint64_t check_all(void)
{
    uint64_t digest = 0;

    check_seal();
    for (uint64_t i = 0; i < npages; i++)
        digest = digest_add(digest, check_page(i));
    return digest;
}

static void answer(const char *word)
{
    char value[XS_VALUE_MAX + 1];
    uint64_t digest = check_all();

    if (bad)
        format(value, sizeof value, "%s bad %s", word, fault);
    else
        format(value, sizeof value, "%s ok %lu %016lx %016lx", word,
               state.count, state.sum, digest);
    printk("check %s\n", value);
    xs_write(0, "data/result", value);
}

static void fired(unsigned bits)
{
    char word[XS_VALUE_MAX + 1];

    if (bits & 1U << WATCH_TEST && xs_read(0, "data/check", word) > 0) {
        word[32] = 0;
        answer(word);
    }
}

static void watch(void)
{
    if (xs_watch("data/check", WATCH_TEST))
        xtf_error("can't watch data/check\n");
}

/* hurry_not: time that the guest stood still is not made up for. */
static void hurry_not(void)
{
    began_steps = clock_now();
    began_count = state.count;
}

static void woken(enum outcome outcome)
{
    const char *how = outcome == OUTCOME_RESTORED ? "restored" : "resumed";
    char value[64];

    state.suspends++;
    printk("%s suspend %lu count %lu sum %016lx\n", how, state.suspends,
           state.count, state.sum);
    hurry_not();
    if (outcome == OUTCOME_RESTORED) {
        watch();
        format(value, sizeof value, "%lu %s %lu", state.suspends, how, state.count);
        xs_write(0, "data/woken", value);
        publish();
    }
}

static void finish(void)
{
    uint64_t digest = check_all();

    publish();
    if (!bad)
        xtf_success("count %lu sum %016lx digest %016lx, %lu suspends\n",
                    state.count, state.sum, digest, state.suspends);
}

static const struct test_hooks hooks = {
    .woken = woken, .fired = fired, .stopping = finish,
};

/* due says how many steps the clock allows. */
static uint64_t due(void)
{
    uint64_t should;

    if (!rate)
        return 64;
    should = began_count + (clock_now() - began_steps) * rate / 1000000000;
    return should > state.count ? should - state.count : 0;
}

void test_main(void)
{
    uint64_t print = option("print", 1000), last = option("count", 0);

    npages = option("pages", 512);
    rate = option("rate", 200);
    publish_every = option("publish", 500) * 1000000;
    if (!npages || !print) {
        xtf_error("pages and print must not be 0\n");
        return;
    }
    pages = ram_alloc(npages);
    written = ram_alloc((npages * sizeof *written + PAGE_SIZE - 1) / PAGE_SIZE);
    for (uint64_t i = 0; i < npages; i++)
        write_page(i);
    state.sum = first_sum(option("seed", 1));
    seal.value = seal_of(0, state.sum);
    watch();
    printk("%lu pages, %lu steps a second\n", npages, rate);
    hurry_not();
    publish();

    for (;;) {
        uint64_t n = bad ? 0 : due();

        for (; n && !bad; n--) {
            step();
            if (state.count % print == 0)
                printk("count %lu sum %016lx\n", state.count, state.sum);
            if (state.count == last) {
                finish();
                return;
            }
            /* A suspend that is asked for does not wait for a bunch. */
            serve(&hooks);
        }
        if (clock_now() >= publish_at)
            publish();
        if (rate || bad)
            rest(&hooks, SLICE);
        else
            serve(&hooks);
    }
}
