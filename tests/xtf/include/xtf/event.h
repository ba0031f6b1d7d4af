/*
 * Event channels, polled: interrupts stay off for the guest's whole life, so
 * nothing happens to it between two instructions. The one place to wait is
 * event_wait.
 */

#ifndef XTF_EVENT_H
#define XTF_EVENT_H

#include <stdbool.h>
#include <stdint.h>

#include <xen/event_channel.h>

void event_init(void);
void event_send(evtchn_port_t port);

/* event_wait waits for the port to be notified or the clock to show when. It
 * may return early. */
void event_wait(evtchn_port_t port, uint64_t when);

#endif
