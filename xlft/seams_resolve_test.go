package xlft_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
)

// An operator's word, "xl ft-resolve", where nobody else can decide.

// refused fails the case unless a word was refused, with the text in the reason.
func (m *seam) refused(_ xlft.Decision, err error, text string) {
	m.t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		m.t.Errorf("the word was answered %v, want a refusal with %q", err, text)
	}
}

// taken fails the case unless a word was taken.
func (m *seam) taken(d xlft.Decision, err error) {
	m.t.Helper()
	if err != nil {
		m.t.Errorf("the word was refused: %v; known was %+v", err, d)
	}
}

// resolves says a word to A's protector, within the time that an operator has.
func (m *seam) resolves(w xlft.Word) (xlft.Decision, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return m.session.Resolve(ctx, w, "root")
}

// resolvesB says a word to B's receiver.
func (m *seam) resolvesB(w xlft.Word) (xlft.Decision, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return m.receiver.Resolve(ctx, simDomain, w, "root")
}

// awaitB waits for a state of B's replica.
func (m *seam) awaitB(want backup.State) {
	m.t.Helper()
	for range 1000 {
		if all := m.receiver.Replicas(); len(all) == 1 && all[0].State == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.t.Fatalf("B's replica is not %v: %+v", want, m.receiver.Replicas())
}

// deaf makes the arbiter, or the fence agents, unreachable for both hosts.
func (m *seam) deaf() {
	m.cas.Cut("A", true)
	m.cas.Cut("B", true)
}

// Where nothing waits a word is refused, and changes nothing.
func TestNothingWaits(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		for _, w := range []xlft.Word{xlft.PeerIsOff, xlft.TakeOver, xlft.GiveUp} {
			d, err := m.resolves(w)
			m.refused(d, err, "waits for no decision here: its protection is protected")
			d, err = m.resolvesB(w)
			m.refused(d, err, "waits for no decision here: its replica is ready")
		}
		d, err := m.receiver.Resolve(context.Background(), "mail", xlft.TakeOver, "root")
		m.refused(d, err, "holds no copy of it")
		time.Sleep(time.Second)
		m.await(m.session, primary.Protected)
	}, "cas", "fence")
}

// One host lost its power, and with it what could say so: the other one runs the
// domain within two seconds of the word.
func TestPeerIsOff(t *testing.T) {
	for _, dead := range []string{"A", "B"} {
		t.Run(dead, func(t *testing.T) {
			seams(t, func(m *seam) {
				m.begin()
				m.deaf()
				resolve, host := m.resolvesB, m.b
				if dead == "A" {
					m.a.Crash()
					m.awaitB(backup.Claiming)
				} else {
					resolve, host = m.resolves, m.a
					m.b.Crash()
					m.await(m.session, primary.Blocked)
				}
				time.Sleep(5 * time.Second)
				if d := host.Domain(simDomain); d != nil && d.Runs() {
					m.t.Fatal("it runs without a decision")
				}
				begun := time.Now()
				d, err := resolve(xlft.PeerIsOff)
				m.taken(d, err)
				if took := time.Since(begun); took > 2*time.Second {
					m.t.Errorf("the word took %v", took)
				}
				if !m.runs(host) {
					m.t.Error("the domain runs nowhere")
				}
				if since := begun.Sub(d.Since); since < 4*time.Second || since > 7*time.Second || !strings.Contains(d.Said, "reach") || d.Generation == 0 || len(d.Answers) != 1 || d.Answers[0].Lives {
					m.t.Errorf("known was %+v", d)
				}
			}, "cas", "fence")
		})
	}
}

// The network is broken and the arbiter with it: an operator who can reach both hosts
// has one give its copy up, and the other one run the domain.
func TestGiveUpAndTakeOver(t *testing.T) {
	for _, runner := range []string{"A", "B"} {
		t.Run(runner, func(t *testing.T) {
			seams(t, func(m *seam) {
				m.begin()
				m.deaf()
				m.net.Cut(true)
				m.awaitB(backup.Claiming)
				m.await(m.session, primary.Blocked)
				if runner == "A" {
					m.taken(m.resolvesB(xlft.GiveUp))
					m.taken(m.resolves(xlft.TakeOver))
				} else {
					m.taken(m.resolves(xlft.GiveUp))
					if err := <-m.ended; !errors.Is(err, primary.ErrGivenUp) {
						m.t.Errorf("A's protection ended with %v", err)
					}
					if d := m.a.Domain(simDomain); d != nil && !d.Gone() {
						m.t.Error("A has its copy")
					}
					m.taken(m.resolvesB(xlft.TakeOver))
				}
				if a, b := m.runs(m.a), m.runs(m.b); a != (runner == "A") || b != (runner == "B") {
					m.t.Errorf("runs on A %v, on B %v", a, b)
				}
				m.net.Cut(false)
				m.cas.Cut("A", false)
				m.cas.Cut("B", false)
				if runner == "A" {
					m.await(m.session, primary.Protected)
				}
				time.Sleep(5 * time.Second)
				if m.a.Down() || m.b.Down() {
					m.t.Error("a host was fenced after the word")
				}
			}, "cas", "fence")
		})
	}
}

// With the arbiter "manual" nobody runs the domain on without an operator's word, and
// status says what to type.
func TestManual(t *testing.T) {
	for _, dead := range []string{"A", "B"} {
		t.Run(dead, func(t *testing.T) {
			seams(t, func(m *seam) {
				m.begin()
				host, said := m.b, func() string { return m.receiver.Replicas()[0].LastError }
				resolve := m.resolvesB
				if dead == "A" {
					m.a.Crash()
					m.awaitB(backup.Claiming)
				} else {
					m.b.Crash()
					m.await(m.session, primary.Blocked)
					host, said, resolve = m.a, func() string { return m.session.Status().LastError }, m.resolves
				}
				time.Sleep(10 * time.Minute)
				if d := host.Domain(simDomain); d != nil && d.Runs() {
					m.t.Fatal("it runs without a word")
				}
				if want := "if it is off, \"xl ft-resolve web1 --peer-is-off\" here"; !strings.Contains(said(), want) {
					m.t.Errorf("the host says %q, want %q", said(), want)
				}
				m.taken(resolve(xlft.PeerIsOff))
				if !m.runs(host) {
					m.t.Error("the domain runs nowhere")
				}
			}, "manual")
		})
	}
}

// Hosts that hear each other need no operator, nor does a planned switch-over.
func TestManualByThemselves(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.net.Cut(true)
		m.await(m.session, primary.Blocked)
		m.net.Cut(false)
		m.await(m.session, primary.Protected)
		m.pb.Kill()
		m.receive(m.b, nil)
		time.Sleep(5 * time.Second)
		m.await(m.session, primary.Protected)
		if o, err := m.session.Failover(context.Background()); o != primary.SwitchedOver {
			m.t.Errorf("switch-over: %v, %v", o, err)
		}
		if !m.runs(m.b) {
			m.t.Error("the domain runs nowhere")
		}
	}, "manual")
}

// A copy is given up while the arbiter is asked for it, and the arbiter gives the domain
// to this host: the copy may be the only one by now, and runs on.
func TestGiveUpTooLate(t *testing.T) {
	seams(t, func(m *seam) {
		slow := make(chan struct{})
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Arbiter = awaited{s.Arbiter, slow} })
		m.await(m.session, primary.Protected)
		m.b.Crash()
		m.await(m.session, primary.Arbitrating)
		answered := make(chan error, 1)
		go func() {
			_, err := m.resolves(xlft.GiveUp)
			answered <- err
		}()
		time.Sleep(3 * time.Second)
		close(slow)
		if err := <-answered; err == nil || !strings.Contains(err.Error(), "was not given up") {
			m.t.Errorf("answered %v", err)
		}
		if !m.runs(m.a) {
			m.t.Errorf("the only copy was given up: %+v", m.session.Status())
		}
	}, "cas")
}

// The arbiter decides while an operator's word is on its way: the word changes nothing.
func TestDecidedMeanwhile(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.deaf()
		m.b.Crash()
		m.await(m.session, primary.Blocked)
		time.AfterFunc(simSilence, func() { m.cas.Cut("A", false) }) // a silent host is asked for longer
		d, err := m.resolves(xlft.PeerIsOff)
		m.refused(d, err, "waits for no decision here: meanwhile it was decided")
		if !m.runs(m.a) {
			m.t.Error("the domain runs nowhere")
		}
	}, "cas")
}

// A copy is given up before the arbiter has done anything: the claim is taken back, and
// no host is fenced for it.
func TestGiveUpWithdraws(t *testing.T) {
	seams(t, func(m *seam) {
		slow := make(chan struct{})
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Arbiter = awaited{s.Arbiter, slow} })
		m.await(m.session, primary.Protected)
		m.cas.Cut("B", true)
		m.net.Cut(true)
		m.await(m.session, primary.Arbitrating)
		time.AfterFunc(3*time.Second, func() { close(slow) })
		m.taken(m.resolves(xlft.GiveUp))
		m.taken(m.resolvesB(xlft.TakeOver))
		if m.b.Down() || !m.runs(m.b) {
			m.t.Errorf("B was fenced: %v", m.b.Down())
		}
	}, "fence")
}

// awaited is an arbiter that answers once slow is closed.
type awaited struct {
	xlft.Arbiter
	slow chan struct{}
}

func (a awaited) Claim(ctx context.Context, c xlft.Claim) (bool, error) {
	<-a.slow
	return a.Arbiter.Claim(ctx, c)
}

// The primary's host lives, and has the domain: a backup that lost only its protector is
// told so, and decides nothing by a word that is not true.
func TestPrimaryHostAnswers(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.a, nil)
		m.begin()
		m.deaf()
		m.pa.Kill()
		m.awaitB(backup.Claiming)
		for _, w := range []xlft.Word{xlft.TakeOver, xlft.PeerIsOff} {
			d, err := m.resolvesB(w)
			m.refused(d, err, `A answers that it has web1, in generation 1: decide there: "xl ft-resolve web1" on A`)
		}
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected) // the successor took it back
	}, "fence")
}

// The backup runs the domain, and the primary can't reach the arbiter that would say so.
func TestBackupAnswersThatItRuns(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.cas.Cut("A", true)
		m.net.Cut(true)
		if !m.runs(m.b) {
			m.t.Fatal("B does not run the domain")
		}
		m.await(m.session, primary.Blocked)
		m.net.Cut(false)
		for _, w := range []xlft.Word{xlft.TakeOver, xlft.PeerIsOff} {
			d, err := m.resolves(w)
			m.refused(d, err, "B answers that it has web1")
		}
		m.taken(m.resolves(xlft.GiveUp))
	}, "cas")
}

// The other host says that it has no copy: the one here is not given up.
func TestOnlyCopyIsKept(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.deaf()
		m.pb.Kill()
		m.receive(m.b, nil)
		m.await(m.session, primary.Blocked)
		d, err := m.resolves(xlft.GiveUp)
		m.refused(d, err, "the copy here is the only one: B answers that it neither runs web1 nor has a copy of it")
		m.taken(m.resolves(xlft.TakeOver))
		if !m.runs(m.a) {
			m.t.Error("the domain runs nowhere")
		}
	}, "cas")
}

// A backup lost its power in the middle of a takeover: nobody can know whether the
// domain ran there, and the backup takes an operator's word on it.
func TestOpenTakeover(t *testing.T) {
	for _, w := range []xlft.Word{xlft.GiveUp, xlft.TakeOver} {
		t.Run(string(w), func(t *testing.T) {
			seams(t, func(m *seam) {
				m.receive(m.b, func(r *backup.Receiver) {
					r.Restorer = restoring{r.Restorer, func(context.Context, backup.Replica) error {
						m.b.Crash()
						return errors.New("no power")
					}}
				})
				m.protect(m.a, m.domain, "B", nil)
				m.await(m.session, primary.Protected)
				go m.session.Failover(context.Background())
				m.await(m.session, primary.Blocked)
				m.b.PowerOn()
				m.receive(m.b, nil)
				time.Sleep(5 * time.Second)
				d, err := m.resolves(xlft.TakeOver)
				m.refused(d, err, "B answers that it does not know yet")
				d, err = m.resolvesB(xlft.PeerIsOff)
				m.refused(d, err, "the question is not whether A is off")
				m.taken(m.resolvesB(w))
				if w == xlft.GiveUp {
					m.await(m.session, primary.Protected)
					return
				}
				select {
				case err := <-m.ended:
					if !errors.Is(err, primary.ErrBackupRuns) {
						m.t.Errorf("A's protection ended with %v", err)
					}
				case <-time.After(time.Minute):
					m.t.Error("A waits for B's answer")
				}
				m.splits = true // the domain is created anew on B, from its disks
				m.b.Boot(simDomain, 12)
				d, err = m.resolvesB(xlft.GiveUp)
				m.refused(d, err, "waits for no decision")
			}, "fence")
		})
	}
}

// A domain that was handed over to a host that has gone since waits for it, or for an
// operator.
func TestHandedAndOff(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer = restoring{r.Restorer, func(context.Context, backup.Replica) error {
				m.b.Crash()
				return errors.New("no power")
			}}
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		go m.session.Failover(context.Background())
		m.await(m.session, primary.Blocked)
		time.Sleep(5 * time.Second)
		d, err := m.resolves(xlft.PeerIsOff)
		m.taken(d, err)
		if !d.Handed {
			m.t.Errorf("the operator is not told that it may have run on B: %+v", d)
		}
		if !m.runs(m.a) {
			m.t.Errorf("the domain runs nowhere: %+v", m.session.Status())
		}
	}, "fence", "cas")
}

// The record of a domain is lost: each host that gives no answer counts as off by the
// word, and one that has the domain is believed.
func TestRecordLostAndOff(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.c, nil)
		m.begin()
		m.deaf()
		m.pa.Kill()
		m.b.Crash()
		m.records[m.a] = records(m.t)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.FoundHolding, s.Peers = true, []string{"B", "C"} })
		m.await(m.session, primary.Blocked)
		m.taken(m.resolves(xlft.PeerIsOff)) // B's; C says that it has nothing
		if !m.runs(m.a) {
			m.t.Errorf("the domain runs nowhere: %+v", m.session.Status())
		}
	}, "cas")
}

// The backup's record can't be read, and the primary waits for what it says.
func TestOpenRecord(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.cas.Cut("A", true)
		m.pb.Kill()
		if err := os.WriteFile(filepath.Join(string(m.records[m.b]), simDomain+".json"), []byte("{"), 0o644); err != nil {
			m.t.Fatal(err)
		}
		m.receive(m.b, nil)
		m.await(m.session, primary.Blocked)
		time.Sleep(5 * time.Second)
		m.taken(m.resolvesB(xlft.GiveUp))
		if !m.runs(m.a) {
			m.t.Errorf("the domain runs nowhere: %+v", m.session.Status())
		}
	}, "fence")
}
