package arbiter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// An Asker asks the other host before anything is decided against it.
type Asker struct {
	// Ask asks the other host about a domain that this host wants to keep; nil if
	// it can't be asked.
	Ask func(ctx context.Context, peer string, q wire.OwnerQuery) (wire.OwnerResult, error)
	// Timeout bounds Ask: a host is not decided against before it has given no answer for
	// so long.
	Timeout time.Duration
	// HeadStart is how much longer a backup asks than a primary: when only the network
	// between them breaks, the host that runs the domain comes first.
	HeadStart time.Duration
	// Host is this host's name, and Second is how much longer a primary asks whose
	// host's name comes after its peer's: when each of two hosts runs a domain and only
	// the network between them breaks, one of them comes first all the same. Less than
	// HeadStart.
	Host   string
	Second time.Duration
	// Outside, if set, says why this host may be cut off from the outside. One that is
	// makes no claim: its domain would speak to nobody. It takes no longer than Timeout.
	Outside func(ctx context.Context) error
	Log     *zap.Logger
}

// outside asks whether this host reaches the outside, for claim c, while the other host is
// asked: whoever comes first by the time that the question takes does so with it. Reached
// waits for the answer; end is called when it is not needed any more. A domain that was
// handed over is claimed with the consent of a host that reaches both.
func (a *Asker) outside(ctx context.Context, c xlft.Claim) (reached func() error, end func()) {
	if a.Outside == nil || c.Handed && c.Side == xlft.Backup {
		return func() error { return nil }, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	answer := make(chan error, 1)
	go func() { answer <- a.Outside(ctx) }()
	return func() error {
		select {
		case err := <-answer:
			if err != nil {
				return fmt.Errorf("%w: this host does not claim the domain", err)
			}
		case <-c.Withdrawn:
		}
		select {
		case <-c.Withdrawn:
			return xlft.ErrWithdrawn
		default:
			return nil
		}
	}, cancel
}

// reaches says why this host may be cut off from the outside.
func (a *Asker) reaches(ctx context.Context) error {
	if a.Outside == nil {
		return nil
	}
	return a.Outside(ctx)
}

// errUndecided: the other host lives, and will know.
var errUndecided = errors.New("the other host answers, and does not know yet whether it runs the domain: it is asked again")

// settle asks the backup for the domain, for a primary that makes claim c.
// Decided is false if the backup can't be asked. A backup that answers lives, so
// that nothing is decided against it: if it does not know yet the error says so.
func (a *Asker) settle(ctx context.Context, c xlft.Claim) (won, decided bool, err error) {
	if c.Side != xlft.Primary || a.Ask == nil {
		return false, false, nil
	}
	for {
		r, slept, err := a.askFor(ctx, c)
		var refused *wire.Refusal
		switch {
		case errors.As(err, &refused):
			return false, true, fmt.Errorf("%w (%w)", errUndecided, refused)
		case err != nil && slept > a.Timeout/2 && ctx.Err() == nil:
			// This process stood still meanwhile: what it saw says nothing about
			// the other host.
			a.Log.Warn("this process stood still while it asked the other host, and asks again", zap.String("peer", c.Peer), zap.Duration("stood_still", slept))
			continue
		case err != nil:
			a.Log.Warn("the other host does not say that it gave the domain up", zap.String("peer", c.Peer), zap.Error(err))
			return false, false, nil
		case r.Role == wire.RoleNone:
			return true, true, nil
		case r.Role == wire.RoleRunning && r.Generation >= c.Generation:
			return false, true, nil
		}
		return false, true, errUndecided
	}
}

// askFor asks again and again until there is an answer, or Timeout is over: a
// network that was broken for a moment may be whole again. A host that refused the
// question meanwhile lives: then the error is its refusal. Slept says how long this
// process stood still meanwhile.
func (a *Asker) askFor(ctx context.Context, c xlft.Claim) (r wire.OwnerResult, slept time.Duration, err error) {
	limit := a.Timeout
	switch {
	case c.Side == xlft.Backup:
		limit += a.HeadStart
	case a.Host > c.Peer:
		limit += a.Second
	}
	ask, cancel := wire.AwakeTimeout(ctx, limit)
	defer func() { slept = cancel() }()
	q := wire.OwnerQuery{Domain: c.Domain, UUID: c.UUID, Generation: c.Generation, Reclaim: c.Side == xlft.Primary, Suspect: c.Side == xlft.Backup, Patience: a.Timeout / 2}
	type reply struct {
		r   wire.OwnerResult
		err error
	}
	replies := make(chan reply)
	put := func() {
		go func() {
			r, err := a.Ask(ask, c.Peer, q)
			select {
			case replies <- reply{r, err}:
			case <-ask.Done():
			}
		}()
	}
	put()
	// A call that began while nothing came through may find that out late: the next
	// question does not wait for the last one's end.
	again := time.NewTicker(a.Timeout / 5)
	defer again.Stop()
	err = errSilent
	var refused *wire.Refusal
	for {
		select {
		case v := <-replies:
			if v.err == nil {
				return v.r, 0, nil
			}
			if errors.As(v.err, &refused) || refused == nil && ask.Err() == nil {
				err = v.err
			}
		case <-again.C:
			put()
		case <-ask.Done():
			return r, 0, err
		}
	}
}

// errSilent: a host that is asked does not even refuse the connection.
var errSilent = errors.New("no answer")

// None is the arbiter of those who accept a split brain: if the other host can't
// be asked, every claim is won.
type None struct {
	Asker
	// Paths are the peers to which there are several ways. A backup asks those before it
	// takes over: it may be that only one way broke. The others it asks nothing, which
	// would take time in which nobody runs the domain.
	Paths map[string]bool
}

// Claim is xlft.Arbiter's.
func (a None) Claim(ctx context.Context, c xlft.Claim) (bool, error) {
	reached, end := a.outside(ctx, c)
	defer end()
	ask := a.settle
	if c.Side == xlft.Backup && !c.Handed && a.Paths[c.Peer] {
		ask = a.evidence
	}
	if won, decided, err := ask(ctx, c); decided {
		return won, err
	}
	if err := reached(); err != nil {
		return false, err
	}
	return true, nil
}

// Check is xlft.ArbiterChecker's.
func (a None) Check(ctx context.Context, _ string) error { return a.reaches(ctx) }

func (None) String() string { return "none (split brain accepted)" }
