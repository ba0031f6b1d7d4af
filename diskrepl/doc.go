// Package diskrepl keeps a second copy of a domain's disk on another host,
// epoch by epoch.
//
// A [Mirror] stands before the primary's disk. It writes through at once and
// sends every write, in the order in which they took effect, to a [Replica] at
// the backup. The Replica holds the writes of an epoch back until that is
// committed, and forgets them if it never is.
//
// The one rule everything here serves: after [Replica.Finish] the backup's disk
// holds exactly the writes that were sent up to the newest committed seal, none
// missing and none more. Seal, ack and commit are those of the domain's memory.
//
// A write counts to the epoch in which it is answered. One that was under way
// when its epoch was sealed counts to the next: the domain's frontend driver
// asks for it again when the domain is resumed elsewhere, because it has not
// seen an answer.
package diskrepl
