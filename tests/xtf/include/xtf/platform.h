/* The guest's place under Xen: start info, shared info, memory, its end. */

#ifndef XTF_PLATFORM_H
#define XTF_PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <xen/xen.h>

struct hvm_start_info;

/* platform_init keeps what is needed of the start info, whose memory is used
 * for other things later. */
void platform_init(const struct hvm_start_info *si);

/*
 * platform_connect makes the connections to Xen that a new domain lacks:
 * hypercall page, shared info, events, console, xenstore. It is called at boot
 * and each time the guest finds itself restored.
 */
void platform_connect(void);

extern shared_info_t *const shared_info;

/* option returns the number that follows NAME= on the command line. */
uint64_t option(const char *name, uint64_t otherwise);

/* ram_alloc gives zeroed pages for good; there is no way to return them. */
void *ram_alloc(size_t pages);
size_t ram_left(void); /* in pages */

/* shutdown ends the domain for a SHUTDOWN_* reason other than suspend. */
void shutdown(unsigned reason) __attribute__((noreturn));
void panic(const char *fmt, ...)
    __attribute__((noreturn, format(printf, 1, 2)));

#endif
