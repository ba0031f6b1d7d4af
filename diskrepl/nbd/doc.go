// Package nbd serves block devices over the Network Block Device protocol:
// fixed newstyle negotiation, simple and structured replies, any number of
// connections to one export, and the kernel's own client.
//
// The one rule a caller must know: a request is answered only when its effect
// can be seen by every other connection of the export, and a FLUSH or a write
// with FUA only when the Device says that stable storage has it.
//
// Formats are those of doc/proto.md of the NBD project; names follow its
// constants.
package nbd
