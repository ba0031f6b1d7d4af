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
	// Find says whether a domain runs here that was restored, also by a process
	// before this one, or there is a replica of it that may come to that.
	Find(domain string) (Found, error)
}

// Found is what there is of a domain that was to be taken over.
type Found int

const (
	FoundNothing Found = iota
	FoundReplica
	FoundDomain
)

// A Replica is a domain being restored from a checkpointed stream. It doesn't
// run, and is destroyed with the process that made it, until RunOn.
type Replica interface {
	// Write takes the next bytes of libxc's stream.
	io.Writer
	// Checkpoint says that what was written ends a whole checkpoint: from
	// here the domain could be completed.
	Checkpoint() error
	// RunOn completes the domain from the last Checkpoint, runs it and
	// announces its addresses. It is called once.
	RunOn(ctx context.Context) error
	// Discard destroys the replica.
	Discard() error
	// Failed delivers the error if the restore ends by itself.
	Failed() <-chan error
}
