/*
 * A test is a title and test_main; the runtime does the rest. What it prints
 * follows the Xen Test Framework: a banner, lines, and one "Test result".
 */

#ifndef XTF_TEST_H
#define XTF_TEST_H

#include <stdint.h>

extern const char test_title[];
void test_main(void);

/* The worst result that was announced counts. */
void xtf_success(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void xtf_failure(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void xtf_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* xtf_report prints the result. */
void xtf_report(void);

enum outcome {
    OUTCOME_CANCELLED, /* a suspend that the toolstack took back */
    OUTCOME_RESTORED,  /* this is a new domain */
};

/* What the runtime calls in service. */
struct test_hooks {
    void (*woken)(enum outcome outcome);  /* after each suspend */
    void (*fired)(unsigned bits);         /* the test's own watches */
    void (*stopping)(void);               /* before poweroff or reboot */
};

/* serve does what xenstore asks for, if anything; it does not wait. */
void serve(const struct test_hooks *hooks);

/* rest serves, then sleeps so long or until xenstore has news. It returns what
 * the clock shows at the end of a full sleep. */
uint64_t rest(const struct test_hooks *hooks, uint64_t ns);

#endif
