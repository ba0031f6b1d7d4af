//go:build lab

package scenario

import (
	"fmt"
	"slices"
	"testing"

	"xlft/tests/lab"
)

// The primary's host goes down in order: protection ends, then the domain is saved, then its disk server ends. Nobody takes
// the domain over, and when the host is back the domain goes on, with all its writes and over the connections it had.
func TestHostGoesDown(t *testing.T) {
	lab.Long(t)
	eachStorage(t, mirror, []storage{mirror, shared}, testHostGoesDown)
}

func testHostGoesDown(t *testing.T, w *world) {
	from, to := w.home, w.backup()
	// Xen's own service saves and restores domains. The lab's hosts do without, as a rule.
	for _, h := range w.Hosts() {
		h.Must(t, "sh", "-c", "systemctl unmask xendomains.service && systemctl daemon-reload && systemctl start xendomains.service")
	}
	w.boot()
	w.protect()
	all := w.scribes(6, 1)
	all.await(w, 3)
	if r := w.status(from); !r.Protected {
		t.Fatalf("not protected any more: %s", r.State)
	}
	from.Run(within(t, soon), "systemctl", "poweroff") // the answer may not come
	check(t, from.AwaitOff(within(t, patience)))
	t.Logf("%s is off after %d durable writes", from.Name(), all.written())
	w.awaitDomains(to)
	check(t, from.Boot(within(t, 2*patience)))
	w.until(patience, func() error {
		if got := w.domains(from); !slices.Equal(got, []string{w.guest.Name}) {
			return fmt.Errorf("host %s runs %q after its boot", from.Name(), got)
		}
		return nil
	})
	all.more(w, 3)
	all.end(w)
	all.judge(w)
	w.awaitDomains(to)
}
