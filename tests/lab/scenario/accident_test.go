//go:build lab

package scenario

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// A protector ends by accident: it aborts, it crashes, it is killed while there is room neither for its records nor for
// its sockets. systemd starts another one, which asks the backup before that fences the host, takes the domain back with
// all its output, and protects it again.
func TestProtectorDies(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	s := ft.Usual
	fx.fence(&s)
	fx.install(s)
	fx.home = fx.B // A waits a while before it fences B
	fx.boot()
	fx.protect()
	for i, how := range []struct {
		sig, logged string
		full        bool
	}{
		{"ABRT", "SIGABRT: abort", false},
		{"SEGV", "SIGSEGV: segmentation violation", false},
		{"KILL", "status=9/KILL", true},
	} {
		if how.full {
			fx.fill(fx.B, "/", "/run")
		}
		k := fx.talk(10)
		p := fx.pair()
		p.await(time.Now(), 20)
		before := fx.status(fx.B)
		fx.kill(fx.B, how.sig, fx.protectorUnit())
		killed := time.Now()
		first := p.await(killed.Add(time.Second), 20) // not what was let out before
		t.Logf("%s: first replies after the death: IPv4 %v, IPv6 %v", how.sig, round(first[0]), round(first[1]))
		p.end() // clients that never pause leave the copying little of the processor
		fx.until(patience, func() error {
			r := fx.status(fx.B)
			if !r.Protected || r.Primary == nil || r.Primary.Generation <= before.Primary.Generation {
				return fmt.Errorf("%s is %s (role %s)", fx.guest.Name, r.State, r.Role)
			}
			return nil
		})
		h := k.end()
		fx.onlyFrom(h, fx.B)
		fx.complete(h)
		if off := fx.power.Fenced(); len(off) > 0 {
			t.Fatalf("%s was switched off for a protector that ended", off)
		}
		if got := strings.TrimSpace(fx.B.Must(t, "systemctl", "show", "-P", "NRestarts", fx.protectorUnit())); got != fmt.Sprint(i+1) {
			t.Errorf("systemd restarted the protector %s times, want %d", got, i+1)
		}
		fx.awaitDomains(fx.B, fx.guest.Name)
		if how.full {
			fx.B.Must(t, "rm", "/filler", "/run/filler") // the journal may have had no room for more
		} else {
			fx.expectLog(fx.B, how.logged)
			fx.expectLog(fx.B, "Main process exited")
		}
		fx.expectLog(fx.B, `"to":"recovering"`)
		fx.expectLog(fx.A, "answers, and has "+fx.guest.Name)
	}
}

// fill leaves no room in file systems of a host.
func (fx *fixture) fill(h *lab.Host, dirs ...string) {
	fx.t.Helper()
	for _, dir := range dirs {
		h.Must(fx.t, "sh", "-c", `cd "$1" && fallocate -l "$(df --output=avail -B1 . | tail -n 1)" filler
while head -c 65536 /dev/zero >>filler; do :; done 2>/dev/null
while head -c 512 /dev/zero >>filler; do :; done 2>/dev/null
df -h . && ! head -c 4096 /dev/zero >filler.more 2>/dev/null; status=$?; rm -f filler.more; exit $status`, "sh", dir)
	}
}

// The host dies, and at the backup there is no room, neither for records nor for sockets: the domain is taken over, and
// the host knows that it has it. Then the same for the record of a domain that was handed over.
func TestFullDisk(t *testing.T) {
	lab.Long(t)
	fx := protected(t)
	fx.chooseSeed()
	random := rand.New(rand.NewPCG(*seed, 0))
	from, to := fx.home, fx.backup()
	fx.fill(to, "/", "/run")
	k := fx.talk(20)
	p := fx.pair()
	p.await(time.Now(), 20)
	<-time.After(time.Duration(random.Int64N(int64(2 * time.Second))))
	if r := fx.status(from); !r.Protected {
		t.Fatalf("not protected with a full backup: %s", r.State)
	}
	from.Kill()
	killed := time.Now()
	fx.awaitTakeover(to)
	first := p.await(killed.Add(100*time.Millisecond), 20)
	t.Logf("first replies after the kill: IPv4 %v, IPv6 %v", round(first[0]), round(first[1]))
	p.end()
	fx.oneVoice(k.end(), from, to)
	fx.awaitDomains(to, fx.guest.Name)

	// Still full, the host protects the domain towards the one that is back, and hands it over.
	fx.revive(from)
	from, to = to, from
	fx.protect()
	p = fx.pair()
	p.await(time.Now(), 20)
	from.Must(t, "xl", "ft-failover", fx.guest.Name)
	fx.home = to
	p.await(time.Now(), 20)
	p.end()
	fx.awaitDomains(from)
	fx.awaitDomains(to, fx.guest.Name)
	if r := fx.status(from); r.Role != "yielded" {
		t.Errorf("ft-status at the old primary: %+v", r)
	}
	from.Must(t, "rm", "/filler", "/run/filler")
	fx.protect()
}
