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
}

// Found is what a host has of a domain that was to be taken over.
type Found int

const (
	FoundNothing Found = iota
	FoundReplica       // being restored; it may come to run
	FoundDomain        // it runs
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
