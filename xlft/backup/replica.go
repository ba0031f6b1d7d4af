package backup

import (
	"context"
	"io"

	"xlft/xlft/wire"
)

// A Restorer makes replicas at the backup.
type Restorer interface {
	// Check returns every reason why the domain could not be taken here now.
	Check(ctx context.Context, o wire.Offer) []wire.Problem
	// Restore starts a replica.
	Restore(ctx context.Context, o wire.Offer) (Replica, error)
	// Find looks for the domain of this name and UUID, or for its replica: also
	// one that a process before this one made. A UUID of "" is any.
	Find(domain, uuid string) (Found, error)
	// Ran says whether a replica that was ordered to run came to, and is gone by
	// now: for a domain of which Find finds nothing.
	Ran(domain, uuid string) (Ran, error)
	// Abandon ends a replica that a process before this one made, as far as that can
	// be done now: whether it could, Find says.
	Abandon(domain string) error
}

// Found is what a host has of a domain that was to be taken over.
type Found int

const (
	FoundNothing Found = iota
	FoundReplica       // being restored; it may come to run
	FoundDomain        // it runs
)

// Ran is what a host knows of a replica that was ordered to run, and is not there.
type Ran int

const (
	RanUnknown Ran = iota // the host lost its power since, say: it may have run
	RanNot                // it never ran, not for an instant
	RanOnce               // it ran, or was about to
)

// A Replica is a domain that is being restored from a checkpointed stream. Until
// Activate it does not run, and is destroyed with the process that made it.
type Replica interface {
	// Write takes the next bytes of libxc's stream.
	io.Writer
	// Checkpoint says that what was written ends a whole checkpoint, from which
	// the domain could be completed.
	Checkpoint() error
	// Activate completes the domain from the last Checkpoint, runs it and
	// announces its addresses. It is called once.
	Activate(ctx context.Context) error
	// Destroy destroys the replica.
	Destroy() error
	// Failed delivers the error if the restore ends by itself.
	Failed() <-chan error
}
