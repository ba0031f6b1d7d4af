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

	// An agent that does not do its work is found before it is needed, on either host.
	w.A.Must(t, "xl", "ft-check", w.guest.Name)
	for h, who := range map[*lab.Host]string{w.A: "fence agent of B", w.B: "backup: fence agent of A"} {
		h.Must(t, "sh", "-c", `mv "$1" "$1.real" && printf '#!/bin/sh\necho bad password >&2\nexit 1\n' >"$1" && chmod +x "$1"`, "sh", ft.FenceAgent)
		w.refused(w.A, who+": "+ft.FenceAgent+", action status: exit status 1: bad password", "xl", "ft-check", w.guest.Name)
		h.Must(t, "mv", ft.FenceAgent+".real", ft.FenceAgent)
	}
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
	w.awaitTakeover(w.B)
	if off := w.power.Fenced(); !slices.Equal(off, []string{"A"}) {
		t.Errorf("switched off: %v", off)
	}
	p.await(time.Now(), 20)
	p.end()
	w.oneVoice(k.end(), w.A, w.B)
	w.awaitDomains(w.B, w.guest.Name)
}
