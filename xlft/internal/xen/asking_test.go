package xen

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"xlft/xlft"
)

// A sleeper is a fake domain, with xenstore's word and Xen's state. Its time is synctest's.
type sleeper struct {
	c       *claim
	word    string        // in control/shutdown
	takes   time.Duration // from the request until it is taken; < 0: never
	needs   time.Duration // from then until it is suspended
	asked   time.Time     // when the word was written; zero: it is none that it takes
	stopped time.Time     // when it is suspended; zero: it is not asked to
	over    bool
	saver   error // another program at work
	hears   bool

	beforeAsking func() // at the moment between the look for others and the request
	suspended    func() // when it was seen suspended
}

// turn brings the domain to the present.
func (d *sleeper) turn() {
	if !d.asked.IsZero() && d.takes >= 0 && time.Since(d.asked) >= d.takes {
		d.stopped, d.asked, d.word = d.asked.Add(d.takes+d.needs), time.Time{}, ""
	}
}

func (d *sleeper) stands() bool {
	d.turn()
	return !d.stopped.IsZero() && !time.Now().Before(d.stopped)
}

func (d *sleeper) State() (xlft.GuestState, string, error) {
	switch {
	case d.over:
		return xlft.GuestOver, "poweroff", nil
	case d.stands() && d.c.holds(func() bool { return d.saver != nil }):
		return xlft.GuestSuspended, "", nil
	case d.stands():
		return xlft.GuestSuspendedByOther, "", nil
	}
	return xlft.GuestRuns, "", nil
}

func (d *sleeper) unsaved() error { return d.saver }

func (d *sleeper) swap(old, word string) (string, error) {
	if f := d.beforeAsking; f != nil && word == suspendRequest {
		d.beforeAsking = nil
		f()
	}
	d.turn()
	was := d.word
	if was == old {
		d.word, d.asked = word, time.Time{}
		if word == suspendRequest && d.stopped.IsZero() {
			d.asked = time.Now()
		}
	}
	return was, nil
}

func (d *sleeper) listen(on bool) { d.hears = on }

func (d *sleeper) awaitStopped() (xlft.GuestState, string, error) {
	for limit := time.Now().Add(stepSuspended); time.Now().Before(limit); time.Sleep(time.Millisecond) {
		if d.over {
			return xlft.GuestOver, "poweroff", nil
		}
		if d.stands() {
			if d.suspended != nil {
				d.suspended()
			}
			return xlft.GuestSuspended, "", nil
		}
	}
	return xlft.GuestRuns, "", nil
}

var errSaves = errors.New("xl saves it")

func TestSuspend(t *testing.T) {
	for _, c := range []struct {
		name  string
		given func(d *sleeper)
		err   error  // nil: it is suspended for this project
		says  string // in err
		word  string // that is left
		took  time.Duration
	}{
		{"at once", func(d *sleeper) {}, nil, "", "", 0},
		{"suspended by a predecessor", func(d *sleeper) { d.c.set(true); d.stopped = time.Now() }, nil, "", "", 0},
		{"suspended by another program", func(d *sleeper) { d.stopped = time.Now() }, xlft.ErrSuspendedByOther, "", "", 0},
		{"saved by another program", func(d *sleeper) { d.saver = errSaves }, errSaves, "", "", 0},
		{"asked by another program", func(d *sleeper) { d.word = suspendRequest }, xlft.ErrSuspendedByOther, "", suspendRequest, 0},
		{"asked by a predecessor", func(d *sleeper) { d.c.set(true); d.swap("", suspendRequest) }, nil, "", "", 0},
		{"shut down meanwhile", func(d *sleeper) { d.word = "poweroff" }, xlft.ErrSuspendTimeout, `"poweroff"`, "poweroff", 2 * time.Second},
		{"over", func(d *sleeper) { d.over = true }, xlft.ErrGuestEnded, "poweroff", suspendRequest, 0},
		{"deaf", func(d *sleeper) { d.takes = -1 }, xlft.ErrSuspendTimeout, "", "", 2 * time.Second},
		{"takes it, and suspends late", func(d *sleeper) { d.needs = 20 * time.Second }, nil, "", "", 20 * time.Second},
		{"takes it, and never suspends", func(d *sleeper) { d.needs = time.Hour }, xlft.ErrSuspendTimeout, "", "", 2*time.Second + ackGrace},
		{"another program comes before it suspends", func(d *sleeper) {
			d.suspended = func() { d.saver = errSaves }
		}, xlft.ErrSuspendedByOther, "", "", askGrace},
		{"this process stands still before it asks", func(d *sleeper) {
			d.beforeAsking = func() { time.Sleep(10 * time.Second) }
		}, nil, "", "", 10 * time.Second},
		{"the domain takes a predecessor's request while it stands still", func(d *sleeper) {
			d.c.set(true)
			d.beforeAsking = func() {
				time.Sleep(time.Second)
				d.stopped = time.Now()
			}
		}, nil, "", "", time.Second},
		{"this process stands still for a moment", func(d *sleeper) {
			d.takes, d.beforeAsking = 100*time.Millisecond, func() { time.Sleep(time.Second) }
		}, nil, "", "", time.Second},
		{"a migration begins and ends while it stands still", func(d *sleeper) {
			d.beforeAsking = func() {
				time.Sleep(time.Second) // libxl's helper has come, and gone
				d.stopped = time.Now()
			}
		}, xlft.ErrSuspendedByOther, "", "", time.Second},
		{"it is asked and suspends while this process stands still", func(d *sleeper) {
			d.takes, d.needs = 0, 50*time.Millisecond
			d.beforeAsking = func() { time.Sleep(time.Second) }
		}, nil, "", "", time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				own := new(claim)
				d := &sleeper{c: own, takes: 3 * time.Millisecond, needs: 20 * time.Millisecond}
				c.given(d)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				begun := time.Now()
				asked, err := suspend(ctx, d, own)
				if !errors.Is(err, c.err) || err == nil && (asked.IsZero() || !d.stands()) || c.says != "" && !strings.Contains(err.Error(), c.says) {
					t.Errorf("asked %v, error %v, want %v", asked, err, c.err)
				}
				if d.word != c.word || d.hears {
					t.Errorf("it leaves the word %q, want %q; it listens: %v", d.word, c.word, d.hears)
				}
				if st, _, _ := d.State(); err == nil && st != xlft.GuestSuspended || errors.Is(err, xlft.ErrSuspendedByOther) && d.stands() && st != xlft.GuestSuspendedByOther {
					t.Errorf("it is %v afterwards", st)
				}
				if took := time.Since(begun); took < c.took || took > c.took+200*time.Millisecond {
					t.Errorf("it took %v, want %v", took, c.took)
				}
			})
		})
	}
}
