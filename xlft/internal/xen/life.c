//go:build xen

#include "shim.h"

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

int xlft_preserve(libxl_ctx *ctx, uint32_t domid, const char *json,
                  const char *name_suffix)
{
    libxl_domain_config config;
    libxl_uuid uuid;
    int rc;

    libxl_domain_config_init(&config);
    rc = libxl_domain_config_from_json(ctx, &config, json);
    if (!rc) {
        libxl_uuid_generate(&uuid);
        rc = libxl_domain_preserve(ctx, domid, &config.c_info, name_suffix,
                                   uuid);
    }
    libxl_domain_config_dispose(&config);
    return rc;
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
