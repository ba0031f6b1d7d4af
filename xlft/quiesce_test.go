package xlft_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/primary"
)

// A quietGate has the domain paused while it is taken down, as the real one does.
type quietGate struct {
	xlft.Gate
	s    *primary.Session
	then func() // while the domain is paused
}

func (g quietGate) Close() error {
	resume, err := g.s.Quiesce()
	if err != nil {
		return err
	}
	defer resume()
	g.then()
	return g.Gate.Close()
}

// A protector that is killed in the moment in which its gate is taken down leaves
// the domain paused, and its successor finds that.
func TestKilledWhileQuiet(t *testing.T) {
	seams(t, func(m *seam) {
		quiet := make(chan struct{})
		m.receive(m.b, nil)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) {
			s.Gates.Net = quietGate{s.Gates.Net, s, func() {
				if m.domain.Runs() {
					m.t.Error("it is not paused")
				}
				m.pa.Kill()
				close(quiet)
			}}
		})
		m.await(m.session, primary.Protected)
		go m.session.Stop(context.Background())
		<-quiet
		m.protect(m.a, m.domain, "B", nil)
		if !m.runs(m.a) {
			m.t.Errorf("it stays paused for ever: %+v", m.session.Status())
		}
	}, "cas")
}

// stubborn is a domain that can't be unpaused some times.
type stubborn struct {
	xlft.Guest
	no *int
}

func (g stubborn) Unpause() error {
	if *g.no--; *g.no >= 0 {
		return errors.New("out of memory")
	}
	return g.Guest.Unpause()
}

// The pause of a gate that is taken down is undone as any other: one attempt that fails
// does not leave the domain paused, nor is it forgotten if all fail.
func TestQuietForGood(t *testing.T) {
	for _, fails := range []int{1, 1 << 30} {
		left := fails
		seams(t, func(m *seam) {
			m.receive(m.b, nil)
			m.protect(m.a, m.domain, "B", func(s *primary.Session) {
				s.Guest = stubborn{s.Guest, &left}
				s.Gates.Net = quietGate{s.Gates.Net, s, func() {}}
			})
			m.await(m.session, primary.Protected)
			_, err := m.session.Stop(context.Background())
			if runs := m.domain.Runs(); runs != (fails == 1) || runs != (err == nil) {
				m.t.Errorf("it runs: %v, and the stop says %v", runs, err)
			}
			m.protect(m.a, m.domain, "B", nil)
			time.Sleep(time.Second)
			if !m.runs(m.a) {
				m.t.Errorf("it stays paused for ever: %+v", m.session.Status())
			}
		}, "cas")
	}
}
