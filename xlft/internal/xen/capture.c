//go:build xen

#define XC_WANT_COMPAT_DEVICEMODEL_API /* xc_hvm_modified_memory */
#include "shim.h"
#include "capture.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <xen/domctl.h>
#include <xencall.h>
#include <xenforeignmemory.h>

struct xlft_source {
    xc_interface *xch;
    xencall_handle *call;
    xenforeignmemory_handle *fmem;
    uint32_t domid;

    /* Memory that does not move, for hypercalls. */
    struct xen_domctl *op;
    uint64_t *batch;
    void *log, *context;
    size_t log_pages, context_pages;

    int errors[XLFT_BATCH];
};

static size_t pages_of(size_t bytes)
{
    return (bytes + XC_PAGE_SIZE - 1) >> XC_PAGE_SHIFT;
}

static void drop(struct xlft_source *s, void *p, size_t pages)
{
    if (p)
        xencall_free_buffer_pages(s->call, p, pages);
}

/* Makes sure that a buffer has room for so many bytes. What it held is lost. */
static int room(struct xlft_source *s, void **p, size_t *pages, size_t bytes)
{
    size_t want = pages_of(bytes);

    if (*p && *pages >= want)
        return 0;
    drop(s, *p, *pages);
    *p = xencall_alloc_buffer_pages(s->call, want);
    *pages = want;
    return *p ? 0 : -ENOMEM;
}

struct xlft_source *xlft_source_open(xc_interface *xch, uint32_t domid)
{
    struct xlft_source *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->xch = xch;
    s->call = xc_interface_xcall_handle(xch);
    s->fmem = xc_interface_fmem_handle(xch);
    s->domid = domid;
    s->op = xencall_alloc_buffer_pages(s->call, pages_of(sizeof *s->op));
    s->batch = xencall_alloc_buffer_pages(s->call, pages_of(XLFT_BATCH * sizeof *s->batch));
    if (!s->op || !s->batch) {
        xlft_source_close(s);
        errno = ENOMEM;
        return NULL;
    }
    return s;
}

void xlft_source_close(struct xlft_source *s)
{
    drop(s, s->op, pages_of(sizeof *s->op));
    drop(s, s->batch, pages_of(XLFT_BATCH * sizeof *s->batch));
    drop(s, s->log, s->log_pages);
    drop(s, s->context, s->context_pages);
    free(s);
}

/* Calls Xen with s->op, whose union the caller has filled. */
static int domctl(struct xlft_source *s, uint32_t cmd)
{
    s->op->cmd = cmd;
    s->op->interface_version = XEN_DOMCTL_INTERFACE_VERSION;
    s->op->domain = s->domid;
    return xencall1(s->call, __HYPERVISOR_domctl, (uintptr_t)s->op) < 0 ? -errno : 0;
}

static void clear(struct xlft_source *s) { memset(s->op, 0, sizeof *s->op); }

int xlft_source_span(struct xlft_source *s, uint64_t *span)
{
    xen_pfn_t n;

    if (xc_domain_nr_gpfns(s->xch, s->domid, &n) < 0)
        return -errno;
    *span = n;
    return 0;
}

static int shadow_op(struct xlft_source *s, uint32_t op)
{
    clear(s);
    s->op->u.shadow_op.op = op;
    return domctl(s, XEN_DOMCTL_shadow_op);
}

int xlft_source_log(struct xlft_source *s, int on)
{
    return shadow_op(s, on ? XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY : XEN_DOMCTL_SHADOW_OP_OFF);
}

int xlft_source_take(struct xlft_source *s, uint64_t span, int suspended, uint64_t **log)
{
    const struct timespec step = { .tv_nsec = 300 * 1000 };
    int rc = room(s, &s->log, &s->log_pages, (span + 63) / 64 * 8), tries = 1000;

    if (rc)
        return rc;
    *log = s->log;
    /* Another look at the log, such as for the count, may not have come to its end: EBUSY.
     * Of a domain that is being destroyed Xen gives nothing, and no error. */
    for (;;) {
        memset(s->log, 0, (span + 63) / 64 * 8);
        clear(s);
        s->op->u.shadow_op.op = XEN_DOMCTL_SHADOW_OP_CLEAN;
        s->op->u.shadow_op.mode = suspended ? XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL : 0;
        s->op->u.shadow_op.pages = span;
        set_xen_guest_handle_raw(s->op->u.shadow_op.dirty_bitmap, s->log);
        rc = domctl(s, XEN_DOMCTL_shadow_op);
        if (rc != -EBUSY || !tries--)
            break;
        nanosleep(&step, NULL);
    }
    return rc ? rc : s->op->u.shadow_op.pages == span ? 0 : -ERANGE;
}

int xlft_source_mark(struct xlft_source *s, uint64_t page, uint64_t n)
{
    return xc_hvm_modified_memory(s->xch, s->domid, page, n) ? -errno : 0;
}

int xlft_source_marked(struct xlft_source *s, uint64_t page)
{
    const struct timespec step = { .tv_nsec = 300 * 1000 };
    int rc, tries = 100;

    /* The log can be read from its beginning only; the batch's memory has room for so much. */
    if (page >= XLFT_BATCH * 64)
        return -ERANGE;
    do {
        memset(s->batch, 0, XLFT_BATCH * sizeof *s->batch);
        clear(s);
        s->op->u.shadow_op.op = XEN_DOMCTL_SHADOW_OP_PEEK;
        s->op->u.shadow_op.pages = (page / 64 + 1) * 64;
        set_xen_guest_handle_raw(s->op->u.shadow_op.dirty_bitmap, (void *)s->batch);
        rc = domctl(s, XEN_DOMCTL_shadow_op);
        if (rc == -EBUSY)
            nanosleep(&step, NULL);
    } while (rc == -EBUSY && tries--);
    return rc ? rc : (int)(s->batch[page / 64] >> page % 64 & 1);
}

uint64_t *xlft_source_batch(struct xlft_source *s) { return s->batch; }

int xlft_source_types(struct xlft_source *s, unsigned n)
{
    clear(s);
    s->op->u.getpageframeinfo3.num = n;
    set_xen_guest_handle_raw(s->op->u.getpageframeinfo3.array, s->batch);
    return domctl(s, XEN_DOMCTL_getpageframeinfo3);
}

int xlft_source_map(struct xlft_source *s, const uint64_t *gfns, unsigned n, void **pages,
                    uint64_t *bad)
{
    unsigned i;
    int rc;

    *bad = gfns[0];
    *pages = xenforeignmemory_map(s->fmem, s->domid, PROT_READ, n, (const xen_pfn_t *)gfns, s->errors);
    if (!*pages)
        return -errno;
    for (i = 0; i < n; i++)
        if (s->errors[i]) {
            *bad = gfns[i];
            rc = s->errors[i] < 0 ? s->errors[i] : -s->errors[i];
            xenforeignmemory_unmap(s->fmem, *pages, n);
            return rc;
        }
    return 0;
}

void xlft_source_unmap(struct xlft_source *s, void *pages, unsigned n)
{
    xenforeignmemory_unmap(s->fmem, pages, n);
}

int xlft_source_context(struct xlft_source *s, void **context, uint32_t *size)
{
    int rc;

    if (!s->context) {
        clear(s);
        rc = domctl(s, XEN_DOMCTL_gethvmcontext);
        if (!rc)
            rc = room(s, &s->context, &s->context_pages, s->op->u.hvmcontext.size);
        if (rc)
            return rc;
    }
    clear(s);
    s->op->u.hvmcontext.size = s->context_pages << XC_PAGE_SHIFT;
    set_xen_guest_handle_raw(s->op->u.hvmcontext.buffer, s->context);
    rc = domctl(s, XEN_DOMCTL_gethvmcontext);
    *context = s->context;
    *size = s->op->u.hvmcontext.size;
    return rc;
}

int xlft_policies(xc_interface *xch, int64_t of, xen_cpuid_leaf_t **leaves, uint32_t *nr_leaves,
                  xen_msr_entry_t **msrs, uint32_t *nr_msrs)
{
    xc_cpu_policy_t *policy = xc_cpu_policy_init();
    int rc = -1, saved;

    *leaves = NULL;
    *msrs = NULL;
    if (!policy || xc_cpu_policy_get_size(xch, nr_leaves, nr_msrs))
        goto out;
    *leaves = calloc(*nr_leaves, sizeof **leaves);
    *msrs = calloc(*nr_msrs, sizeof **msrs);
    if (!*leaves || !*msrs)
        goto out;
    if (of >= 0)
        rc = xc_cpu_policy_get_domain(xch, of, policy);
    else
        rc = xc_cpu_policy_get_system(xch,
                                      of == XLFT_MOST_PV
                                          ? XEN_SYSCTL_cpu_policy_pv_max
                                          : XEN_SYSCTL_cpu_policy_hvm_max,
                                      policy);
    if (!rc)
        rc = xc_cpu_policy_serialise(xch, policy, *leaves, nr_leaves, *msrs, nr_msrs);
out:
    saved = errno;
    xc_cpu_policy_destroy(policy);
    if (!rc)
        return 0;
    free(*leaves);
    free(*msrs);
    return -saved;
}
