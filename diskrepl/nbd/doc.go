// Package nbd serves block devices over the Network Block Device protocol:
// fixed newstyle negotiation, simple and structured replies, any number of
// connections to one export, and the kernel's own client.
//
// The one rule a caller must know: a request is answered only when its effect
// is visible to every other connection of the export, and a FLUSH or a write
// with FUA only when the Device reports that the data is on stable storage.
//
// Formats and the names of constants are those of doc/proto.md of the NBD
// project. The kernel's client exists on Linux only.
package nbd
