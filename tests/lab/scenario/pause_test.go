//go:build lab

package scenario

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

const (
	dirtyRate  = 500 // pages a second
	workingSet = 2000
	// The bare parts of a pause, measured on one idle machine: suspend, capture, resume.
	partsMedian = (75 + 60 + 13) * time.Millisecond
)

// stalls returns the guest's longest standstill in each of several seconds, sorted, for as long as more returns true.
func (fx *fixture) stalls(more func(n int) bool) []time.Duration {
	fx.t.Helper()
	_, err := fx.ask().Stall()
	check(fx.t, err)
	var all []time.Duration
	for more(len(all)) {
		<-time.After(time.Second)
		d, err := fx.ask().Stall()
		check(fx.t, err)
		all = append(all, d)
	}
	slices.Sort(all)
	return all
}

func middle(sorted []time.Duration) time.Duration { return sorted[len(sorted)/2] }

// Our capture of a domain that writes is the same as libxc's, page for page.
func TestCaptureInDom0(t *testing.T) {
	fx := unprotected(t)
	check(t, fx.ask().Dirty(dirtyRate, workingSet))
	// A frame that arrives after the capture is in the domain's memory by the time libxc looks.
	fx.home.Must(t, "ip", "link", "set", fx.vif(), "down")
	fx.inDom0(fx.home, "xlft/internal/xen")
	fx.home.Must(t, "ip", "link", "set", fx.vif(), "up")
	check(t, fx.ask().Dirty(0, 0))
	fx.get()
}

// A checkpoint's pause is short compared with the pause of stock "xl remus" with the same guest on the same hosts,
// and does not wait for the network.
func TestPause(t *testing.T) {
	lab.Long(t)
	const checkpoints = 40
	fx := unprotected(t)
	check(t, fx.ask().Dirty(dirtyRate, workingSet))
	defer func() { check(t, fx.ask().Dirty(0, 0)) }()

	idle := fx.stalls(func(n int) bool { return n < 5 })
	t.Logf("the guest's longest standstill in each second, alone: median %v, worst %v", round(middle(idle)), round(idle[len(idle)-1]))
	remus := fx.remus(func() []time.Duration { return fx.stalls(func(n int) bool { return n < 12 }) })

	fx.protect()
	ours := fx.stalls(func(n int) bool { return n < 15 })
	r := fx.await(fx.home, fmt.Sprint(checkpoints, " checkpoints"), func(r ft.Row) bool {
		return r.Primary != nil && r.Primary.Checkpoints >= checkpoints
	})
	p := r.Primary.PauseMedian
	t.Logf("pause of %d checkpoints: median %v (suspend %v, seal %v, capture %v, resume %v), worst %v", r.Primary.Checkpoints,
		round(p.Total), round(p.Suspend), round(p.Seal), round(p.Capture), round(p.Resume), round(r.Primary.PauseWorst.Total))
	t.Logf("that is %.2f times the %v of the parts on an idle machine; the aim there is 1.2", float64(p.Total)/float64(partsMedian),
		partsMedian)
	t.Logf("the guest's longest standstill in each second: xlft median %v, worst %v", round(middle(ours)), round(ours[len(ours)-1]))
	t.Logf("xl remus: median %v, worst %v", round(middle(remus)), round(remus[len(remus)-1]))
	ratio := float64(middle(ours)) / float64(middle(remus))
	t.Logf("xlft stops the guest for %.2f times as long as xl remus", ratio)
	if ratio > 0.8 { // a machine with other work stretches the short one more
		t.Errorf("the pause is %.2f times that of xl remus", ratio)
	}

	fx.stalledReceiver(ours)
}

// stalledReceiver stops the backup's receiver from reading, again and again, and measures the guest's standstills.
func (fx *fixture) stalledReceiver(normal []time.Duration) {
	fx.t.Helper()
	const stop, times = 2 * time.Second, 5 // shorter than failure_timeout, so that the backup is not lost
	check(fx.t, fx.ask().Dirty(10*dirtyRate, workingSet))
	var all []time.Duration
	for range times {
		_, err := fx.ask().Stall()
		check(fx.t, err)
		fx.signal(fx.backup(), "STOP", "receive")
		<-time.After(stop)
		fx.signal(fx.backup(), "CONT", "receive")
		d, err := fx.ask().Stall()
		check(fx.t, err)
		all = append(all, d)
	}
	slices.Sort(all)
	longest, before := all[len(all)-1], normal[len(normal)-1]
	fx.t.Logf("the backup stopped reading for %v, %d times, with %d pages written a second: the guest's longest standstill was %v (median %v); before %v",
		stop, times, 10*dirtyRate, round(longest), round(middle(all)), round(before))
	if longest > stop*3/4 && longest > 2*before {
		fx.t.Errorf("the guest stood still for %v while the backup did not read; otherwise at most %v", longest, before)
	}
	if r := fx.status(fx.home); !r.Protected {
		fx.t.Errorf("protection was lost: %s", r.State)
	}
}

// remus runs f while stock "xl remus" replicates the guest as Debian's build can: unsafe, with nothing held.
func (fx *fixture) remus(f func() []time.Duration) []time.Duration {
	t := fx.t
	t.Helper()
	r, err := lab.StartRemus(within(t, 3*patience), fx.home, fx.backup(), fx.guest.Name, lab.DebianXL, 200, "-n")
	check(t, err)
	defer func() {
		check(t, r.Stop(within(t, patience)))
		fx.get()
	}()
	check(t, r.AwaitCheckpoints(within(t, patience)))
	return f()
}
