#include <xtf/test.h>

#include <xtf/clock.h>
#include <xtf/console.h>
#include <xtf/control.h>
#include <xtf/event.h>
#include <xtf/hypercall.h>
#include <xtf/lib.h>
#include <xtf/platform.h>
#include <xtf/xenstore.h>

void traps_init(void);

/* From good to bad. A test that announced nothing has forgotten to. */
static enum result { NONE, SUCCESS, ERROR, FAILURE } result;
static const char *const names[] = { "ERROR", "SUCCESS", "ERROR", "FAILURE" };

void start_c(const struct hvm_start_info *si)
{
    traps_init();
    platform_init(si);
    platform_connect();
    printk("--- Xen Test Framework ---\n"
           "Environment: PVH 64bit (Long mode 4 levels)\n"
           "%s\n", test_title);
    control_init();
    test_main();
    xtf_report();
    shutdown(SHUTDOWN_poweroff);
}

static void announce(enum result r, const char *what, const char *fmt, va_list ap)
{
    char line[200];

    vformat(line, sizeof line, fmt, ap);
    printk("%s%s", what, line);
    if (r > result)
        result = r;
}

void xtf_success(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    announce(SUCCESS, "Success: ", fmt, ap);
    va_end(ap);
}

void xtf_failure(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    announce(FAILURE, "Fail: ", fmt, ap);
    va_end(ap);
}

void xtf_error(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    announce(ERROR, "Error: ", fmt, ap);
    va_end(ap);
}

void xtf_report(void)
{
    printk("Test result: %s\n", names[result]);
}

static void obey(const struct test_hooks *hooks)
{
    enum request r = control_take();

    switch (r) {
    case REQUEST_NONE:
        return;
    case REQUEST_SUSPEND:
        hooks->woken(control_suspend() ? OUTCOME_CANCELLED : OUTCOME_RESTORED);
        return;
    case REQUEST_POWEROFF:
    case REQUEST_REBOOT:
        hooks->stopping();
        xtf_report();
        shutdown(r == REQUEST_REBOOT ? SHUTDOWN_reboot : SHUTDOWN_poweroff);
    }
}

void serve(const struct test_hooks *hooks)
{
    unsigned bits = xs_fired();

    /* The test's first: a restore leaves no watch to tell it later. */
    if (bits & -(1U << WATCH_TEST))
        hooks->fired(bits);
    if (bits & 1)
        obey(hooks);
}

uint64_t rest(const struct test_hooks *hooks, uint64_t ns)
{
    uint64_t when;

    serve(hooks);
    /* Only now: after a restore the clock is another one. */
    when = clock_now() + ns;
    event_wait(xs_port(), when);
    return when;
}
