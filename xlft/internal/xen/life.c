//go:build xen

#include "shim.h"

#include <errno.h>

int xlft_unfinished(xc_interface *xch, uint32_t domid)
{
    xc_domaininfo_t info;
    int rc = xlft_domain_info(xch, domid, &info);

    if (rc)
        return rc == -ESRCH ? 0 : rc;
    return info.cpu_time == 0 && (info.flags & XEN_DOMINF_paused);
}

int xlft_paused(xc_interface *xch, uint32_t domid)
{
    xc_domaininfo_t info;
    int rc = xlft_domain_info(xch, domid, &info);

    if (rc)
        return rc == -ESRCH ? 0 : rc;
    return !!(info.flags & XEN_DOMINF_paused);
}

int xlft_create(libxl_ctx *ctx, const char *json, uint32_t *domid)
{
    libxl_domain_config config;
    int rc;

    libxl_domain_config_init(&config);
    rc = libxl_domain_config_from_json(ctx, &config, json);
    if (!rc)
        rc = libxl_domain_create_new(ctx, &config, domid, NULL, NULL);
    libxl_domain_config_dispose(&config);
    return rc;
}

int xlft_core_dump(libxl_ctx *ctx, uint32_t domid, const char *file)
{
    return libxl_domain_core_dump(ctx, domid, file, NULL);
}

int xlft_soft_reset(libxl_ctx *ctx, uint32_t domid, const char *json)
{
    libxl_domain_config config;
    int rc;

    libxl_domain_config_init(&config);
    rc = libxl_domain_config_from_json(ctx, &config, json);
    if (!rc)
        rc = libxl_domain_soft_reset(ctx, &config, domid, NULL, NULL);
    libxl_domain_config_dispose(&config);
    return rc;
}
