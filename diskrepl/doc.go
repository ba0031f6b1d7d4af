// Package diskrepl replicates a domain's disk to another host, epoch by epoch.
//
// There are two kinds of disk. A [Mirror] stands in front of a disk that each
// host has a copy of: it writes to the primary's copy at once and sends every
// write, in the order in which the writes took effect, to a [Replica] at the
// backup. The Replica holds the writes of an epoch back until the epoch is
// committed, and discards them if it never is. A [Shared] stands in front of
// storage that both hosts see: it holds writes back at the primary until the
// backup has acknowledged their epoch. A [Link] connects either to its Replica
// for one session.
//
// The one rule a caller must know: after [Replica.Finish] the backup's disk has
// exactly the writes up to the newest committed seal, none missing and none
// more. Seal, acknowledge and commit an epoch of the disk together with that
// epoch of the domain's memory.
//
// A write belongs to the epoch that is open when the write is put into the
// stream, before it is answered. So a write that the domain saw answered belongs
// to the epoch sealed after that or to an earlier one. A write in flight at a
// seal may be on either side: when the domain is resumed elsewhere its frontend
// driver repeats the write, because it has not seen an answer.
package diskrepl
