// Package xlft keeps a running Xen domain alive through the loss of its host.
//
// The primary's [Session] copies the domain to a backup, checkpoint by
// checkpoint, and holds back what the domain says to the world until the
// backup holds the state that said it. The backup's [Receiver] runs the domain
// on from the newest whole checkpoint when the primary is lost.
//
// The one rule everything here serves: no output leaves before its checkpoint
// is acked, and nobody runs the domain, or lets out what is unacked, who has
// not the right to it by the arbiter's or the other side's own word.
//
// [Machine] and [StandbyMachine] hold the protocol's decisions and do no I/O;
// Session and Receiver carry them out on the small interfaces below.
package xlft

import (
	"context"
	"errors"
	"io"
	"time"

	"xlft/xlft/wire"
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
	// checkpoint as hooks say. The stream, libxc's format v3, goes to dst. It
	// returns when hooks.Next said no, ctx was cancelled or something failed.
	// It leaves the domain as the hooks left it.
	Save(ctx context.Context, dst io.Writer, hooks SaveHooks) error
	// Suspend asks the domain to suspend and returns once it has, with the time
	// at which it was asked. On an error the domain runs on, or is over (an
	// ErrGuestEnded).
	Suspend(ctx context.Context) (asked time.Time, err error)
	// Resume lets a suspended domain run on.
	Resume() error
	// Pause and Unpause stop and start its vCPUs, without its knowledge.
	Pause() error
	Unpause() error
	// Destroy ends it. A domain that is gone already is no error.
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

// An Output holds back what a domain sends, by epoch.
type Output interface {
	// Seal ends the open epoch, whose number is given, while the domain is
	// suspended. The first Seal starts the holding.
	Seal(epoch uint64) error
	// Release lets a sealed epoch out.
	Release(epoch uint64) error
	// Drain waits until all that the suspended domain sent has left, so that
	// nothing of it is missing, or gets in the way, when it runs on elsewhere.
	// What was sealed is released.
	Drain(ctx context.Context) error
	// Abandon lets everything out and stops holding.
	Abandon() error
	// Discard drops what is held and takes the gate down. The domain is gone.
	Discard() error
	// Close takes the gate down without losing a packet.
	Close() error
	// Held returns how many bytes wait, and how many fit at most.
	Held() (held, limit uint64, err error)
}

// An Arbiter gives a domain, in one generation, to whoever asks first.
type Arbiter interface {
	// Claim asks for the domain. The answer is final for that generation: the
	// same asker gets the same answer again. An error means that nothing is
	// known: the claim may or may not have been taken.
	Claim(ctx context.Context, q ArbiterQuery) (won bool, err error)
	// String names the arbiter in status and log.
	String() string
}

// An ArbiterChecker is an Arbiter that can say beforehand whether it could
// decide.
type ArbiterChecker interface {
	// Check says why it could not decide against a peer now; nil if it could.
	Check(ctx context.Context, peer string) error
}

// An ArbiterQuery asks for a domain in one generation.
type ArbiterQuery struct {
	Domain     string
	Generation uint64
	Asker      Asker
	Peer       string // the other host
	// Handed: the primary has told the backup to run the domain. A backup that
	// asks so does it with the primary's consent; a primary that asks so does
	// not know whether the domain runs there by now.
	Handed bool
}

// Asker is a side of a session.
type Asker string

const (
	AskerPrimary Asker = "primary"
	AskerBackup  Asker = "backup"
)

// None is the arbiter of those who accept a split brain: whoever asks is told
// yes.
type None struct{}

func (None) Claim(context.Context, ArbiterQuery) (bool, error) { return true, nil }
func (None) String() string                                    { return "none (split brain accepted)" }

// A Store keeps what a host must remember of its domains through a crash.
// Both methods return when the disk has it.
type Store interface {
	// Load returns the zero Record if nothing is known of the domain.
	Load(domain string) (Record, error)
	Save(domain string, r Record) error
}

// Record is what a host knows of who owns a domain.
type Record struct {
	Generation uint64   `json:"generation"`
	Role       HostRole `json:"role"`
	Peer       string   `json:"peer"` // the other host's name in the config
	// Of a primary: the backup may hold a whole checkpoint of this run of the
	// domain.
	Exposed bool `json:"exposed,omitempty"`
	// Handed: it may have been told to run the domain. Of an owner: the primary
	// told it to, and it is not known yet whether it came to that.
	Handed   bool   `json:"handed,omitempty"`
	Instance string `json:"instance,omitempty"`
}

// HostRole is what this host last was to a domain.
type HostRole string

const (
	HostNone    HostRole = ""
	HostPrimary HostRole = "primary" // protects it, or did
	HostOwner   HostRole = "owner"   // took it over
	HostYielded HostRole = "yielded" // gave it up to the peer
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

// ErrSuspendTimeout: the domain did not suspend when asked.
var ErrSuspendTimeout = errors.New("the domain did not suspend in time")
