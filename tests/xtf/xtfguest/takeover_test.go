//go:build lab

package xtfguest_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/xtf/xtfguest"
)

var (
	chance = flag.Uint64("xtf.seed", 0, "seed of the moments of death; 0: a new one")
	rounds = flag.Int("xtf.rounds", 2, "how many hosts die")
	rate   = flag.Int("xtf.rate", 200, "the counter's steps a second; 0: all it can")
)

// A chain is a counter that goes from host to host as they die.
type chain struct {
	*lab.Lab
	t     *testing.T
	guest xtfguest.Guest
	home  *lab.Host // where the counter runs
	saved map[*lab.Host][]byte
}

// install puts xlft on both hosts of a lab.
func install(t *testing.T, l *lab.Lab) map[*lab.Host][]byte {
	t.Helper()
	check(t, ft.Install(within(t, patience), l, ft.Usual))
	saved := map[*lab.Host][]byte{}
	for _, h := range l.Hosts() {
		var err error
		saved[h], err = ft.Save(within(t, soon), h)
		check(t, err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		for _, h := range l.Hosts() {
			t.Logf("journal of %s:\n%s", h.Name(), ft.Journal(ctx, h))
		}
	})
	return saved
}

// wakes returns the counter's returns from suspends, as printed on its host.
func (c *chain) wakes(d *xtfguest.Domain) []xtfguest.Wake {
	c.t.Helper()
	out, err := d.Console(within(c.t, soon))
	check(c.t, err)
	return xtfguest.Wakes(out)
}

// round protects the counter, kills its host at some moment of a checkpoint's cycle, and checks what the other host
// makes of it.
func (c *chain) round(random *rand.Rand) {
	t, from, to := c.t, c.home, c.Peer(c.home)
	d, err := xtfguest.Find(within(t, soon), from, c.guest.Name)
	check(t, err)

	// The counter's suspend number before+e is the one of checkpoint e.
	var before uint64
	if all := c.wakes(d); len(all) > 0 {
		before = all[len(all)-1].Suspend
	}
	begun := time.Now()
	from.Must(t, "xl", "ft-start", c.guest.Name)
	started := time.Since(begun)

	// What is printed on a host that dies is lost with it, but for what was read by then.
	tail, err := from.Start(t.Context(), "sh", "-c", "exec tail -n +1 -f /var/log/xen/console/guest-$1*.log", "tail", c.guest.Name)
	check(t, err)

	_, err = ft.Await(within(t, patience), from, c.guest.Name, "three checkpoints", func(r ft.Row) bool { return r.Protected && r.Epoch >= 3 })
	check(t, err)
	<-time.After(time.Duration(random.Int64N(int64(2 * time.Second))))
	st, err := ft.Status(within(t, soon), from, c.guest.Name)
	check(t, err)
	<-time.After(time.Duration(random.Int64N(int64(ft.Usual.EpochMax))))
	from.Kill()
	killed := time.Now()

	_, err = ft.Await(within(t, patience), to, c.guest.Name, "takeover", func(r ft.Row) bool { return r.Role == "owner" })
	check(t, err)
	d, err = xtfguest.Find(within(t, soon), to, c.guest.Name)
	check(t, err)
	c.home = to
	check(t, d.AwaitConsole(within(t, soon), "restored suspend"))
	took := time.Since(killed)

	all := c.wakes(d)
	w := all[0]
	if !w.Restored {
		t.Fatalf("the first wake on %s is %+v", to.Name(), w)
	}
	judge(t, "when it was restored", w.State)
	if epoch := w.Suspend - before; epoch < st.Epoch {
		t.Errorf("runs on from checkpoint %d, but %d was acked", epoch, st.Epoch)
	}
	seen := xtfguest.Wakes(tail.Stdout())
	var states []xtfguest.State
	for _, s := range seen {
		states = append(states, s.State)
		if s.Suspend == w.Suspend && s.State != w.State {
			t.Errorf("suspend %d: %v on %s, but %v on %s", s.Suspend, s.State, from.Name(), w.State, to.Name())
		}
	}
	judge(t, "on the host that died", states...)
	r := judgeAll(t, d)
	if r.Count < w.Count {
		t.Errorf("count %d after count %d", r.Count, w.Count)
	}
	last := seen[len(seen)-1]
	t.Logf("%s died: ft-start took %v; checkpoint %d was acked and it runs on from %d (%v; last seen was checkpoint %d, %v); restored after %v, all %d pages right at count %d",
		from.Name(), round(started), st.Epoch, w.Suspend-before, w.State, last.Suspend-before, last.State, round(took), pages, r.Count)
	t.Logf("pause median %v (suspend %v, capture %v, resume %v), worst %v; ack after %v; %d KiB a checkpoint",
		round(st.Primary.PauseMedian.Total),
		round(st.Primary.PauseMedian.Suspend), round(st.Primary.PauseMedian.Capture), round(st.Primary.PauseMedian.Resume),
		round(st.Primary.PauseWorst.Total), round(st.Primary.AckMedian), st.Primary.BytesMedian>>10)
}

// A counter without a network is taken over again and again, each time at a random moment, by the host that the last
// one died on. No page is ever lost, stale or torn, and no acked epoch is lost.
func TestTakeoverCounter(t *testing.T) {
	if *chance == 0 {
		*chance = rand.Uint64()
	}
	t.Logf("-xtf.seed=%d", *chance)
	random := rand.New(rand.NewPCG(*chance, 0))
	l := lab.Start(t)
	c := &chain{Lab: l, t: t, guest: counter("c1", fmt.Sprint("rate=", *rate)), home: l.A, saved: install(t, l)}
	d := create(t, c.guest, c.home)
	judgeAll(t, d)
	for i := range *rounds {
		begun := time.Now()
		if dead := c.Peer(c.home); i > 0 {
			check(t, dead.Revive(within(t, patience)))
			check(t, ft.Reinstall(within(t, patience), dead, c.saved[dead]))
			t.Logf("%s is back after %v", dead.Name(), round(time.Since(begun)))
		}
		c.round(random)
		if t.Failed() {
			t.FailNow()
		}
		t.Logf("round %d took %v", i+1, round(time.Since(begun)))
	}
}

// The pause in ft-status agrees with the pause that the guest measures.
func TestPauseDirty(t *testing.T) {
	lab.Long(t)
	l := lab.Start(t)
	install(t, l)
	g := xtfguest.Guest{Name: "dirty", Test: "dirty", Options: []string{"rate=500", "pages=1000"}}
	d := create(t, g, l.A)
	l.A.Must(t, "xl", "ft-start", g.Name)
	check(t, d.ResetStall(within(t, soon)))
	st, err := ft.Await(within(t, patience), l.A, g.Name, "twenty checkpoints", func(r ft.Row) bool { return r.Protected && r.Epoch >= 20 })
	check(t, err)
	stall, err := d.Stall(within(t, soon))
	check(t, err)
	p := st.Primary
	t.Logf("%d checkpoints: pause median %v (suspend %v, capture %v, resume %v), worst %v; ack after %v; %d KiB a checkpoint", st.Epoch,
		round(p.PauseMedian.Total), round(p.PauseMedian.Suspend), round(p.PauseMedian.Capture), round(p.PauseMedian.Resume),
		round(p.PauseWorst.Total), round(p.AckMedian), p.BytesMedian>>10)
	t.Logf("the guest: longest standstill %v, suspended for %v at most, %d suspends",
		round(stall.Longest), round(stall.Suspended), stall.Suspends)
	if stall.Suspends == 0 {
		t.Error("the guest saw no suspend")
	}
}
