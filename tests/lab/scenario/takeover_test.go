//go:build lab

package scenario

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

var seed = flag.Uint64("scenario.seed", 0, "seed of the moments of death; 0: a new one")

// chooseSeed takes a new seed if none is given, and logs the seed.
func (fx *fixture) chooseSeed() {
	fx.t.Helper()
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	fx.t.Logf("-scenario.seed=%d", *seed)
}

// pair is a client over IPv4 and one over IPv6, both sending without pause.
type pair struct {
	fx      *fixture
	start   probe.State
	clients [2]*probe.Client
	streams [2]*probe.Stream
}

func (fx *fixture) pair() *pair {
	fx.t.Helper()
	six, err := fx.DialGuest6(within(fx.t, soon), fx.guest)
	check(fx.t, err)
	p := &pair{fx: fx, clients: [2]*probe.Client{fx.dial(), six}}
	p.start = fx.get()
	for i, c := range p.clients {
		check(fx.t, c.SetDeadline(time.Time{})) // who waits for the replies has one
		p.streams[i] = c.Stream(uint64(i)<<32, 32)
	}
	return p
}

// await waits until both clients have got so many replies after t, and returns when the first one of each came.
func (p *pair) await(t time.Time, n int) (first [2]time.Duration) {
	p.fx.t.Helper()
	check(p.fx.t, lab.Await(within(p.fx.t, patience), func() error {
		for i, s := range p.streams {
			if _, _, err := s.Counts(); err != nil {
				p.fx.t.Fatal(err)
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
	p.fx.t.Helper()
	var all [2][]probe.Reply
	for i, s := range p.streams {
		var err error
		if all[i], err = s.Stop(patience); err != nil {
			p.fx.t.Errorf("client %d: its connection was not kept: %v", i, err)
		}
		p.clients[i].Close()
	}
	p.fx.judge(p.start, all[0], all[1])
	p.fx.t.Logf("IPv4: %d replies, longest gap %v; IPv6: %d replies, longest gap %v",
		len(all[0]), round(probe.LongestGap(all[0])), len(all[1]), round(probe.LongestGap(all[1])))
}

// A planned switch-over: no held output is lost, the connections are kept, the domain moves; then it is protected back.
func TestFailover(t *testing.T) {
	fx := protected(t)
	from, to := fx.home, fx.backup()
	k := fx.talk(200)
	p := fx.pair()
	p.await(time.Now(), 20)

	begun := time.Now()
	t.Log(strings.TrimSpace(from.Must(t, "xl", "ft-failover", fx.guest.Name)))
	t.Logf("ft-failover took %v", round(time.Since(begun)))
	fx.home = to
	fx.awaitDomains(from)
	fx.awaitDomains(to, fx.guest.Name)
	fx.awaitClean(from)
	p.await(time.Now(), 20)
	p.end()
	h := k.end()
	fx.oneVoice(h, from, to)
	fx.moved(h, from)

	fx.protect()
	if r := fx.status(from); r.Role != "backup" || !r.Protected {
		t.Errorf("ft-status at the new backup: %+v", r)
	}
}

// moved checks that what the guest sent was heard, but for one round of its frames: it is lost with the guest's device
// if the guest was frozen between its look at the carrier and the last of them.
func (fx *fixture) moved(h heard, from *lab.Host) {
	fx.t.Helper()
	var last uint64
	for _, s := range h.probes {
		if s.host == from {
			last = max(last, s.Seq)
		}
	}
	lost := h.missing()
	fx.t.Logf("frames %d to %d, the last from %s is %d, the first that the guest sent with a carrier at the new host is %d; not heard: %d",
		h.from+1, h.to, from.Name(), last, h.since, lost)
	if len(lost) > 0 && lost[0] < last || len(lost) > len(probe.Protos) {
		fx.t.Errorf("%d frames were lost, from %d on", len(lost), lost[0])
	}
}

// The protector is killed: the output stays held in the kernel, the backup takes over, and the restarted protector
// learns of that and destroys the domain here. Never do both copies send.
func TestProtectorKilled(t *testing.T) {
	fx := protected(t)
	from, to := fx.home, fx.backup()
	k := fx.talk(20)
	p := fx.pair()
	p.await(time.Now(), 20)

	from.Must(t, "systemctl", "kill", "--signal=KILL", "xlft@"+fx.guest.Name+".service")
	killed := time.Now()
	fx.awaitTakeover(to)
	fx.awaitDomains(from)
	fx.awaitClean(from)
	fx.expectLog(from, "the backup runs the domain")
	fx.awaitDomains(to, fx.guest.Name)
	first := p.await(killed, 20)
	t.Logf("first replies after the kill: IPv4 %v, IPv6 %v", round(first[0]), round(first[1]))
	p.end()
	fx.oneVoice(k.end(), from, to)
	if r := fx.status(from); r.Role != "yielded" || r.Protected {
		t.Errorf("ft-status at the old primary: %+v", r)
	}
}

// knock sends the guest a datagram again and again: something always arrives while the guest runs nowhere.
func (fx *fixture) knock() (stop func()) {
	fx.t.Helper()
	conn, err := fx.Dial(within(fx.t, soon), "udp", netip.AddrPortFrom(fx.guest.IPv4, 9).String())
	check(fx.t, err)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for t := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-t.C:
				conn.Write([]byte("knock")) // that nobody listens is an error, and told
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-stopped; conn.Close() }
}

// The primary's host dies at a random moment, with a busy guest: clients over IPv4 and IPv6 continue over their
// connections, and every reply stays true.
func TestTakeoverLinux(t *testing.T) {
	fx := protected(t)
	fx.chooseSeed()
	random := rand.New(rand.NewPCG(*seed, 0))

	from, to := fx.home, fx.backup()
	check(t, fx.ask().Dirty(500, 2000))
	k := fx.talk(20)
	p := fx.pair()
	p.await(time.Now(), 20)
	<-time.After(time.Duration(random.Int64N(int64(3 * time.Second))))
	r := fx.status(from)
	if !r.Protected {
		t.Fatalf("%s is not protected on %s any more: %s", r.Domain, from.Name(), r.State)
	}
	stop := fx.knock()
	from.Kill()
	killed := time.Now()
	t.Logf("killed %s after %d checkpoints; pause median %v, worst %v; %d KiB a checkpoint", from.Name(),
		r.Primary.Checkpoints, round(r.Primary.PauseMedian.Total), round(r.Primary.PauseWorst.Total), r.Primary.BytesMedian>>10)

	fx.awaitTakeover(to)
	first := p.await(killed.Add(100*time.Millisecond), 50)
	t.Logf("first replies after the kill: IPv4 %v, IPv6 %v, failure_timeout is %v", round(first[0]), round(first[1]), ft.Usual.FailureTimeout)
	p.end()
	check(t, fx.ask().Dirty(0, 0))
	fx.oneVoice(k.end(), from, to)
	fx.awaitDomains(to, fx.guest.Name)
	fx.expectLog(to, "took the domain over")
	stop()
	fx.expectLog(to, "what arrived for the domain before it ran")
	fx.revive(from)
}

// The guest powers itself off: the backup does not take over, the replica is destroyed, and the status says so.
func TestGuestEnds(t *testing.T) {
	fx := protected(t)
	fx.over = true
	// A domain that has not yet looked at the request is not asked for a checkpoint instead.
	fx.home.Must(t, "sh", "-c", `xl pause "$1"; xl shutdown "$1" & sleep "$2"; xl unpause "$1"; wait $!`,
		"sh", fx.guest.Name, fmt.Sprint((3 * ft.Usual.EpochMax).Seconds()))
	fx.until(soon, func() error {
		all, err := fx.home.Domains(within(t, soon))
		for _, d := range all {
			if d.Name == fx.guest.Name && !strings.Contains(d.State, "s") {
				return fmt.Errorf("%s runs on (%s)", d.Name, d.State)
			}
		}
		return err
	})
	fx.awaitDomains(fx.home) // on_poweroff is "destroy"
	fx.awaitDomains(fx.backup())
	fx.awaitClean(fx.home)
	fx.expectLog(fx.home, "the domain ended")
	for _, h := range fx.Hosts() {
		msg := fx.refused(h, "not protected", "xl", "ft-status", fx.guest.Name)
		if strings.Contains(msg, "protector-dead") {
			t.Errorf("%s: %s", h.Name(), msg)
		}
	}
	journal := ft.Journal(within(t, soon), fx.backup())
	if strings.Contains(journal[strings.LastIndex(journal, "replica begun"):], "took the domain over") {
		t.Error("the backup took over a domain that had ended")
	}
}
