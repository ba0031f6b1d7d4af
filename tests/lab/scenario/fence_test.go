//go:build lab

package scenario

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// Hosts that fence each other: a backup whose receiver was killed reports that it gave the domain up, and is not
// fenced; when only the network between the hosts breaks, one host is switched off, and the domain continues on the
// other host with every reply still true.
func TestFence(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	s := ft.Usual
	fx.fence(&s)
	fx.install(s)
	fx.boot()

	// A broken fence agent on either host is found before it is needed.
	fx.A.Must(t, "xl", "ft-check", fx.guest.Name)
	for h, who := range map[*lab.Host]string{fx.A: "fence agent of B", fx.B: "B: fence agent of A"} {
		h.Must(t, "sh", "-c", `mv "$1" "$1.real" && printf '#!/bin/sh\necho bad password >&2\nexit 1\n' >"$1" && chmod +x "$1"`, "sh",
			ft.FenceAgent)
		fx.refused(fx.A, who+": "+ft.FenceAgent+", action status: exit status 1: bad password", "xl", "ft-check", fx.guest.Name)
		h.Must(t, "mv", ft.FenceAgent+".real", ft.FenceAgent)
	}
	fx.protect()

	fx.B.Must(t, "systemctl", "kill", "--signal=KILL", "xlft-receiver.service")
	fx.awaitUnprotected()
	fx.await(fx.A, "protected again", isProtected)
	if off := fx.power.Fenced(); len(off) > 0 {
		t.Fatalf("%v was switched off, and had only lost its receiver", off)
	}

	k := fx.talk(10)
	p := fx.pair()
	p.await(time.Now(), 20)
	check(t, fx.SplitHosts())
	// The host that runs the domain comes first.
	fx.until(patience, func() error {
		if off := fx.power.Fenced(); !slices.Equal(off, []string{"B"}) {
			return fmt.Errorf("switched off: %v", off)
		}
		return nil
	})
	p.await(time.Now(), 20)
	p.end()
	h := k.end()
	fx.onlyFrom(h, fx.A)
	fx.complete(h)
	fx.awaitDomains(fx.A, fx.guest.Name)
}
