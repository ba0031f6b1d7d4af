package xlft

import (
	"context"
	"errors"
	"io"
	"time"
)

// GuestState is what a domain does, as far as protection cares.
type GuestState int

const (
	GuestRuns GuestState = iota
	GuestSuspended
	GuestOver // shut down, rebooting, crashed or gone
)

// A Guest is the domain that a primary protects.
type Guest interface {
	// Save runs a checkpointed save: memory live first, then checkpoint after
	// checkpoint as hooks say. The stream, libxc's format v3, goes to dst. Save
	// returns when hooks.Next returned false, ctx was cancelled or something
	// failed, and leaves the domain as the hooks left it.
	Save(ctx context.Context, dst io.ReaderFrom, hooks SaveHooks) error
	// Suspend asks the domain to suspend and returns once it has, with the time
	// of the request. On an error the domain runs on, or has ended (an
	// ErrGuestEnded).
	Suspend(ctx context.Context) (asked time.Time, err error)
	// Resume lets a suspended domain run on.
	Resume() error
	// Pause and Unpause stop and start the domain's vCPUs, without the domain's
	// knowledge.
	Pause() error
	Unpause() error
	// Destroy ends the domain. A domain that is gone already is no error.
	Destroy() error
	// DirtyPages counts the pages written since the last checkpoint.
	DirtyPages() (uint64, error)
	// State looks at the domain; why says how it ended.
	State() (s GuestState, why string, err error)
}

// SaveHooks are called by Guest.Save, in this order for each checkpoint, on
// one goroutine.
type SaveHooks struct {
	// Suspend suspends the domain and ends the epoch at the gate.
	Suspend func() error
	// Captured is called when the checkpoint has been written to dst. The
	// domain is resumed here.
	Captured func() error
	// Next waits until the next checkpoint is due; false ends the save.
	Next func() bool
}

// Errors of a Guest.
var (
	// ErrSuspendTimeout: the domain did not suspend when asked.
	ErrSuspendTimeout = errors.New("the domain did not suspend in time")
	// ErrGuestEnded: the domain shut down, crashed or was destroyed.
	ErrGuestEnded = errors.New("the domain ended")
)
