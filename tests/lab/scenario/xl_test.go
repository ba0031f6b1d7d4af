//go:build lab

package scenario

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/xlft"
)

// What would tear a protected domain, or decide on a replica, is refused by xl, and changes nothing.
func TestXLRefuses(t *testing.T) {
	lab.Long(t)
	fx := protected(t)
	before := fx.status(fx.home)
	name, replica := fx.guest.Name, fx.guest.Name+"--xlft"
	id, err := fx.home.Domid(within(t, soon), name)
	check(t, err)
	for _, args := range []string{
		"save " + name + " /root/image", "block-attach " + name + " format=raw,vdev=xvdz,access=r,target=/dev/null",
		"save -c " + name + " /root/image", fmt.Sprint("save ", id, " /root/image"),
		"migrate " + name + " " + fx.backup().Name(), "remus " + name + " " + fx.backup().Name(), "suspend " + name, "pause " + name,
		"mem-set " + name + " 100m", "mem-max " + name + " 100m", "vcpu-set " + name + " 1", "rename " + name + " other", "block-detach " + name + " xvdb",
		"network-attach " + name, "network-detach " + name + " 0", "config-update " + name + " /etc/xen/" + name + ".cfg",
	} {
		msg := fx.refused(fx.home, name+" is protected by xlft", append([]string{"xl"}, strings.Fields(args)...)...)
		if !strings.Contains(msg, fmt.Sprintf(`"xl ft-stop %s" first`, name)) {
			t.Errorf("the message does not say what to do: %s", msg)
		}
	}
	for _, args := range []string{"unpause " + replica, "destroy " + replica, "save " + replica + " /root/image", "shutdown " + replica,
		"reboot " + replica, "pause " + replica, "rename " + replica + " " + name, "mem-set " + replica + " 100m", "network-detach " + replica + " 0"} {
		fx.refused(fx.backup(), "the copy that this host holds of "+name, append([]string{"xl"}, strings.Fields(args)...)...)
	}
	if out, err := fx.home.Run(within(t, soon), "ls", "/root/image"); err == nil {
		t.Errorf("there is an image: %s", out)
	}
	if r := fx.status(fx.home); !r.Protected || r.Primary.Generation != before.Primary.Generation || r.Primary.LastError != "" {
		t.Errorf("ft-status afterwards: %s, generation %d, last error %q", r.State, r.Primary.Generation, r.Primary.LastError)
	}
	fx.awaitDomains(fx.home, name)
	fx.awaitDomains(fx.backup(), replica)
	fx.get()
}

// Somebody calls the real xl. "xl save -c" suspends the domain, writes all its memory, switches the log of written pages
// off and lets the domain run on. That is left to it: the protection ends, begins again afterwards, and the image is
// whole. "xl save" and the domain is gone; so is the replica, and the image is whole too.
func TestRealSave(t *testing.T) {
	lab.Long(t)
	fx := protected(t)
	from, to := fx.home, fx.backup()
	before := fx.status(from)
	check(t, fx.ask().Fill(9000, 30)) // it writes all the time
	from.Must(t, "/usr/sbin/xl", "save", "-c", fx.guest.Name, "/dev/null")
	at := fx.status(from)
	r := fx.await(from, "protected again", func(r ft.Row) bool {
		again := r.Primary != nil && r.Primary.Generation > before.Primary.Generation
		return r.Protected && (again || at.Protected && r.Epoch > at.Epoch+5) // or nobody has noticed
	})
	t.Logf("generation %d, it was %d; last error: %s", r.Primary.Generation, before.Primary.Generation, r.Primary.LastError)
	if why := r.Primary.LastError; !strings.Contains(why, xlft.ErrSuspendedByOther.Error()) && !strings.Contains(why, xlft.ErrSaved.Error()) {
		t.Errorf("the status does not say why: %q", why)
	}
	had, _, err := fx.ask().Filled()
	check(t, err)
	more := had + 500
	fx.until(patience, func() error {
		n, _, err := fx.ask().Filled()
		if err == nil && n < more {
			err = fmt.Errorf("%d of %d pages are filled", n, more)
		}
		return err
	})
	p := fx.pair()
	p.await(time.Now(), 20)
	from.Kill()
	killed := time.Now()
	fx.awaitTakeover(to)
	p.await(killed.Add(100*time.Millisecond), 20)
	p.end()
	filled, wrong, err := fx.ask().Filled()
	check(t, err)
	if filled < more || wrong > 0 {
		t.Errorf("%d pages of %d lost their contents", wrong, filled)
	}
	fx.revive(from)
	from, to = to, from

	fx.protect()
	before = fx.status(from)
	begun := time.Now()
	from.Must(t, "/usr/sbin/xl", "save", "-c", fx.guest.Name, "/root/running")
	t.Logf("xl save -c took %v", round(time.Since(begun)))
	fx.await(from, "protected again", func(r ft.Row) bool {
		return r.Protected && r.Primary.Generation > before.Primary.Generation
	})
	fx.over = true
	begun = time.Now()
	from.Must(t, "/usr/sbin/xl", "save", fx.guest.Name, "/root/last")
	t.Logf("xl save took %v", round(time.Since(begun)))
	fx.until(soon, func() error {
		if got := fx.domains(to); len(got) > 0 {
			return fmt.Errorf("%s has %q", to.Name(), got)
		}
		return nil
	})
	fx.awaitDomains(from)
	fx.awaitClean(from)
	fx.refused(from, "not protected", "xl", "ft-status", fx.guest.Name)

	for _, image := range []string{"/root/running", "/root/last"} {
		begun := time.Now()
		from.Must(t, "/usr/sbin/xl", "restore", image)
		restored := time.Now()
		filled, wrong, err := fx.dial().Filled()
		check(t, err)
		t.Logf("%s has %d pages; restored in %v, it answered %v later", image, filled, round(restored.Sub(begun)), round(time.Since(restored)))
		if filled < more || wrong > 0 {
			t.Errorf("%s: %d of %d pages lost their contents", image, wrong, filled)
		}
		from.Must(t, "/usr/sbin/xl", "destroy", fx.guest.Name)
	}
}

// Somebody calls the real xl migrate, here to the same host. It begins Xen's log of written pages anew for itself while
// the domain runs. The protection leaves the log to it: the migrated domain has all that was written meanwhile.
func TestRealMigrate(t *testing.T) {
	lab.Long(t)
	fx := protected(t)
	from := fx.home
	check(t, fx.ask().Fill(6000, 50))
	before := fx.domid()
	fx.over = true
	begun := time.Now()
	from.Must(t, "/usr/sbin/xl", "migrate", "-s", "", fx.guest.Name, "/usr/sbin/xl migrate-receive")
	t.Logf("xl migrate took %v", round(time.Since(begun)))
	if now := fx.domid(); now == before {
		t.Fatalf("it still is domain %d", now)
	}
	filled, wrong, err := fx.dial().Filled()
	check(t, err)
	t.Logf("the migrated domain has %d pages", filled)
	if filled == 0 || wrong > 0 {
		t.Errorf("%d of %d pages lost their contents", wrong, filled)
	}
	fx.expectLog(from, xlft.ErrSaved.Error())
}
