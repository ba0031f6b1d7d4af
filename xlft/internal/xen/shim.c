//go:build xen

#include "shim.h"
#include "capture.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "_cgo_export.h"

#define KEPT 1024

struct kept_logger {
    xentoollog_logger vtable;
    pthread_mutex_t lock;
    char text[KEPT];
    size_t len;
};

static void kept_message(xentoollog_logger *l, xentoollog_level level,
                         int errnoval, const char *context,
                         const char *format, va_list al)
{
    struct kept_logger *k = (struct kept_logger *)l;
    char line[512];
    size_t n;

    if (level < XTL_ERROR)
        return;
    n = snprintf(line, sizeof line, "%s: ", context ? context : "xen");
    vsnprintf(line + n, sizeof line - n, format, al);
    if (errnoval >= 0) {
        n = strlen(line);
        snprintf(line + n, sizeof line - n, ": %s", strerror(errnoval));
    }
    fprintf(stderr, "%s\n", line);

    pthread_mutex_lock(&k->lock);
    n = strlen(line);
    if (k->len + n + 2 < KEPT) {
        if (k->len) {
            memcpy(k->text + k->len, "; ", 2);
            k->len += 2;
        }
        memcpy(k->text + k->len, line, n + 1);
        k->len += n;
    }
    pthread_mutex_unlock(&k->lock);
}

static void kept_destroy(xentoollog_logger *l) { free(l); }

xentoollog_logger *xlft_logger_new(void)
{
    struct kept_logger *k = calloc(1, sizeof *k);

    if (!k)
        return NULL;
    k->vtable.vmessage = kept_message;
    k->vtable.destroy = kept_destroy;
    pthread_mutex_init(&k->lock, NULL);
    return &k->vtable;
}

void xlft_logger_free(xentoollog_logger *l) { xtl_logger_destroy(l); }

char *xlft_logger_take(xentoollog_logger *l)
{
    struct kept_logger *k = (struct kept_logger *)l;
    char *s;

    pthread_mutex_lock(&k->lock);
    s = strdup(k->text);
    k->text[0] = 0;
    k->len = 0;
    pthread_mutex_unlock(&k->lock);
    return s;
}

int xlft_domain_info(xc_interface *xch, uint32_t domid, xc_domaininfo_t *info)
{
    int n = xc_domain_getinfolist(xch, domid, 1, info);

    if (n < 0)
        return -errno;
    return n == 0 || info->domain != domid ? -ESRCH : 0;
}

int xlft_domain_state(xc_interface *xch, uint32_t domid, int *reason)
{
    xc_domaininfo_t info;
    int rc = xlft_domain_info(xch, domid, &info);

    if (rc)
        return rc == -ESRCH ? XLFT_GONE : rc;
    *reason = (info.flags >> XEN_DOMINF_shutdownshift) & XEN_DOMINF_shutdownmask;
    if (info.flags & XEN_DOMINF_dying)
        return XLFT_GONE;
    if (!(info.flags & XEN_DOMINF_shutdown))
        return XLFT_RUNS;
    return *reason == SHUTDOWN_suspend ? XLFT_SUSPENDED : XLFT_OVER;
}

xc_domaininfo_t *xlft_domains(xc_interface *xch, uint32_t *n)
{
    xc_domaininfo_t *all = NULL, *more;
    const uint32_t batch = 256;
    uint32_t first = 0;
    int got;

    *n = 0;
    do {
        more = realloc(all, (*n + batch) * sizeof *all);
        if (!more)
            goto fail;
        all = more;
        got = xc_domain_getinfolist(xch, first, batch, all + *n);
        if (got < 0)
            goto fail;
        *n += got;
        if (got > 0)
            first = all[*n - 1].domain + 1;
    } while (got > 0);
    return all;
fail:
    got = errno;
    free(all);
    errno = got;
    return NULL;
}

int xlft_domain_memory(xc_interface *xch, uint32_t domid, uint64_t *pages,
                       uint64_t *limit)
{
    xc_domaininfo_t info;
    int rc = xlft_domain_info(xch, domid, &info);

    if (rc)
        return rc;
    *pages = info.tot_pages;
    *limit = info.max_pages;
    return 0;
}

int xlft_domain_is_hvm(xc_interface *xch, uint32_t domid)
{
    xc_domaininfo_t info;
    int rc = xlft_domain_info(xch, domid, &info);

    if (rc)
        return rc;
    return !!(info.flags & XEN_DOMINF_hvm_guest);
}

int xlft_domain_pod(xc_interface *xch, uint32_t domid, uint64_t *entries)
{
    uint64_t total, cache;

    return xc_domain_get_pod_target(xch, domid, &total, &cache, entries) < 0
               ? -errno : 0;
}

xen_cpuid_leaf_t *xlft_cpuid(xc_interface *xch, int64_t of, uint32_t *n)
{
    xen_cpuid_leaf_t *leaves;
    xen_msr_entry_t *msrs;
    uint32_t nr_msrs;
    int rc = xlft_policies(xch, of, &leaves, n, &msrs, &nr_msrs);

    if (rc) {
        errno = -rc;
        return NULL;
    }
    free(msrs);
    return leaves;
}

int xlft_wait_stopped(xc_interface *xch, uint32_t domid, int *reason,
                      unsigned usec)
{
    const struct timespec step = { .tv_nsec = 300 * 1000 };
    struct timespec begin, now;
    int state;

    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (;;) {
        state = xlft_domain_state(xch, domid, reason);
        if (state != XLFT_RUNS)
            return state;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((now.tv_sec - begin.tv_sec) * 1000000L +
            (now.tv_nsec - begin.tv_nsec) / 1000 >= usec)
            return state;
        nanosleep(&step, NULL);
    }
}

long xlft_dirty_pages(xc_interface *xch, uint32_t domid)
{
    xc_shadow_op_stats_t stats;

    /* No bitmap is asked for: only the count is. */
    if (xc_logdirty_control(xch, domid, XEN_DOMCTL_SHADOW_OP_PEEK, NULL, 0, 0,
                            &stats) < 0)
        return -errno;
    return stats.dirty_count;
}

static int save_suspend(void *data) { return xlftSaveSuspend((uintptr_t)data); }
static int save_postcopy(void *data) { return xlftSaveCaptured((uintptr_t)data); }
static int save_checkpoint(void *data) { return xlftSaveNext((uintptr_t)data); }

static int save_precopy(struct precopy_stats stats, void *data)
{
    return xlftSavePrecopy((uintptr_t)data, stats.iteration, stats.dirty_count);
}

static int save_logdirty(uint32_t domid, unsigned enable, void *data)
{
    return 0; /* no device model: nothing else writes to the domain's memory */
}

int xlft_save(xc_interface *xch, int fd, uint32_t domid, uintptr_t handle)
{
    struct save_callbacks cb = {
        .suspend = save_suspend,
        .precopy_policy = save_precopy,
        .postcopy = save_postcopy,
        .checkpoint = save_checkpoint,
        .switch_qemu_logdirty = save_logdirty,
        .data = (void *)handle,
    };

    return xc_domain_save(xch, fd, domid, XCFLAGS_LIVE, &cb, XC_STREAM_REMUS,
                          -1);
}

char *xlft_config_json(libxl_ctx *ctx, uint32_t domid, int *rc)
{
    libxl_domain_config config;
    char *json = NULL;

    libxl_domain_config_init(&config);
    *rc = libxl_retrieve_domain_configuration(ctx, domid, &config, NULL);
    if (!*rc)
        json = libxl_domain_config_to_json(ctx, &config);
    libxl_domain_config_dispose(&config);
    return json;
}

int xlft_restore(libxl_ctx *ctx, const char *json, const char *name, int fd,
                 uint32_t *domid)
{
    libxl_domain_config config;
    libxl_domain_restore_params params;
    int rc;

    libxl_domain_config_init(&config);
    libxl_domain_restore_params_init(&params);
    rc = libxl_domain_config_from_json(ctx, &config, json);
    if (rc)
        goto out;
    free(config.c_info.name);
    config.c_info.name = strdup(name);
    params.checkpointed_stream = LIBXL_CHECKPOINTED_STREAM_REMUS;
    params.stream_version = 2;
    rc = libxl_domain_create_restore(ctx, &config, domid, fd, -1, &params, NULL,
                                     NULL);
out:
    libxl_domain_restore_params_dispose(&params);
    libxl_domain_config_dispose(&config);
    return rc;
}
