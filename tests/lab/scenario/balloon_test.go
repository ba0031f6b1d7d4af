//go:build lab

package scenario

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// The guest shrinks until it has little memory free, then grows while a program in it fills new pages, each once. Xen
// 4.17 does not log what is written to a page that has just come. The backup gets a new copy each time, and every page
// is there after a takeover.
func TestBalloon(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	const large, spare = 224, 14 // MiB
	fx.guest.Memory = large
	fx.install(ft.Usual)
	fx.boot()
	fx.protect()

	_, free, err := fx.ask().Memory()
	check(t, err)
	small := large - int(free>>10) + spare
	fx.setMemory(small)
	fx.await(fx.home, "protected with less memory", func(r ft.Row) bool { return r.Protected && fx.memory() <= small+1 })
	_, free, err = fx.ask().Memory()
	check(t, err)
	t.Logf("the guest has %d MiB, %d KiB of them free", fx.memory(), free)

	pages := (large - small) << 8 * 3 / 4
	from, to := fx.home, fx.backup()
	// The writer takes what is free, and then each page as it comes.
	check(t, fx.ask().Fill(pages, 4000))
	fx.until(patience, func() error {
		_, free, err := fx.ask().Memory()
		if err == nil && free > 8<<10 {
			err = fmt.Errorf("%d KiB are free", free)
		}
		return err
	})
	for mib := small + 16; mib < large+16; mib += 16 {
		fx.setMemory(min(mib, large))
	}
	fx.until(patience, func() error {
		filled, _, err := fx.ask().Filled()
		if err == nil && filled < pages {
			err = fmt.Errorf("%d of %d pages are filled", filled, pages)
		}
		return err
	})
	fx.until(patience, func() error {
		if n := fx.memory(); n < large-1 {
			return fmt.Errorf("the guest has %d MiB", n)
		}
		return nil
	})
	// A copy that lacks the pages may still be there.
	before := fx.status(from)
	r := fx.await(from, "protected with more memory", func(r ft.Row) bool {
		return r.Protected && (r.Primary.Generation > before.Primary.Generation || r.Epoch > before.Epoch+3)
	})
	t.Logf("generation %d, last error: %s", r.Primary.Generation, r.Primary.LastError)
	from.Kill()
	fx.awaitTakeover(to)
	fx.client = fx.dial()
	filled, wrong, err := fx.ask().Filled()
	check(t, err)
	t.Logf("%d pages were filled, %d are wrong on %s", filled, wrong, to.Name())
	if filled != pages || wrong > 0 {
		t.Errorf("%d pages of %d lost their contents in the takeover", wrong, filled)
	}
	fx.revive(from)
	fx.expectLog(to, "took the domain over")

	// In the other direction; a domain that is not protected has its own limit.
	fx.protect()
	if has, limit := fx.pages(); limit != has-1 {
		t.Errorf("protected, the guest has %d pages and may have %d", has, limit)
	}
	fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)
	if has, limit := fx.pages(); limit < has {
		t.Errorf("after ft-stop the guest has %d pages and may have %d", has, limit)
	}
}

// pages returns how many pages Xen says that the guest has and may have.
func (fx *fixture) pages() (has, limit int) {
	fx.t.Helper()
	id, err := fx.home.Domid(within(fx.t, soon), fx.guest.Name)
	check(fx.t, err)
	out := fx.home.Must(fx.t, "sh", "-c", "xl debug-keys q && xl dmesg")
	_, out, ok := strings.Cut(out[max(0, strings.LastIndex(out, fmt.Sprintf("General information for domain %d:", id))):], "nr_pages=")
	if _, err := fmt.Sscanf(out, "%d", &has); !ok || err != nil {
		fx.t.Fatalf("Xen does not say how many pages domain %d has: %v", id, err)
	}
	_, out, _ = strings.Cut(out, "max_pages=")
	_, err = fmt.Sscanf(out, "%d", &limit)
	check(fx.t, err)
	return has, limit
}

// setMemory has the real xl set the guest's memory, in MiB: ours refuses that while the guest is protected.
func (fx *fixture) setMemory(mib int) {
	fx.t.Helper()
	fx.home.Must(fx.t, "/usr/sbin/xl", "mem-set", fx.guest.Name, fmt.Sprint(mib, "m"))
}

// memory is what xl says that the guest has, in MiB.
func (fx *fixture) memory() int {
	fx.t.Helper()
	out, err := fx.home.Run(context.WithoutCancel(fx.t.Context()), "xl", "list", fx.guest.Name)
	check(fx.t, err)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	f := strings.Fields(lines[len(lines)-1])
	n, err := strconv.Atoi(f[2])
	check(fx.t, err)
	return n
}
