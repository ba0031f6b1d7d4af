//go:build lab

package lab_test

import (
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

func TestLabHosts(t *testing.T) {
	begin := time.Now()
	l := lab.Start(t)
	t.Logf("both hosts after %v", time.Since(begin))
	for _, h := range l.Hosts() {
		begin := time.Now()
		out := h.Must(t, "xl", "list")
		t.Logf("xl list took %v", time.Since(begin))
		if !strings.Contains(out, "Domain-0") {
			t.Errorf("host %s: xl list printed\n%s", h.Name(), out)
		}
		if got, want := strings.TrimSpace(h.Must(t, "hostname")), h.Name(); got != want {
			t.Errorf("hostname %q, want %q", got, want)
		}
		h.Must(t, "ping", "-c1", "-W5", l.Peer(h).IPv4().String())
		h.Must(t, "ping", "-c1", "-W5", l.Peer(h).IPv6().String())
	}
}
