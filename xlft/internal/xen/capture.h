#ifndef XLFT_CAPTURE_H
#define XLFT_CAPTURE_H

#include <stdint.h>
#include <xenctrl.h>

/* How many pages the functions below take at once: Xen's limit for their types. */
#define XLFT_BATCH 1024

/* A domain whose memory is captured, and memory that hypercalls can use. */
struct xlft_source;

/* NULL on an error, which errno has. */
struct xlft_source *xlft_source_open(xc_interface *xch, uint32_t domid);
void xlft_source_close(struct xlft_source *s);

/* The functions below return 0, or a negative errno. */

/* Pages that the domain's memory spans. */
int xlft_source_span(struct xlft_source *s, uint64_t *span);
/* Switches the log of written pages on, empty, or off. EINVAL: it is on already. */
int xlft_source_log(struct xlft_source *s, int on);
/* Reads and empties the log: span bits, valid until the next call. */
int xlft_source_take(struct xlft_source *s, uint64_t span, int suspended, uint64_t **log);
/* Marks n pages, 2^20 at most, as written. */
int xlft_source_mark(struct xlft_source *s, uint64_t page, uint64_t n);
/* Whether a page is in the log: 1 or 0. Not of a domain that is being destroyed. */
int xlft_source_marked(struct xlft_source *s, uint64_t page);
/* Room for XLFT_BATCH page numbers, which xlft_source_types turns into XEN_DOMCTL_PFINFO_xxx. */
uint64_t *xlft_source_batch(struct xlft_source *s);
int xlft_source_types(struct xlft_source *s, unsigned n);
/* Maps n pages for reading. On an error *bad has the first page that can't be mapped. */
int xlft_source_map(struct xlft_source *s, const uint64_t *gfns, unsigned n, void **pages, uint64_t *bad);
void xlft_source_unmap(struct xlft_source *s, void *pages, unsigned n);
/* The registers and devices that the hypervisor keeps, valid until the next call. */
int xlft_source_context(struct xlft_source *s, void **context, uint32_t *size);

/* A domain's CPUID leaves and MSRs, or the most that this host can give (XLFT_MOST_xxx). To
 * be freed. < 0: errno. */
int xlft_policies(xc_interface *xch, int64_t of, xen_cpuid_leaf_t **leaves, uint32_t *nr_leaves,
                  xen_msr_entry_t **msrs, uint32_t *nr_msrs);

#endif
