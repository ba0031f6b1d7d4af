#ifndef XLFT_SHIM_H
#define XLFT_SHIM_H

#include <stdint.h>
#include <stdlib.h>
#include <libxl.h>
#include <xenctrl.h>
#include <xenguest.h>
#include <xenstore.h>
#include <xentoollog.h>

/* What a domain does, see xlft_domain_state. */
enum { XLFT_RUNS, XLFT_SUSPENDED, XLFT_OVER, XLFT_GONE };

/* A logger that keeps the last lines of level error, for messages to a user. */
xentoollog_logger *xlft_logger_new(void);
void xlft_logger_free(xentoollog_logger *l);
/* The lines since the last call, or "". To be freed. */
char *xlft_logger_take(xentoollog_logger *l);

/* What Xen says of a domain. < 0: errno, ESRCH if there is none. */
int xlft_domain_info(xc_interface *xch, uint32_t domid, xc_domaininfo_t *info);

/* State of a domain; *reason gets SHUTDOWN_xxx when it is over. < 0: errno. */
int xlft_domain_state(xc_interface *xch, uint32_t domid, int *reason);

/* All domains. To be freed; NULL on an error, which errno has. */
xc_domaininfo_t *xlft_domains(xc_interface *xch, uint32_t *n);

/* Pages that a domain has, and may have. < 0: errno. */
int xlft_domain_memory(xc_interface *xch, uint32_t domid, uint64_t *pages, uint64_t *limit);

/* Whether a domain is an HVM or PVH one, not PV. < 0: errno. */
int xlft_domain_is_hvm(xc_interface *xch, uint32_t domid);

/* Pages of an HVM or PVH domain that it may use and that no memory stands behind
 * yet (populate on demand). < 0: errno. */
int xlft_domain_pod(xc_interface *xch, uint32_t domid, uint64_t *entries);

/* Policies that xlft_cpuid reads besides domains'. */
enum { XLFT_MOST_PV = -1, XLFT_MOST_HVM = -2 };

/* CPUID leaves of a domain, or the most that this host can give. To be freed;
 * NULL on an error, which errno has. */
xen_cpuid_leaf_t *xlft_cpuid(xc_interface *xch, int64_t of, uint32_t *n);

/* Polls until the domain is not running, at most usec microseconds. */
int xlft_wait_stopped(xc_interface *xch, uint32_t domid, int *reason, unsigned usec);

/* Pages in the log-dirty bitmap; < 0: errno. Needs log-dirty mode on. */
long xlft_dirty_pages(xc_interface *xch, uint32_t domid);

/* A checkpointed save; the callbacks are Go's, found by handle. */
int xlft_save(xc_interface *xch, int fd, uint32_t domid, uintptr_t handle);

/* Domain configuration as JSON, to be freed; NULL on error, *rc libxl's. */
char *xlft_config_json(libxl_ctx *ctx, uint32_t domid, int *rc);

/* Whether a domain is paused and has never run; < 0: errno. */
int xlft_unfinished(xc_interface *xch, uint32_t domid);

/* Whether a domain is paused; < 0: errno. */
int xlft_paused(xc_interface *xch, uint32_t domid);

/* Builds a domain that does not run yet; returns libxl's rc. */
int xlft_create(libxl_ctx *ctx, const char *json, uint32_t *domid);

/* What xl does with a domain that ended, see xl.cfg(5); each returns libxl's rc. */
int xlft_core_dump(libxl_ctx *ctx, uint32_t domid, const char *file);
int xlft_soft_reset(libxl_ctx *ctx, uint32_t domid, const char *json);

/* Restores from a checkpointed (Remus) libxl stream; returns libxl's rc. */
int xlft_restore(libxl_ctx *ctx, const char *json, const char *name,
                 int fd, uint32_t *domid);

#endif
