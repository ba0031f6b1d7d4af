//go:build lab

package scenario

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// restarted waits until another run of the guest than the one before answers on its host, and returns its domid.
func (fx *fixture) restarted(before int) int {
	fx.t.Helper()
	begun := time.Now()
	domid := before
	fx.until(patience, func() (err error) {
		if domid, err = fx.home.Domid(within(fx.t, soon), fx.guest.Name); err != nil {
			return err
		}
		if domid == before {
			return fmt.Errorf("%s is still domain %d", fx.guest.Name, before)
		}
		return nil
	})
	fx.client = fx.dial()
	fx.t.Logf("%s is domain %d on %s and answers after %v", fx.guest.Name, domid, fx.home.Name(), round(time.Since(begun)))
	return domid
}

func (fx *fixture) domid() int {
	fx.t.Helper()
	id, err := fx.home.Domid(within(fx.t, soon), fx.guest.Name)
	check(fx.t, err)
	return id
}

// crash makes the guest's kernel panic.
func (fx *fixture) crash() {
	fx.t.Helper()
	fx.home.Must(fx.t, "xl", "sysrq", fx.guest.Name, "c")
}

// A guest that reboots and crashes is started again as its configuration says: while it is protected, and it is
// protected again by itself; after the end of its protection; and after a takeover.
func TestLife(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	fx.guest.Config = "on_reboot = \"restart\"\non_crash = \"restart\"\non_poweroff = \"destroy\"\n"
	fx.guest.Kernel = "sysrq_always_enabled" // for crash
	fx.install(ft.Usual)
	fx.boot()
	name := fx.guest.Name
	waits := fx.home.Must(t, "sh", "-c", "pgrep -x xl")
	fx.protect()
	// xl's own process would start the domain again while its owner is not decided.
	if out, err := fx.home.Run(within(t, soon), "pgrep", "-x", "xl"); err == nil {
		t.Errorf("processes of xl before the protection: %q, and now: %q", waits, out)
	}

	before := fx.domid()
	fx.home.Must(t, "xl", "reboot", name)
	before = fx.restarted(before)
	fx.await(fx.home, "protected after its reboot", isProtected)

	fx.crash()
	before = fx.restarted(before)
	fx.await(fx.home, "protected after its crash", isProtected)

	fx.home.Must(t, "xl", "ft-stop", name)
	fx.home.Must(t, "xl", "reboot", name)
	fx.restarted(before)
	if fx.status(fx.home).Protected {
		t.Error("protected again after its operator ended that")
	}

	fx.protect()
	from, to := fx.home, fx.backup()
	from.Kill()
	fx.awaitTakeover(to)
	fx.client = fx.dial()
	before = fx.domid()
	fx.crash()
	before = fx.restarted(before)
	to.Must(t, "xl", "reboot", name)
	fx.restarted(before)

	to.Must(t, "xl", "shutdown", name)
	fx.awaitDomains(to)
	fx.until(soon, func() error {
		out, err := to.Run(within(t, soon), "systemctl", "is-active", "xlft-keep@"+name)
		var ce *lab.CommandError
		if errors.As(err, &ce) && strings.TrimSpace(out) == "inactive" {
			return nil
		}
		return fmt.Errorf("the keeper of a domain that is gone is %s", out)
	})
}

// Each other word of on_crash, for a domain that is protected: those that start it again protect it again too, and those
// that do not end the protection with it.
func TestLifeWords(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	fx.guest.Kernel = "sysrq_always_enabled" // for crash
	fx.install(ft.Usual)
	name := fx.guest.Name
	dumps := func() int {
		out := fx.home.Must(t, "sh", "-c", "ls /var/lib/xen/dump/"+name+" 2>/dev/null | wc -l")
		var n int
		fmt.Sscan(out, &n)
		return n
	}
	for _, c := range []struct {
		word          string
		again, dumped bool
	}{
		{"destroy", false, false},
		{"coredump-destroy", false, true},
		{"preserve", false, false},
		{"coredump-restart", true, true},
		{"rename-restart", true, true},
	} {
		t.Log("on_crash = ", c.word)
		fx.guest.Config = fmt.Sprintf("on_crash = %q\n", c.word)
		fx.boot()
		fx.protect()
		had, before := dumps(), fx.domid()
		fx.crash()
		switch {
		case c.again:
			fx.restarted(before)
			fx.await(fx.home, "protected after its crash", isProtected)
			fx.home.Must(t, "xl", "destroy", name)
		case c.word == "preserve":
			fx.until(soon, func() error {
				all, err := fx.home.Domains(within(t, soon))
				for _, d := range all {
					if d.ID == before && strings.Contains(d.State, "c") {
						return err
					}
				}
				return fmt.Errorf("no crashed domain %d is preserved: %+v, %v", before, all, err)
			})
			fx.await(fx.home, "unprotected", func(r ft.Row) bool { return !r.Protected })
			fx.home.Must(t, "xl", "destroy", name)
		}
		fx.awaitDomains(fx.home)
		fx.awaitDomains(fx.backup())
		fx.awaitClean(fx.home)
		if n := dumps() - had; (n == 1) != c.dumped {
			t.Errorf("on_crash = %q left %d core dumps", c.word, n)
		}
	}
}
