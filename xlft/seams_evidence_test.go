package xlft_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"xlft/xlft/backup"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// What a backup that suspects its primary finds out before its host is fenced.

// H8: a protector dies, and its host lives: the host, with all its other domains, is not
// fenced for that, however long no successor comes, and the successor takes the domain
// back.
func TestProtectorDeathFencesNobody(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.a, nil)
		m.begin()
		neighbour := m.a.Boot("mail", 12)
		m.pa.Kill()
		time.Sleep(10 * time.Minute)
		if m.a.Down() || !neighbour.Runs() {
			m.t.Fatal("a host was fenced for the death of one protector")
		}
		if all := m.receiver.Replicas(); len(all) != 1 || all[0].State != backup.Claiming || !strings.Contains(all[0].LastError, `A answers, and has web1: its protector there`) {
			m.t.Errorf("B says %+v", all)
		}
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		neighbour.Freeze()
	}, "fence", "manual")
}

// Nothing is heard of a protector while its host lives: the host is asked to look after
// it, and only by the domain's backup.
func TestHungProtectorIsEnded(t *testing.T) {
	seams(t, func(m *seam) {
		looked := 0
		m.receive(m.a, func(r *backup.Receiver) {
			r.Suspected = func(_ context.Context, domain string) {
				if looked++; looked == 1 {
					m.protect(m.a, m.domain, "B", nil) // as systemd does, after EndHung
				}
			}
		})
		m.begin()
		var r wire.OwnerResult
		q := wire.OwnerQuery{Domain: simDomain, Generation: 1, Suspect: true}
		if err := wire.Ask(context.Background(), m.spawn(m.c).Dial("A"), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &r); err != nil {
			m.t.Error(err)
		}
		time.Sleep(time.Second)
		if looked > 0 {
			m.t.Error("a third host had the protector looked after")
		}
		m.pa.Kill()
		time.Sleep(5 * time.Second)
		if m.a.Down() || looked == 0 {
			m.t.Errorf("A down %v; the protector was looked after %d times", m.a.Down(), looked)
		}
		m.await(m.session, primary.Protected)
	}, "fence")
}

// A host that stands still for less than the bound, or whose network does, is not
// fenced; one that is silent for longer is.
func TestFencedAfterTheBound(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.a, nil)
		m.begin()
		for _, cut := range []time.Duration{simSilence / 2, 2 * simSilence, 3*simSilence - 150*time.Millisecond} {
			// Suspected after simSilence, less a heartbeat, and then asked for 2 * simSilence.
			m.net.Cut(true)
			time.Sleep(cut)
			m.net.Cut(false)
			time.Sleep(5 * time.Second)
			if m.a.Down() || m.b.Down() {
				m.t.Fatalf("a host was fenced for a network that was cut for %v", cut)
			}
			m.await(m.session, primary.Protected)
		}
		m.a.Crash()
		if !m.runs(m.b) {
			m.t.Error("the domain runs nowhere")
		}
	}, "fence")
}

// H7: only the network between the hosts breaks: the host that runs the domain is the
// one that stays.
func TestRunnerStays(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.a, nil)
		m.begin()
		m.net.Cut(true)
		time.Sleep(5 * time.Second)
		if !m.runs(m.a) || m.a.Down() || !m.b.Down() {
			m.t.Errorf("A down %v, B down %v: %+v", m.a.Down(), m.b.Down(), m.session.Status())
		}
	}, "fence")
}

// The domain is gone from a primary's host that answers: nothing is left to fence.
func TestGoneFromPrimary(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.a, nil)
		m.begin()
		m.pa.Kill()
		m.awaitB(backup.Claiming)
		if err := m.spawn(m.a).Guest(m.domain).Destroy(); err != nil {
			m.t.Fatal(err)
		}
		if !m.runs(m.b) || m.a.Down() {
			m.t.Errorf("A down %v, B says %+v", m.a.Down(), m.receiver.Replicas())
		}
	}, "fence", "manual")
}
