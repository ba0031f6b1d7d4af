package xlft_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/primary"
)

// A renamed arbiter is one that a configuration has in another's place, until it is put
// back.
type renamed struct {
	xlft.Arbiter
	back *atomic.Bool
}

func (r renamed) String() string {
	if r.back.Load() {
		return r.Arbiter.String()
	}
	return "another"
}

// A successor whose configuration has another arbiter than both hosts agreed on does not
// let it decide: the backup may have won by the other one.
func TestSuccessorHasAnotherArbiter(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.b.Crash()
		m.pa.Kill()
		var back atomic.Bool
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Arbiter = renamed{s.Arbiter, &back} })
		time.Sleep(time.Minute)
		if st := m.session.Status(); st.State != primary.Blocked && st.State != primary.Arbitrating || !strings.Contains(st.LastError, "both hosts agreed on") {
			m.t.Errorf("%v, %s", st.State, st.LastError)
		}
		back.Store(true)
		m.await(m.session, primary.Connecting) // it runs on, and calls the backup
	}, "cas", "fence")
}

// A successor with the same arbiter is let decide.
func TestSuccessorHasTheSameArbiter(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.b.Crash()
		m.pa.Kill()
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Connecting)
	}, "ledger", "fence", "cas")
}
