package arbiter

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// consult asks the other host, as everybody does who would decide against it: what it
// says itself comes first. Decided is false if it says nothing.
func (a *Asker) consult(ctx context.Context, c xlft.Claim) (won, decided bool, err error) {
	switch {
	case c.Handed && c.Side == xlft.Backup:
		return true, true, nil // with the primary's consent
	case c.Handed:
		return false, true, errHanded
	case c.Side == xlft.Backup:
		return a.evidence(ctx, c)
	}
	return a.settle(ctx, c)
}

// evidence asks the primary's host, over a connection of its own, for a backup that
// makes claim c: what the backup suspects is one protector's silence, and a host that
// answers is not fenced for it. Decided is false if there is no answer. A protector that
// died has a successor, which takes the domain back; a host on which the domain is not
// there any more has lost it, and needs no fence.
func (a *Asker) evidence(ctx context.Context, c xlft.Claim) (won, decided bool, err error) {
	if a.Ask == nil {
		return false, false, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-c.Withdrawn:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		r, slept, err := a.askFor(ctx, c)
		select {
		case <-c.Withdrawn:
			return false, true, xlft.ErrWithdrawn
		default:
		}
		var refused *wire.Refusal
		switch {
		case errors.As(err, &refused):
			return false, true, fmt.Errorf("%w (%w)", errUndecided, refused)
		case err != nil && slept > a.Timeout/2 && ctx.Err() == nil:
			a.Log.Warn("this process stood still while it asked the other host, and asks again", zap.String("peer", c.Peer), zap.Duration("stood_still", slept))
			continue
		case err != nil && ctx.Err() != nil:
			return false, true, ctx.Err()
		case err != nil:
			a.Log.Warn("the other host gives no answer", zap.String("peer", c.Peer), zap.String("domain", c.Domain), zap.Error(err))
			return false, false, nil
		case r.Role == wire.RoleRunning:
			return false, true, fmt.Errorf("%s answers, and has %s: its protector there is to take it back, or to give it up. It is asked again; if no protector comes back, \"xl ft-resolve %s --give-up\" there", c.Peer, c.Domain, c.Domain)
		case r.Role == wire.RoleNone && !c.Shared:
			return true, true, nil
		case r.Role == wire.RoleNone:
			return false, true, fmt.Errorf("%s answers that it does not run %s, and may still write to the storage that both hosts share. It is asked again; when nothing there writes any more, \"xl ft-resolve %s --take-over\" here", c.Peer, c.Domain, c.Domain)
		}
		return false, true, errUndecided
	}
}
