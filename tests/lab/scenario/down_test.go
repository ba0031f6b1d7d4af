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

// The primary's host goes down in order: protection ends, then the domain is saved, then its disk server ends. The
// backup does not take the domain over, and when the host is back the domain continues, with all its writes and its
// connections.
func TestHostGoesDown(t *testing.T) {
	lab.Long(t)
	eachStorage(t, mirror, []storage{mirror, shared}, testHostGoesDown)
}

func testHostGoesDown(t *testing.T, fx *fixture) {
	from, to := fx.home, fx.backup()
	// Xen's own service saves and restores domains. The lab's hosts usually run without it.
	for _, h := range fx.Hosts() {
		h.Must(t, "sh", "-c", "systemctl unmask xendomains.service && systemctl daemon-reload && systemctl start xendomains.service")
	}
	fx.boot()
	fx.protect()
	all := fx.scribes(6, 1)
	all.await(fx, 3)
	if r := fx.status(from); !r.Protected {
		t.Fatalf("not protected any more: %s", r.State)
	}
	from.Run(within(t, soon), "systemctl", "poweroff") // the answer may not come
	check(t, from.AwaitOff(within(t, patience)))
	t.Logf("%s is off after %d durable writes", from.Name(), all.written())
	fx.awaitDomains(to)
	check(t, from.Boot(within(t, 2*patience)))
	fx.until(patience, func() error {
		if got := fx.domains(from); !slices.Equal(got, []string{fx.guest.Name}) {
			return fmt.Errorf("host %s runs %q after its boot", from.Name(), got)
		}
		return nil
	})
	all.more(fx, 3)
	all.end(fx)
	all.judge(fx)
	fx.awaitDomains(to)
}

// With xlft-drain.service a reboot of the guest's host moves the guest to the other one first; one client goes on all the
// while, and the guest is protected again when the host is back.
func TestReboot(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	s := ft.Usual
	s.Protect = true
	fx.install(s)
	from, to := fx.home, fx.backup()
	for _, h := range fx.Hosts() {
		h.Must(t, "sh", "-c", "systemctl unmask xendomains.service && systemctl daemon-reload && systemctl start xendomains.service && systemctl enable xlft-receiver.socket xlft-receiver.service && systemctl enable --now xlft-drain.service")
	}
	fx.boot()
	fx.await(from, "protected", isProtected)
	client := fx.call(100 * time.Millisecond)
	from.Must(t, "systemctl", "stop", "xlft-drain.service") // by hand that means nothing
	from.Must(t, "systemctl", "start", "xlft-drain.service")
	if r := fx.status(from); !r.Protected {
		t.Fatalf("not protected any more: %s", r.State)
	}
	from.Run(within(t, soon), "systemctl", "poweroff") // the answer may not come
	check(t, from.AwaitOff(within(t, patience)))
	fx.awaitDomains(to, fx.guest.Name)
	fx.home = to
	fx.get()
	check(t, from.Boot(within(t, 2*patience)))
	fx.await(to, "protected again", isProtected)
	client.end()
	fx.awaitDomains(from, fx.guest.Name+"--xlft")
}
