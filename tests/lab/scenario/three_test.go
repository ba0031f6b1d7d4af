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
	"xlft/tests/lab/probe"
)

// A caller is a client of one of several guests: it asks one question after the other, over one connection.
type caller struct {
	fx     *fixture
	client *probe.Client
	start  probe.State
	stream *probe.Stream
}

func (fx *fixture) call() *caller {
	fx.t.Helper()
	c := &caller{fx: fx, client: fx.dial(), start: fx.get()}
	check(fx.t, c.client.SetDeadline(time.Time{}))
	c.stream = c.client.Stream(0, 1)
	return c
}

// await waits until the client has so many more replies.
func (c *caller) await(more uint64) {
	c.fx.t.Helper()
	_, before, _ := c.stream.Counts()
	c.fx.until(patience, func() error {
		_, n, err := c.stream.Counts()
		if err != nil {
			c.fx.t.Fatalf("the client of %s: %v", c.fx.guest.Name, err)
		}
		if n < before+more {
			return fmt.Errorf("the client of %s has %d replies, of %d", c.fx.guest.Name, n, before+more)
		}
		return nil
	})
}

func (c *caller) end() {
	c.fx.t.Helper()
	replies, err := c.stream.Stop(patience)
	if err != nil {
		c.fx.t.Errorf("the client of %s: %v", c.fx.guest.Name, err)
	}
	c.client.Close()
	c.fx.judge(c.start, replies)
	c.fx.t.Logf("the client of %s waited %v at most", c.fx.guest.Name, round(probe.LongestGap(replies)))
}

// Two hosts protect each other's domains: two one way and one the other. Each of stop, switch-over and death concerns
// its own domains, and no others. At the end one host has all three, and dies.
func TestThreeDomains(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	fx.install(ft.Usual)
	a, b := fx.A, fx.B
	var all []*fixture
	for i, home := range []*lab.Host{a, a, b} {
		f := &fixture{Lab: fx.Lab, t: t, guest: lab.NewGuest(fmt.Sprint("web", i+1), 10+i), home: home, saved: fx.saved}
		f.boot()
		f.protect()
		all = append(all, f)
	}
	web1, web2, web3 := all[0], all[1], all[2]
	var callers []*caller
	for _, f := range all {
		callers = append(callers, f.call())
	}
	defer func() {
		if !t.Failed() {
			for _, c := range callers {
				c.end()
			}
		}
	}()
	// on checks where the domains are, and that all go on.
	on := func(h *lab.Host, want ...string) {
		t.Helper()
		fx.until(soon, func() error {
			got := fx.domains(h)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				return fmt.Errorf("%s has %q, want %q", h.Name(), got, want)
			}
			return nil
		})
	}
	goOn := func() {
		t.Helper()
		for _, c := range callers {
			c.await(3)
		}
	}
	// same checks that nothing happened to the protection of a domain since f began.
	same := func(others []*fixture, f func()) {
		t.Helper()
		var before []ft.Row
		for _, o := range others {
			before = append(before, o.status(o.home))
		}
		f()
		for i, o := range others {
			if r := o.status(o.home); !r.Protected || r.Primary.Generation != before[i].Primary.Generation {
				t.Errorf("%s is %s, generation %d; it was generation %d: nothing was done to it", o.guest.Name, r.State, r.Primary.Generation, before[i].Primary.Generation)
			}
		}
		goOn()
	}
	on(a, "web1", "web2", "web3--xlft")
	on(b, "web1--xlft", "web2--xlft", "web3")

	same([]*fixture{web2, web3}, func() {
		a.Must(t, "xl", "ft-stop", "web1")
		on(a, "web1", "web2", "web3--xlft")
		on(b, "web2--xlft", "web3")
		web1.protect()
	})
	same([]*fixture{web1, web3}, func() {
		begun := time.Now()
		a.Must(t, "xl", "ft-failover", "web2")
		t.Logf("ft-failover took %v", round(time.Since(begun)))
		web2.home = b
		on(a, "web1", "web3--xlft")
		on(b, "web1--xlft", "web2", "web3")
		web2.protect()
	})
	on(a, "web1", "web2--xlft", "web3--xlft")

	// A dies: web1 moves, and the others lose their backup.
	a.Kill()
	web1.awaitTakeover(b)
	web2.awaitUnprotected()
	web3.awaitUnprotected()
	on(b, "web1", "web2", "web3")
	goOn()
	fx.revive(a)
	web2.await(b, "synced again by itself", isProtected)
	web3.await(b, "synced again by itself", isProtected)
	web1.protect()
	t.Log(strings.TrimSpace(b.Must(t, "xl", "ft-list")))

	// B dies, with all three.
	b.Kill()
	for _, f := range all {
		f.awaitTakeover(a)
	}
	on(a, "web1", "web2", "web3")
	goOn()
}
