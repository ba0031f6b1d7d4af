#include <xtf/event.h>

#include <xtf/hypercall.h>
#include <xtf/lib.h>
#include <xtf/platform.h>

void event_init(void)
{
    /* SCHEDOP_poll looks at pending bits only; a masked port makes no upcall. */
    memset((void *)shared_info->evtchn_mask, 0xff,
           sizeof shared_info->evtchn_mask);
}

void event_send(evtchn_port_t port)
{
    struct evtchn_send s = { .port = port };

    event_channel_op(EVTCHNOP_send, &s);
}

void event_wait(evtchn_port_t port, uint64_t when)
{
    struct sched_poll poll = { .nr_ports = 1, .timeout = when };
    unsigned bits = sizeof(xen_ulong_t) * 8;

    set_xen_guest_handle(poll.ports, &port);
    sched_op(SCHEDOP_poll, &poll);
    __atomic_fetch_and(&shared_info->evtchn_pending[port / bits],
                       ~(1UL << port % bits), __ATOMIC_SEQ_CST);
}
