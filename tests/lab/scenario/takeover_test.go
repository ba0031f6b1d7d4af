//go:build lab

package scenario

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

var seed = flag.Uint64("scenario.seed", 0, "seed of the moments of death; 0: a new one")

// chooseSeed takes a new one if none was asked for, and says it.
func (w *world) chooseSeed() {
	w.t.Helper()
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	w.t.Logf("-scenario.seed=%d", *seed)
}

// pair is a client over IPv4 and one over IPv6, both sending without pause.
type pair struct {
	w       *world
	start   probe.State
	clients [2]*probe.Client
	streams [2]*probe.Stream
}

func (w *world) pair() *pair {
	w.t.Helper()
	six, err := w.DialGuest6(within(w.t, soon), w.guest)
	check(w.t, err)
	p := &pair{w: w, clients: [2]*probe.Client{w.dial(), six}}
	p.start = w.get()
	for i, c := range p.clients {
		p.streams[i] = c.Stream(uint64(i)<<32, 32)
	}
	return p
}

// await waits until both clients have got so many replies after t, and returns when the first one of each came.
func (p *pair) await(t time.Time, n int) (first [2]time.Duration) {
	p.w.t.Helper()
	check(p.w.t, lab.Await(within(p.w.t, patience), func() error {
		for i, s := range p.streams {
			if _, _, err := s.Counts(); err != nil {
				p.w.t.Fatal(err)
			}
			got := 0
			for _, r := range s.Replies() {
				if r.At.After(t) {
					if got == 0 {
						first[i] = r.At.Sub(t)
					}
					got++
				}
			}
			if got < n {
				return fmt.Errorf("client %d has %d replies, of %d", i, got, n)
			}
		}
		return nil
	}))
	return first
}

// end stops both clients and checks every reply.
func (p *pair) end() {
	p.w.t.Helper()
	var all [2][]probe.Reply
	for i, s := range p.streams {
		var err error
		if all[i], err = s.Stop(patience); err != nil {
			p.w.t.Errorf("client %d: its connection was not kept: %v", i, err)
		}
		p.clients[i].Close()
	}
	p.w.judge(p.start, all[0], all[1])
	p.w.t.Logf("IPv4: %d replies, longest gap %v; IPv6: %d replies, longest gap %v",
		len(all[0]), round(probe.LongestGap(all[0])), len(all[1]), round(probe.LongestGap(all[1])))
}

// A planned switch-over: no held output is lost, the connections are kept, the domain moves; then it is protected back.
func TestFailover(t *testing.T) {
	w := protected(t)
	from, to := w.home, w.backup()
	k := w.talk(200)
	p := w.pair()
	p.await(time.Now(), 20)

	begun := time.Now()
	t.Log(strings.TrimSpace(from.Must(t, "xl", "ft-failover", w.guest.Name)))
	t.Logf("ft-failover took %v", round(time.Since(begun)))
	w.home = to
	w.awaitDomains(from)
	w.awaitDomains(to, w.guest.Name)
	w.awaitClean(from)
	p.await(time.Now(), 20)
	p.end()
	h := k.end()
	w.oneVoice(h, from, to)
	w.moved(h, from)

	w.protect()
	if r := w.status(from); r.Role != "backup" || !r.Protected {
		t.Errorf("ft-status at the new backup: %+v", r)
	}
}

// moved checks that what the guest sent was heard, but for one round of its frames: it is lost with the guest's device if
// the guest was frozen between its look at the carrier and the last of them.
func (w *world) moved(h heard, from *lab.Host) {
	w.t.Helper()
	var last uint64
	for _, s := range h.probes {
		if s.host == from {
			last = max(last, s.Seq)
		}
	}
	lost := h.missing()
	w.t.Logf("frames %d to %d, the last from %s is %d, the first that the guest sent with a carrier at the new host is %d; not heard: %d",
		h.from+1, h.to, from.Name(), last, h.since, lost)
	if len(lost) > 0 && lost[0] < last || len(lost) > len(probe.Protos) {
		w.t.Errorf("%d frames were lost, from %d on", len(lost), lost[0])
	}
}

// The protector is killed: the output stays held in the kernel, the backup takes over, the restarted protector learns
// that and destroys the copy here. Never do both speak.
func TestProtectorKilled(t *testing.T) {
	w := protected(t)
	from, to := w.home, w.backup()
	k := w.talk(20)
	p := w.pair()
	p.await(time.Now(), 20)

	from.Must(t, "systemctl", "kill", "--signal=KILL", "xlft@"+w.guest.Name+".service")
	killed := time.Now()
	w.awaitTakeover(to)
	w.awaitDomains(from)
	w.awaitClean(from)
	w.expectLog(from, "the backup runs the domain")
	w.awaitDomains(to, w.guest.Name)
	first := p.await(killed, 20)
	t.Logf("first replies after the kill: IPv4 %v, IPv6 %v", round(first[0]), round(first[1]))
	p.end()
	w.oneVoice(k.end(), from, to)
	if r := w.status(from); r.Role != "yielded" || r.Protected {
		t.Errorf("ft-status at the old primary: %+v", r)
	}
}

// The primary's host dies at a random moment, with a busy guest: clients over IPv4 and IPv6 go on over their
// connections, and every reply stays true.
func TestTakeoverLinux(t *testing.T) {
	w := protected(t)
	w.chooseSeed()
	random := rand.New(rand.NewPCG(*seed, 0))

	from, to := w.home, w.backup()
	check(t, w.ask().Dirty(500, 2000))
	k := w.talk(20)
	p := w.pair()
	p.await(time.Now(), 20)
	<-time.After(time.Duration(random.Int64N(int64(3 * time.Second))))
	r := w.status(from)
	if !r.Protected {
		t.Fatalf("%s is not protected on %s any more: %s", r.Domain, from.Name(), r.State)
	}
	from.Kill()
	killed := time.Now()
	t.Logf("killed %s after %d checkpoints; pause median %v, worst %v; %d KiB a checkpoint", from.Name(),
		r.Primary.Checkpoints, round(r.Primary.PauseMedian.Total), round(r.Primary.PauseWorst.Total), r.Primary.BytesMedian>>10)

	w.awaitTakeover(to)
	first := p.await(killed.Add(100*time.Millisecond), 50)
	t.Logf("first replies after the kill: IPv4 %v, IPv6 %v, failure_timeout is %v", round(first[0]), round(first[1]), ft.Usual.FailureTimeout)
	p.end()
	check(t, w.ask().Dirty(0, 0))
	w.oneVoice(k.end(), from, to)
	w.awaitDomains(to, w.guest.Name)
	w.expectLog(to, "took the domain over")
	w.revive(from)
}

// The guest powers itself off: nobody takes over, the replica goes, the status says so.
func TestGuestEnds(t *testing.T) {
	w := protected(t)
	w.over = true
	// A domain that has not yet looked at the request is not asked for a checkpoint instead.
	w.home.Must(t, "sh", "-c", `xl pause "$1"; xl shutdown "$1" & sleep "$2"; xl unpause "$1"; wait $!`,
		"sh", w.guest.Name, fmt.Sprint((3 * ft.Usual.EpochMax).Seconds()))
	w.until(soon, func() error {
		all, err := w.home.Domains(within(t, soon))
		for _, d := range all {
			if d.Name == w.guest.Name && !strings.Contains(d.State, "s") {
				return fmt.Errorf("%s runs on (%s)", d.Name, d.State)
			}
		}
		return err
	})
	t.Logf("domains of %s afterwards: %q", w.home.Name(), w.domains(w.home))
	w.awaitDomains(w.backup())
	w.awaitClean(w.home)
	w.expectLog(w.home, "the domain ended")
	for _, h := range w.Hosts() {
		msg := w.refused(h, "not protected", "xl", "ft-status", w.guest.Name)
		if strings.Contains(msg, "protector-dead") {
			t.Errorf("%s: %s", h.Name(), msg)
		}
	}
	if journal := ft.Journal(within(t, soon), w.backup()); strings.Contains(journal[strings.LastIndex(journal, "replica begun"):], "took the domain over") {
		t.Error("the backup took over a domain that had ended")
	}
}
