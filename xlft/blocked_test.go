package xlft_test

import (
	"strings"
	"testing"
	"time"

	"xlft/xlft/primary"
)

// While the domain waits for a decision, the status says what keeps that from being
// made, not only how the protection was lost.
func TestBlockedSaysWhy(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.cas.Cut("A", true)
		m.b.Crash()
		m.await(m.session, primary.Blocked)
		said := func(when string, want string) {
			m.t.Helper()
			if st := m.session.Status(); !strings.Contains(st.LastError, want) {
				m.t.Errorf("%s, in state %v: %q, want %q", when, st.State, st.LastError, want)
			}
		}
		said("blocked", "arbiter")
		time.Sleep(2 * time.Second)
		said("later", "arbiter")
		m.pa.Kill()
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Blocked)
		said("its successor", "arbiter")
		m.cas.Cut("A", false)
		if !m.runs(m.a) {
			m.t.Errorf("%+v", m.session.Status())
		}
	}, "cas", "fence")
}
