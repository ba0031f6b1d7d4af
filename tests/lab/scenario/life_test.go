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

// dumping is what a dump of a domain's memory takes at most: libxc asks Xen for each page frame up to where a PVH
// domain's special pages are, near 4 GiB, one by one. On an emulated processor that takes minutes, for xl dump-core too.
const dumping = 25 * time.Minute

// What on_crash says besides "restart", for a domain that is protected: started again and protected again after a dump,
// or left alone, or gone, with the end of its protection.
func TestLifeWords(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	fx.guest.Kernel = "sysrq_always_enabled" // for crash
	fx.install(ft.Usual)
	name := fx.guest.Name
	crash := func(word string) (domid int) {
		t.Log("on_crash = ", word)
		fx.guest.Config = fmt.Sprintf("on_crash = %q\n", word)
		fx.boot()
		fx.protect()
		domid = fx.domid()
		fx.crash()
		return domid
	}

	crash("destroy")
	fx.awaitDomains(fx.home)
	fx.awaitDomains(fx.backup())
	fx.awaitClean(fx.home)

	domid := crash("preserve")
	fx.until(soon, func() error {
		all, err := fx.home.Domains(within(t, soon))
		for _, d := range all {
			if d.ID == domid && strings.Contains(d.State, "c") {
				return err
			}
		}
		return fmt.Errorf("no crashed domain %d is preserved: %+v, %v", domid, all, err)
	})
	fx.await(fx.home, "unprotected", func(r ft.Row) bool { return !r.Protected })
	fx.awaitDomains(fx.backup())
	fx.home.Must(t, "xl", "destroy", name)
	fx.awaitDomains(fx.home)

	domid = crash("coredump-restart")
	begun := time.Now()
	fx.until(dumping, func() error {
		if now, err := fx.home.Domid(within(t, soon), name); err != nil || now == domid {
			return fmt.Errorf("it has not been started again: domain %d, %v", now, err)
		}
		return nil
	})
	t.Logf("dumped and built anew after %v", round(time.Since(begun)))
	fx.client = fx.dial()
	fx.await(fx.home, "protected after its crash", isProtected)
	fx.home.Must(t, "sh", "-c", "test -s /var/lib/xen/dump/"+name)
}
