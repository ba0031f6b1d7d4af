//go:build lab

package scenario

import (
	"slices"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// Hosts that fence each other: a backup whose receiver was killed says itself that it gave the domain up, and is left
// alone; when only the network between the hosts breaks, one of them is switched off, and the domain goes on, on the
// other one, without a lie.
func TestFence(t *testing.T) {
	lab.Long(t)
	w := fresh(t)
	s := ft.Usual
	w.fence(&s)
	w.install(s)
	w.boot()
	w.protect()

	w.B.Must(t, "systemctl", "kill", "--signal=KILL", "xlft-receiver.service")
	w.awaitUnprotected()
	w.await(w.A, "protected again", isProtected)
	if off := w.power.Fenced(); len(off) > 0 {
		t.Fatalf("%v was switched off, and had only lost its receiver", off)
	}

	k := w.talk(10)
	p := w.pair()
	p.await(time.Now(), 20)
	check(t, w.SplitHosts())
	w.await(w.B, "taken over", func(r ft.Row) bool { return r.Role == "owner" })
	w.home = w.B
	if off := w.power.Fenced(); !slices.Equal(off, []string{"A"}) {
		t.Errorf("switched off: %v", off)
	}
	p.await(time.Now(), 20)
	p.end()
	w.oneVoice(k.end(), w.A, w.B)
	w.awaitDomains(w.B, w.guest.Name)
}
