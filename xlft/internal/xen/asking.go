package xen

import (
	"context"
	"fmt"
	"time"

	"xlft/xlft"
)

// ackGrace is what a domain that has acknowledged a suspend request gets to
// finish it, beyond the caller's patience: cancelling is no longer possible.
const ackGrace = 30 * time.Second

// askGrace is longer than libxl takes from the begin of its helper to its request.
const askGrace = 3 * time.Second

// stepSuspended is how long a wait for the suspend lasts until the domain is looked at,
// whatever was heard.
const stepSuspended = 20 * time.Millisecond

// staleLook is how old a look for other programs may be when a request is made: in a much
// longer time one of them could have come, suspended the domain, and gone with it. On a slow
// host each look is that old.
const staleLook = 250 * time.Millisecond

// suspendRequest is the word in control/shutdown.
const suspendRequest = "suspend"

// suspendable is a domain that is asked to suspend.
type suspendable interface {
	// State says how the domain is. A suspend that the claim does not cover is another
	// program's.
	State() (xlft.GuestState, string, error)
	// unsaved returns an error while another program saves or migrates the domain.
	unsaved() error
	// swap makes a word of control/shutdown another one, if it is the old one, and returns
	// what it was.
	swap(old, word string) (was string, err error)
	// listen has Xen tell this process of the next suspend.
	listen(on bool)
	// awaitStopped waits until the domain does not run, for about stepSuspended.
	awaitStopped() (xlft.GuestState, string, error)
}

// suspend asks by xenstore's control/shutdown, as xl does, and waits for Xen's
// answer. A request that is there already, such as that of xl shutdown, is the
// domain's to take first: it is not overwritten. A suspend that another program asked
// for is left to that program.
func suspend(ctx context.Context, d suspendable, c *claim) (asked time.Time, err error) {
	defer d.listen(false)
	var grace time.Time
	for {
		if asked.IsZero() {
			var stands bool
			if asked, stands, err = request(ctx, d, c); err != nil || stands {
				return asked, err
			}
		}
		switch st, reason, err := d.awaitStopped(); {
		case err != nil:
			return asked, err
		case st == xlft.GuestSuspended && !asked.IsZero():
			c.saw()
			return asked, uncontested(d, c)
		case st == xlft.GuestOver:
			return asked, fmt.Errorf("%w: %s", xlft.ErrGuestEnded, reason)
		}
		if asked.IsZero() || ctx.Err() == nil {
			continue
		}
		if grace.IsZero() {
			was, err := d.swap(suspendRequest, "")
			if err != nil {
				return asked, err
			}
			if was == suspendRequest {
				c.set(false)
				return asked, xlft.ErrSuspendTimeout
			}
			grace = time.Now().Add(ackGrace)
		}
		if time.Now().After(grace) {
			return asked, xlft.ErrSuspendTimeout
		}
	}
}

// request makes the request, and returns when; zero if it could not be made yet. A domain
// that this project suspended earlier stands already.
func request(ctx context.Context, d suspendable, c *claim) (asked time.Time, stands bool, err error) {
	looked := time.Now()
	// Nobody listens yet: another program hears of the suspend that it asked for.
	switch st, _, err := d.State(); {
	case err != nil:
		return asked, false, err
	case st == xlft.GuestSuspendedByOther:
		return asked, false, xlft.ErrSuspendedByOther
	case st == xlft.GuestSuspended:
		c.saw()
		return time.Now(), true, nil
	}
	if err := d.unsaved(); err != nil {
		return asked, false, err // it is about to ask
	}
	had := c.made()
	c.set(true)
	pending, err := d.swap("", suspendRequest)
	if err != nil {
		return asked, false, err // it may be written
	}
	if pending != "" && !had {
		c.set(false)
	}
	switch {
	case pending == suspendRequest && !had:
		return asked, false, xlft.ErrSuspendedByOther
	case pending == "" && time.Since(looked) > staleLook:
		// This process stood still, or the host is slow: the domain may have been suspended
		// for somebody else by then. Such a one does not take the request.
		st, _, err := d.State()
		if err != nil {
			return asked, false, err
		}
		if st == xlft.GuestSuspended || st == xlft.GuestSuspendedByOther {
			was, err := d.swap(suspendRequest, "")
			switch {
			case err != nil:
				return asked, false, err
			case was == suspendRequest && had: // it took an earlier request of this project's
				c.saw()
				return time.Now(), true, nil
			case was == suspendRequest:
				c.set(false)
				return asked, false, xlft.ErrSuspendedByOther
			}
		}
		fallthrough
	case pending == "" || pending == suspendRequest:
		d.listen(true)
		return time.Now(), false, nil
	case ctx.Err() != nil:
		return asked, false, fmt.Errorf("%w: it has not taken the request before, %q, yet", xlft.ErrSuspendTimeout, pending)
	}
	return asked, false, nil
}

// uncontested looks whether another program may have asked for the suspend too: then the
// domain is that program's, which may read its memory from now on. That program waits for
// the domain to take its request, which a suspended domain does not.
func uncontested(d suspendable, c *claim) error {
	if d.unsaved() == nil {
		return nil
	}
	d.listen(false)
	c.set(false)
	for begun := time.Now(); time.Since(begun) < askGrace; time.Sleep(stepSuspended) {
		if was, err := d.swap(suspendRequest, ""); err != nil || was == suspendRequest {
			break
		}
	}
	return xlft.ErrSuspendedByOther
}
