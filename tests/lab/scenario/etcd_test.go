//go:build lab

package scenario

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// etcd starts the arbiter, at a third place, for settings that are to use it.
func (fx *fixture) etcd(s *ft.Settings) *lab.Etcd {
	fx.t.Helper()
	e, err := fx.StartEtcd(within(fx.t, soon))
	check(fx.t, err)
	fx.t.Cleanup(e.Stop)
	s.Etcd = e
	return e
}

// Two hosts and an etcd. While it is down the hosts say so, and the guest stays protected. When the hosts lose each other
// then, the guest stands still, both say what they wait for, and none of them has it speak; when etcd is back the host that ran
// it runs it on. When its host dies, the other one takes over.
func TestEtcd(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	s := ft.Usual
	e := fx.etcd(&s)
	fx.install(s)
	fx.boot()
	fx.A.Must(t, "xl", "ft-check", fx.guest.Name)
	e.Stop()
	fx.refused(fx.A, lab.EtcdEndpoint, "xl", "ft-check", fx.guest.Name)
	check(t, e.Start(within(t, soon)))
	fx.protect()

	k := fx.talk(10)
	p := fx.pair()
	p.await(time.Now(), 20)
	e.Stop()
	check(t, fx.SplitHosts())
	r := fx.await(fx.A, "it waits", func(r ft.Row) bool { return r.State == "blocked" && r.Primary.LastError != "" })
	b := fx.await(fx.B, "it waits", func(r ft.Row) bool { return r.State == "claiming" && r.Backup.LastError != "" })
	for h, why := range map[*lab.Host]string{fx.A: r.Primary.LastError, fx.B: b.Backup.LastError} {
		if !strings.Contains(why, lab.EtcdEndpoint) {
			t.Errorf("%s waits, and says %q", h.Name(), why)
		}
	}
	split := time.Now()
	check(t, e.Start(within(t, soon)))
	p.await(split, 20)
	t.Logf("the client had 20 more answers %v after etcd was back", round(time.Since(split)))
	check(t, fx.JoinHosts())
	fx.await(fx.A, "protected again", isProtected)
	p.end()
	h := k.end()
	fx.onlyFrom(h, fx.A)
	fx.complete(h)

	client := fx.call(200 * time.Millisecond)
	fx.A.Kill()
	died := time.Now()
	fx.awaitTakeover(fx.B)
	fx.get()
	t.Logf("answered by B %v after A died", round(time.Since(died)))
	client.end()
	keys, err := e.Keys(within(t, soon))
	check(t, err)
	t.Logf("etcd has %q", keys)
}

// Three hosts and an etcd, and nobody types anything: A, which runs the guest, dies, B runs it and C becomes the backup; B
// dies, C runs it; A comes back and is the backup. One client goes on over both deaths.
func TestThreeHosts(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	check(t, fx.Third(within(t, 2*patience), t.Logf))
	s := ft.Usual
	s.Protect = true
	fx.etcd(&s)
	fx.install(s)
	fx.boot()
	by := func(peer string) func(ft.Row) bool {
		return func(r ft.Row) bool { return r.Protected && r.Peer == peer }
	}
	fx.await(fx.A, "protected by B", by("B"))
	client := fx.call(200 * time.Millisecond)
	for _, c := range []struct{ from, to, next *lab.Host }{{fx.A, fx.B, fx.C}, {fx.B, fx.C, fx.A}} {
		c.from.Kill()
		died := time.Now()
		fx.awaitTakeover(c.to)
		if c.next.PID() == 0 {
			fx.revive(c.next)
		}
		fx.await(c.to, "protected by "+c.next.Name(), by(c.next.Name()))
		t.Logf("%s died: protected by %s %v later", c.from.Name(), c.next.Name(), round(time.Since(died)))
	}
	if len(client.end()) == 0 {
		t.Error("no replies")
	}
	for _, h := range []*lab.Host{fx.A, fx.C} {
		fx.until(soon, func() error {
			want := fx.guest.Name
			if h != fx.home {
				want += "--xlft"
			}
			if got := fx.domains(h); len(got) != 1 || got[0] != want {
				return fmt.Errorf("%s runs %q, want %s", h.Name(), got, want)
			}
			return nil
		})
	}
}
