#include <xtf/console.h>

#include <stdint.h>

#include <xen/io/console.h>

#include <xtf/clock.h>
#include <xtf/cpu.h>
#include <xtf/event.h>
#include <xtf/hypercall.h>
#include <xtf/lib.h>
#include <xtf/platform.h>

#define DEBUG_PORT 0xe9
#define PATIENCE   2000000000UL /* ns */

static volatile struct xencons_interface *ring;
static evtchn_port_t port;

void console_connect(void)
{
    /* Toolstacks number the frame and the port anew for each domain. */
    ring = (void *)(hvm_param(HVM_PARAM_CONSOLE_PFN) * PAGE_SIZE);
    port = hvm_param(HVM_PARAM_CONSOLE_EVTCHN);
}

void console_emergency(const char *s)
{
    while (*s)
        outb(DEBUG_PORT, *s++);
}

/* await waits until the host has left no more than keep bytes in the ring. */
static bool await(uint32_t keep)
{
    uint64_t limit = clock_now() + PATIENCE;

    while (ring->out_prod - ring->out_cons > keep) {
        if (clock_now() >= limit)
            return false;
        event_wait(port, limit);
    }
    return true;
}

static void write(const char *s, size_t len)
{
    uint32_t prod = ring->out_prod;

    mb(); /* the host's out_cons first, then what it has freed */
    for (size_t i = 0; i < len; i++) {
        if (prod - ring->out_cons == sizeof ring->out) {
            event_send(port);
            if (!await(sizeof ring->out - 1))
                break;
        }
        ring->out[MASK_XENCONS_IDX(prod, ring->out)] = s[i];
        barrier();
        ring->out_prod = ++prod;
    }
    event_send(port);
}

void printk(const char *fmt, ...)
{
    char line[256];
    va_list ap;
    size_t len;

    va_start(ap, fmt);
    len = vformat(line, sizeof line, fmt, ap);
    va_end(ap);
    if (ring && port)
        write(line, len);
    else
        console_emergency(line);
}

void console_flush(void)
{
    if (ring && port)
        await(0);
}
