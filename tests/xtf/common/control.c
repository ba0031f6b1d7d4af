#include <xtf/control.h>

#include <xtf/event.h>
#include <xtf/hypercall.h>
#include <xtf/lib.h>
#include <xtf/platform.h>
#include <xtf/xenstore.h>

static const char path[] = "control/shutdown";

void control_init(void)
{
    xs_write(0, "control/feature-suspend", "1");
    xs_write(0, "control/feature-poweroff", "1");
    xs_write(0, "control/feature-reboot", "1");
    if (xs_watch(path, 0))
        panic("can't watch %s\n", path);
}

/*
 * The toolstack may take a request back at any time, by a transaction too: of
 * the two, one wins.
 */
enum request control_take(void)
{
    char value[XS_VALUE_MAX + 1];
    uint32_t tx;
    int ret;

    do {
        if (xs_transaction_start(&tx))
            return REQUEST_NONE;
        if (xs_read(tx, path, value) > 0)
            xs_write(tx, path, "");
        else
            value[0] = 0;
        ret = xs_transaction_end(tx);
    } while (ret == XS_EAGAIN);

    if (ret)
        return REQUEST_NONE;
    if (!strcmp(value, "suspend"))
        return REQUEST_SUSPEND;
    if (!strcmp(value, "poweroff") || !strcmp(value, "halt"))
        return REQUEST_POWEROFF;
    return strcmp(value, "reboot") ? REQUEST_NONE : REQUEST_REBOOT;
}

int control_suspend(void)
{
    struct sched_shutdown s = { .reason = SHUTDOWN_suspend };
    int cancelled = sched_op(SCHEDOP_shutdown, &s);

    if (cancelled)
        return 1;
    platform_connect();
    control_init();
    return 0;
}
