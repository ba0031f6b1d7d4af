// Package capture writes the checkpointed stream of a running domain (libxc's format v3,
// as for Remus): all memory while the domain runs, then, checkpoint by checkpoint, the
// pages that it has written since, and its registers.
//
// It does the work of libxc's xc_domain_save for HVM and PVH domains, whose page numbers
// need no translation, and is made for the time in which the domain stands still. The log
// of written pages is read by words: libxc looks at each bit, and a small PVH domain has a
// million, most of them of pages that it does not have. The pages are copied once, from the
// domain's memory to the reader. What can wait until the domain runs again, such as to
// unmap its pages, does.
//
// A Source is the domain as the hypervisor shows it. It is an interface so that the
// simulation runs what ships.
package capture
