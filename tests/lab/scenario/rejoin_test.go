//go:build lab

package scenario

import (
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// Nobody types anything: a guest that is to be protected is so once it runs, after its host died and came back, and after
// the next one did. One client goes on over both deaths. What an operator ends stays so.
func TestRejoin(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	s := ft.Usual
	s.Protect = true
	fx.install(s)
	begun := time.Now()
	fx.boot()
	fx.await(fx.home, "protected", isProtected)
	t.Logf("protected %v after \"xl create\" began", round(time.Since(begun)))

	// What Prometheus hears of it, by the unit with all its restrictions.
	const prom = "/var/lib/prometheus/node-exporter"
	said := fx.home.Must(t, "sh", "-c", "mkdir -p "+prom+" && systemctl start xlft-metrics.service && cat "+prom+"/xlft.prom")
	if want := "\nxlft_protected{domain=\"web1\",role=\"primary\",peer=\"B\"} 1\n"; !strings.Contains(said, want) {
		t.Errorf("the metrics lack %q:\n%s", want, said)
	}

	client := fx.call(200 * time.Millisecond)
	for range 2 {
		from, to := fx.home, fx.backup()
		from.Kill()
		died := time.Now()
		fx.awaitTakeover(to)
		// Alone it says so, and why.
		r := fx.await(to, "unprotected", func(r ft.Row) bool { return r.State == "unprotected" && r.Unprotected.Why != "" })
		if !strings.Contains(r.Unprotected.Why, from.Name()) {
			t.Errorf("it is unprotected because of %q", r.Unprotected.Why)
		}
		fx.revive(from)
		back := time.Now()
		fx.await(to, "protected again", isProtected)
		t.Logf("%s died: protected again %v after that, %v after it was back", from.Name(), round(time.Since(died)), round(time.Since(back)))
		fx.awaitDomains(from, fx.guest.Name+"--xlft")
	}
	client.end()

	fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)
	fx.await(fx.home, "stopped", func(r ft.Row) bool { return r.State == "stopped" })
	fx.home.Must(t, "systemctl", "restart", "xlft-receiver.service")
	<-time.After(15 * time.Second) // nothing is to happen
	if r := fx.status(fx.home); r.State != "stopped" || !r.Unprotected.Stopped {
		t.Errorf("it was stopped, and is %+v", r)
	}
	fx.protect()
	if r := fx.status(fx.home); !r.Protected {
		t.Errorf("it was started, and is %+v", r)
	}
	fx.drain()
}

// drain empties the guest's host, and fills it again.
func (fx *fixture) drain() {
	t := fx.t
	t.Helper()
	from, to := fx.home, fx.backup()
	begun := time.Now()
	t.Logf("ft-drain on %s: %s", from.Name(), strings.TrimSpace(from.Must(t, "xl", "ft-drain")))
	t.Logf("it took %v", round(time.Since(begun)))
	fx.home = to
	fx.awaitDomains(from)
	fx.awaitDomains(to, fx.guest.Name)
	fx.get()
	fx.await(to, "unprotected", func(r ft.Row) bool {
		return r.State == "unprotected" && strings.Contains(r.Unprotected.Why, "drained")
	})
	// A host that has nothing of its own to move ends its copies.
	from.Must(t, "xl", "ft-undrain")
	fx.await(to, "protected again", isProtected)
	from.Must(t, "xl", "ft-drain", "--until-boot")
	fx.await(to, "unprotected", func(r ft.Row) bool { return !r.Protected })
	fx.awaitDomains(from)
	from.Must(t, "xl", "ft-undrain")
	fx.await(to, "protected again", isProtected)
	fx.get()
}

// A host whose health command says twice that it is not sound loses its guest to the other one, before it dies; what is
// moved off comes back as a copy when an operator says so. Then nobody protects the guest for a time, as is asked.
func TestUnsound(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	s := ft.Usual
	s.Protect = true
	s.Host = "health_command = \"/root/health\"\nhealth_interval = \"2s\"\n"
	for _, h := range fx.Hosts() {
		check(t, h.WriteFile(within(t, soon), "/root/health", []byte("#!/bin/sh\ntest ! -e /run/hot || { echo it is hot; exit 100; }\n"), 0o755))
	}
	fx.install(s)
	from, to := fx.home, fx.backup()
	fx.boot()
	fx.await(from, "protected", isProtected)
	client := fx.call(100 * time.Millisecond)
	from.Must(t, "touch", "/run/hot")
	fx.awaitTakeover(to)
	fx.awaitDomains(from)
	fx.awaitDomains(to, fx.guest.Name)
	fx.expectLog(from, "it is hot")
	fx.await(to, "unprotected", func(r ft.Row) bool {
		return r.State == "unprotected" && strings.Contains(r.Unprotected.Why, "drained")
	})
	from.Must(t, "rm", "/run/hot")
	from.Must(t, "xl", "ft-undrain")
	fx.await(to, "protected again", isProtected)
	t.Log(strings.TrimSpace(to.Must(t, "xl", "ft-disarm", "--for", "20s")))
	fx.await(to, "disarmed", func(r ft.Row) bool { return r.State == "stopped" })
	fx.awaitDomains(from)
	fx.await(to, "protected again", isProtected)
	client.end()
}
