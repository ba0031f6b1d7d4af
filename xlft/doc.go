// Package xlft keeps a running Xen domain alive through the loss of its host.
//
// The primary runs the domain and copies it to a backup, checkpoint by
// checkpoint. What the domain sends is held back until the backup has
// acknowledged the checkpoint of the epoch that sent it. When the primary is
// lost, the backup runs the domain on from the newest whole checkpoint.
//
// This package has the words that both sides share: no goroutine, no network,
// no clock. The rule that everything serves: no output leaves before its
// checkpoint is acknowledged, and a host runs the domain, or releases what is
// unacknowledged, only by the arbiter's word or the other side's own.
//
// # Promises
//
//	P1  Output commit. No packet leaves the primary before the backup has
//	    acknowledged the checkpoint of the epoch that sent it: all ethertypes.
//	P2  Disk at the boundary. After a takeover the backup's disks hold exactly
//	    the writes up to the checkpoint that the domain runs on from.
//	P3  One runner. The domain never runs on two hosts that can both speak to
//	    the outside. In doubt it waits.
//	P4  Whole checkpoints only. The backup runs a domain on only from a
//	    checkpoint that it received whole and verified.
//	P5  The backup can't hurt. Losing or stopping the backup, or stopping
//	    protection, loses no packet and no domain.
//	P6  Nothing is silently unprotected. Every loss of protection shows: in the
//	    exit status, in ft-status and in the log.
//
// # Glossary
//
//	domain       the protected guest
//	primary      the host that runs the domain and protects it
//	backup       the host that holds the replica
//	protector    the daemon on the primary, one for each domain
//	receiver     the daemon on the backup
//	replica      the domain's copy at the backup: memory and vCPU state that a
//	             restore has taken in, and copies of the disks
//	epoch        the domain's execution between two checkpoints, by number
//	checkpoint   the domain's state at the end of an epoch
//	mode         what ends an epoch: the domain's output ("event", "strict") or
//	             time ("interval")
//	window       in the mode "event", how long the domain has to have run before
//	             its output ends the epoch
//	output       what the outside could see of an epoch: packets, and writes to
//	             storage that other hosts see
//	gate         what holds output back, by epoch
//	seal         end an epoch at a gate, while the domain is suspended
//	ack          the backup's word that it holds a checkpoint whole
//	release      let a sealed epoch's output out, after its ack
//	exposed      said of a primary: the backup may hold a whole checkpoint, so
//	             that it could take over
//	takeover     the backup runs the domain on after the primary was lost
//	switch-over  a takeover that an operator asked for: the primary hands over
//	generation   a number per domain that grows with each change of owner; the
//	             arbiter gives each generation away once
//	arbiter      decides which side owns a generation when the sides can't
//	             reach each other
//	fence        power the other host off, by a fence agent; one kind of arbiter
//
// # Packages
//
//	xlft/primary      the primary's program: Machine (decides), Session (acts)
//	xlft/backup       the backup's program: Machine, Receiver
//	xlft/wire         the protocol between the two; Control judges heartbeats
//	xlft/config       the TOML configuration
//	xlft/internal/xen libxl, libxc and xenstore: the only cgo
//	xlft/internal/... arbiters, preflight, the protector's process, restore
//	                  workers, the disk server, the backup's copies, records
//	xlft/cmd/xlft     the commands
//	netbuffer         the network gate
//	diskrepl          disks by epoch; nbd serves them, blockfile stores them
//	savestream        Xen's migration streams
//
// Imports run one way: cmd/xlft, then internal, then primary and backup, then
// this package, then wire and the leaves, which import nothing of ours.
package xlft
