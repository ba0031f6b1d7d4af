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
	GuestOver             // shut down, rebooting, crashed or gone
	GuestSuspendedByOther // another program has suspended it, and is to resume it
)

// A Guest is the domain that a primary protects.
type Guest interface {
	// Save runs a checkpointed save: memory live first, then checkpoint after
	// checkpoint as hooks say. The stream, libxc's format v3, goes to dst. Save
	// returns when hooks.Next returned false, ctx was cancelled or something
	// failed, and leaves the domain as the hooks left it.
	Save(ctx context.Context, dst io.ReaderFrom, hooks SaveHooks) error
	// Suspend asks the domain to suspend and returns once it has, with the time
	// of the request. On an error the domain runs on, has ended (an ErrGuestEnded),
	// or is another program's to resume (an ErrSuspendedByOther).
	Suspend(ctx context.Context) (asked time.Time, err error)
	// Resume lets a suspended domain run on.
	Resume() error
	// Pause and Unpause stop and start the domain's vCPUs, without the domain's
	// knowledge. Xen counts pauses; to undo one that is not there is an ErrNotPaused.
	Pause() error
	Unpause() error
	// Destroy ends the domain. A domain that is gone already is no error.
	Destroy() error
	// DirtyPages counts the pages written since the last checkpoint.
	DirtyPages() (uint64, error)
	// HoldMemory keeps the hypervisor from giving the domain further pages, and
	// returns the domain's memory as it is then. ReleaseMemory undoes it, unless
	// somebody else has set the limit since.
	HoldMemory() (Memory, error)
	ReleaseMemory() error
	// Memory returns the domain's memory. As long as it is what HoldMemory
	// returned, the domain has had the same pages all the time.
	Memory() (Memory, error)
	// State looks at the domain; why says how it ended.
	State() (s GuestState, why string, err error)
}

// Memory is how many pages of 4 KiB a domain has, and how many it may have.
//
// A save knows which pages the domain wrote, but not which pages came: Xen up
// to 4.18 does not log what is written to a new page in its first epoch (fixed
// by Xen's commit 98fccdf0ac7c, in 4.19.5, 4.20.3, 4.21.1), and a page that
// left stays in the replica. So the memory of a protected domain is held, one
// page short of what it is. A domain that gives a page back can't take another,
// and then has fewer: every change shows in these numbers.
type Memory struct{ Pages, Limit uint64 }

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
	// Polled, if it is not nil, is told why the end of a suspend has to be asked for
	// again and again, which takes longer than to be told of it.
	Polled func(error)
}

// Errors of a Guest.
var (
	// ErrNotPaused: there is no pause to undo.
	ErrNotPaused = errors.New("the domain is not paused")
	// ErrSuspendTimeout: the domain did not suspend when asked.
	ErrSuspendTimeout = errors.New("the domain did not suspend in time")
	// ErrGuestEnded: the domain shut down, crashed or was destroyed.
	ErrGuestEnded = errors.New("the domain ended")
	// ErrSuspendedByOther: another program has suspended the domain, or asked it to, as xl
	// save does. That program decides what becomes of the domain.
	ErrSuspendedByOther = errors.New("another program suspended the domain, as xl save and xl migrate do")
	// ErrSaved: another program writes an image of the domain.
	ErrSaved = errors.New("another program saves or migrates the domain, as xl save and xl migrate do")
	// ErrMemoryChanged: the domain gave memory back or was to get more
	// (ballooning). The backup needs a new copy.
	ErrMemoryChanged = errors.New("the domain's memory changed")
	// ErrLogTaken: another program cleared the hypervisor's log of written pages,
	// or switched it off, as xl save does. The backup needs a new copy.
	ErrLogTaken = errors.New("another program took the domain's log of written pages, as xl save and xl migrate do")
)
