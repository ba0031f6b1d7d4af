#include <xtf/xenstore.h>

#include <xen/io/xs_wire.h>

#include <xtf/clock.h>
#include <xtf/cpu.h>
#include <xtf/event.h>
#include <xtf/hypercall.h>
#include <xtf/lib.h>
#include <xtf/platform.h>

#define RETRY 1000000000UL /* ns: look again even if not told to */

static volatile struct xenstore_domain_interface *ring;
static evtchn_port_t port;
static unsigned fired;

/* The message that came last. Payloads are cut at what the guests can use. */
static struct {
    struct xsd_sockmsg hdr;
    char body[512];
} msg;

void xs_connect(void)
{
    ring = (void *)(hvm_param(HVM_PARAM_STORE_PFN) * PAGE_SIZE);
    port = hvm_param(HVM_PARAM_STORE_EVTCHN);
    fired = 0;
    if (!ring || !port)
        panic("no xenstore\n");
}

evtchn_port_t xs_port(void) { return port; }

static void wait(void) { event_wait(port, clock_now() + RETRY); }

static void send(const void *data, size_t len)
{
    const char *s = data;

    while (len) {
        uint32_t prod = ring->req_prod, room;

        room = XENSTORE_RING_SIZE - (prod - ring->req_cons);
        mb(); /* xenstored has read what it has freed */
        if (!room) {
            event_send(port);
            wait();
            continue;
        }
        for (; room && len; room--, len--)
            ring->req[MASK_XENSTORE_IDX(prod++)] = *s++;
        barrier();
        ring->req_prod = prod;
    }
}

/* receive drops what is beyond size. */
static void receive(void *data, size_t size, size_t len)
{
    char *d = data;

    while (len) {
        uint32_t cons = ring->rsp_cons, have = ring->rsp_prod - cons;

        barrier();
        if (!have) {
            wait();
            continue;
        }
        for (; have && len; have--, len--) {
            char c = ring->rsp[MASK_XENSTORE_IDX(cons++)];

            if (size) {
                *d++ = c;
                size--;
            }
        }
        mb(); /* read before it is freed */
        ring->rsp_cons = cons;
        event_send(port);
    }
}

static void receive_message(void)
{
    memset(&msg, 0, sizeof msg);
    receive(&msg.hdr, sizeof msg.hdr, sizeof msg.hdr);
    receive(msg.body, sizeof msg.body - 1, msg.hdr.len);
    if (msg.hdr.type == XS_WATCH_EVENT) {
        /* path, NUL, token, NUL */
        const char *token = msg.body + strlen(msg.body) + 1;

        fired |= 1U << ((*token - '0') & 31);
    }
}

/*
 * request sends a, its NUL, and b without one, if they are there, and leaves
 * the reply in msg.
 */
static int request(unsigned type, uint32_t tx, const char *a, const char *b,
                   bool b_nul)
{
    static uint32_t id;
    size_t alen = strlen(a) + 1, blen = b ? strlen(b) + b_nul : 0;
    struct xsd_sockmsg hdr = {
        .type = type, .req_id = ++id, .tx_id = tx, .len = alen + blen,
    };

    send(&hdr, sizeof hdr);
    send(a, alen);
    send(b, blen);
    event_send(port);
    do
        receive_message();
    while (msg.hdr.type == XS_WATCH_EVENT || msg.hdr.req_id != id);

    if (msg.hdr.type != XS_ERROR)
        return 0;
    if (!strcmp(msg.body, "ENOENT"))
        return XS_ENOENT;
    return strcmp(msg.body, "EAGAIN") ? XS_EOTHER : XS_EAGAIN;
}

int xs_read(uint32_t tx, const char *path, char value[XS_VALUE_MAX + 1])
{
    int ret = request(XS_READ, tx, path, NULL, false);
    size_t len = msg.hdr.len < XS_VALUE_MAX ? msg.hdr.len : XS_VALUE_MAX;

    if (ret)
        return ret;
    memcpy(value, msg.body, len);
    value[len] = 0;
    return len;
}

int xs_write(uint32_t tx, const char *path, const char *value)
{
    return request(XS_WRITE, tx, path, value, false);
}

int xs_transaction_start(uint32_t *tx)
{
    int ret = request(XS_TRANSACTION_START, 0, "", NULL, false);

    *tx = 0;
    for (const char *s = msg.body; !ret && *s >= '0' && *s <= '9'; s++)
        *tx = *tx * 10 + (*s - '0');
    return ret;
}

int xs_transaction_end(uint32_t tx)
{
    return request(XS_TRANSACTION_END, tx, "T", NULL, false);
}

int xs_watch(const char *path, unsigned bit)
{
    char token[2] = { '0' + bit };

    return request(XS_WATCH, 0, path, token, true);
}

unsigned xs_fired(void)
{
    unsigned now;

    while (ring->rsp_prod != ring->rsp_cons)
        receive_message();
    now = fired;
    fired = 0;
    return now;
}
