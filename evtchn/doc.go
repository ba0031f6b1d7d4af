// Package evtchn works with Xen's event channels, from dom0.
//
// An event channel is a bit that one end sets and the other end is interrupted by: it
// carries what a domain tells its devices' backends, and what these tell the domain.
// Each end is a port of a domain. Xen's public/event_channel.h has the model.
//
// A Device is a process's own ends, by way of /dev/xen/evtchn (Linux'
// include/uapi/xen/evtchn.h). Ports lists the ports of any domain, by hypercall.
//
// The package needs no Xen library and no cgo: the interfaces are the kernel's and the
// hypervisor's stable ones. It imports nothing of xlft.
package evtchn
