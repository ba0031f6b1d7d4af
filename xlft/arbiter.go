package xlft

import "context"

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

func (None) String() string { return "none (split brain accepted)" }

// Verdict is the arbiter's answer to one side.
type Verdict int

const (
	Unreachable Verdict = iota // no answer: nothing is decided
	Won
	Lost
)

func (v Verdict) String() string { return [...]string{"unreachable", "won", "lost"}[v] }
