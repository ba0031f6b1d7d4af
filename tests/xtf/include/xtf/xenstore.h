/*
 * A xenstore client (docs/misc/xenstore.txt): one request at a time, paths
 * relative to the domain's own directory.
 *
 * Results are 0 or more, or XS_E*. Watches do not outlive the domain: after a
 * restore they must be set again.
 */

#ifndef XTF_XENSTORE_H
#define XTF_XENSTORE_H

#include <stddef.h>
#include <stdint.h>

#include <xen/event_channel.h>

enum {
    XS_ENOENT = -1,
    XS_EAGAIN = -2, /* the transaction lost against another: start anew */
    XS_EOTHER = -3,
};

#define XS_VALUE_MAX 255

void xs_connect(void);

/* xs_port is notified when there may be news. */
evtchn_port_t xs_port(void);

/* xs_read makes value a string of at most XS_VALUE_MAX bytes; tx is 0 outside
 * transactions. */
int xs_read(uint32_t tx, const char *path, char value[XS_VALUE_MAX + 1]);
int xs_write(uint32_t tx, const char *path, const char *value);
int xs_transaction_start(uint32_t *tx);
int xs_transaction_end(uint32_t tx);

/* xs_watch sets bit number bit, 0 to 9, in what xs_fired returns whenever path
 * changes, and once at the start. */
int xs_watch(const char *path, unsigned bit);

/* xs_fired returns and forgets the watches that fired. It does not wait. */
unsigned xs_fired(void);

#endif
