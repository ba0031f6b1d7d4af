package xlft

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// An Arbiter gives a domain, in one generation, to whichever side claims it
// first.
type Arbiter interface {
	// Claim claims the domain, and returns in bounded time. The answer is final
	// for that generation: the same side gets the same answer again. An error
	// means that nothing is known: the claim may or may not have been taken.
	//
	// A domain that was Handed is the backup's: the backup wins without harm to
	// the primary, and the primary does not win until the backup gave it up, or can't
	// win it any more.
	Claim(ctx context.Context, c Claim) (won bool, err error)
	// String names the arbiter in status and log.
	String() string
}

// An ArbiterChecker is an Arbiter that can say beforehand whether it could
// decide.
type ArbiterChecker interface {
	// Check says why the arbiter could not decide against a peer now; nil if it
	// could.
	Check(ctx context.Context, peer string) error
}

// An ArbiterIdentifier is an Arbiter of which there may be several of one kind: hosts
// that ask different ones could both win.
type ArbiterIdentifier interface {
	// Identity says which one it is; "" if its kind says all. It returns in bounded time.
	Identity(ctx context.Context) (string, error)
}

// ArbiterName is what two hosts compare: an arbiter's kind, and which one it is.
func ArbiterName(ctx context.Context, a Arbiter) (string, error) {
	i, ok := a.(ArbiterIdentifier)
	if !ok {
		return a.String(), nil
	}
	id, err := i.Identity(ctx)
	switch {
	case err != nil:
		return "", fmt.Errorf("which arbiter this host has is not known: %w", err)
	case id == "":
		return a.String(), nil
	}
	return a.String() + " " + id, nil
}

// ArbiterAdvice says what to do about an arbiter that could not decide.
func ArbiterAdvice(a Arbiter) string {
	const until = ": until it works, nobody could decide after a failure."
	switch a.String() {
	case "fence":
		return "Try the agents by hand on that host, with the options of its configuration" + until
	case "file":
		return "Look at the mount of [arbiter.file]'s directory on that host: root must be able to create, link and remove files there" + until
	case "etcd":
		return "Try \"etcdctl endpoint health\" on that host, with the endpoints, ca, cert and key of [arbiter.etcd]" + until
	}
	return "Look at [arbiter] of that host's configuration" + until
}

// Health is whether an arbiter could decide, when it was last asked.
type Health struct {
	At time.Time `json:"at,omitzero"` // zero: it was not asked
	// Error says why it could not.
	Error string `json:"error,omitempty"`
}

// A Claim asks for a domain in one generation.
type Claim struct {
	Domain     string
	UUID       string
	Generation uint64
	Side       Side   // the claimant's
	Peer       string // the other host
	// Handed: the primary has told the backup to run the domain. A backup that
	// claims so has the primary's consent; a primary that claims so does not
	// know whether the domain runs on the backup by now.
	Handed bool
	// Shared: both hosts write to the same storage.
	Shared bool
	// Withdrawn, if set, is closed when the claimant does not want the domain any
	// more: an arbiter that has done nothing yet returns ErrWithdrawn.
	Withdrawn <-chan struct{}
}

// ErrWithdrawn: the claimant took the claim back before anything was done.
var ErrWithdrawn = errors.New("the claim was withdrawn")

// Side is a side of a protection.
type Side string

const (
	Primary Side = "primary"
	Backup  Side = "backup"
)

// Verdict is the arbiter's answer to one side.
type Verdict int

const (
	Unreachable Verdict = iota // no answer: nothing is decided
	Won
	Lost
)

func (v Verdict) String() string { return [...]string{"unreachable", "won", "lost"}[v] }

// Arbitrate makes a claim. The error says why the arbiter is Unreachable.
func Arbitrate(ctx context.Context, a Arbiter, c Claim) (Verdict, error) {
	won, err := a.Claim(ctx, c)
	switch {
	case err != nil:
		return Unreachable, err
	case won:
		return Won, nil
	}
	return Lost, nil
}
