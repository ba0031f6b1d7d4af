//go:build lab

package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// Two hosts protect each other's domains: two one way and one the other. Each domain is stopped and protected again,
// and moved and protected again, in turn; nothing of that concerns the others. Then each host dies in turn, the second
// with all three.
func TestThreeDomains(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	s := ft.Usual
	s.EpochMax, s.FailureTimeout = 2*time.Second, 15*time.Second // an emulated processor has much to do
	fx.install(s)
	a, b := fx.A, fx.B
	// With three of them a first copy takes minutes.
	protect := func(f *fixture) {
		t.Helper()
		begun := time.Now()
		_, err := f.home.Run(within(t, 3*patience), "xl", "ft-start", f.guest.Name)
		check(t, err)
		t.Logf("ft-start of %s on %s took %v", f.guest.Name, f.home.Name(), round(time.Since(begun)))
	}
	var all []*fixture
	for i, home := range []*lab.Host{a, a, b} {
		f := &fixture{Lab: fx.Lab, t: t, guest: lab.NewGuest(fmt.Sprint("web", i+1), 10+i), home: home, saved: fx.saved}
		f.boot()
		protect(f)
		all = append(all, f)
	}
	var callers []*caller
	for _, f := range all {
		callers = append(callers, f.call(500*time.Millisecond))
	}
	// on checks where the domains are, and that all go on.
	on := func() {
		t.Helper()
		for _, h := range fx.Hosts() {
			var want []string
			for _, f := range all {
				r := f.status(f.home)
				switch {
				case f.home == h:
					want = append(want, f.guest.Name)
				case r.Protected:
					want = append(want, f.guest.Name+"--xlft")
				}
			}
			slices.Sort(want)
			fx.until(patience, func() error {
				got := fx.domains(h)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					return fmt.Errorf("%s has %q, want %q", h.Name(), got, want)
				}
				return nil
			})
		}
		for _, c := range callers {
			c.await(3)
		}
	}
	// same checks that nothing happened to the protection of the others while f ran.
	same := func(of *fixture, f func()) {
		t.Helper()
		before := map[*fixture]ft.Row{}
		for _, o := range all {
			before[o] = o.status(o.home)
		}
		f()
		for _, o := range all {
			if r := o.status(o.home); o != of && (!r.Protected || r.Primary.Generation != before[o].Primary.Generation) {
				t.Errorf("%s is %s, generation %d; it was generation %d: nothing was done to it", o.guest.Name, r.State, r.Primary.Generation, before[o].Primary.Generation)
			}
		}
		on()
	}
	on()
	for _, f := range all {
		same(f, func() { f.home.Must(t, "xl", "ft-stop", f.guest.Name) })
		same(f, func() { protect(f) })
	}
	for _, f := range all {
		same(f, func() {
			begun := time.Now()
			f.home.Must(t, "xl", "ft-failover", f.guest.Name)
			t.Logf("ft-failover of %s took %v", f.guest.Name, round(time.Since(begun)))
			f.home = f.backup()
		})
		same(f, func() { protect(f) })
	}

	for _, dies := range []*lab.Host{a, b} {
		dies.Kill()
		var moved []*fixture
		for _, f := range all {
			if f.home == dies {
				f.awaitTakeover(fx.Peer(dies))
				moved = append(moved, f)
			} else {
				f.awaitUnprotected()
			}
		}
		for _, c := range callers {
			c.await(3)
		}
		if dies == b {
			break
		}
		fx.revive(dies)
		for _, f := range all {
			if !slices.Contains(moved, f) {
				begun := time.Now()
				_, err := ft.Await(within(t, 3*patience), f.home, f.guest.Name, "protected again by itself", isProtected)
				check(t, err)
				t.Logf("%s is protected again by itself after %v", f.guest.Name, round(time.Since(begun)))
			}
		}
		for _, f := range moved {
			protect(f)
		}
		on()
		t.Log(strings.TrimSpace(b.Must(t, "xl", "ft-list")))
	}
	for _, c := range callers {
		c.end()
	}
}
