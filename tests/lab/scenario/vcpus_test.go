//go:build lab

package scenario

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// A guest with several vCPUs goes on to suspend, for hundreds of checkpoints, and is taken over. What it says of itself if
// it does not is shown.
func TestVCPUs(t *testing.T) {
	lab.Long(t)
	const checkpoints = 200
	for _, n := range []int{2, 4} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			fx := fresh(t)
			fx.install(ft.Usual)
			fx.guest.VCPUs, fx.guest.Kernel = n, "nokaslr"
			fx.boot()
			check(t, fx.ask().Dirty(dirtyRate, workingSet))
			fx.protect()
			ok := false
			defer func() {
				if !ok {
					fx.still()
				}
			}()
			begun := time.Now()
			for {
				r := fx.status(fx.home)
				if r.Primary == nil || r.Primary.LastError != "" {
					t.Fatalf("after %v, in state %s: %s", round(time.Since(begun)), r.State, r.Primary.LastError)
				}
				if r.Primary.Checkpoints >= checkpoints {
					p := r.Primary.PauseMedian
					t.Logf("%d checkpoints in %v: pause %v (suspend %v), ack %v", r.Primary.Checkpoints, round(time.Since(begun)), round(p.Total), round(p.Suspend), round(r.Primary.AckMedian))
					break
				}
				if time.Since(begun) > 2*patience {
					t.Fatalf("%d checkpoints in %v", r.Primary.Checkpoints, round(time.Since(begun)))
				}
				<-time.After(time.Second)
			}
			ok = true
			from, to := fx.home, fx.backup()
			from.Kill()
			fx.awaitTakeover(to)
			fx.get()
		})
	}
}

// still shows what a guest that does not suspend does.
func (fx *fixture) still() {
	out, err := fx.home.Run(within(fx.t, soon), "sh", "-c", `xl vcpu-list web1; id=$(xl domid web1); xenstore-ls /local/domain/$id/control; ping -c 2 -W 2 10.20.0.10
for i in 1 2 3; do xl debug-keys d; sleep 1; done; xl dmesg | tail -n 400 | grep -A 14 -i "web1\|domain $id\|d${id}v" | tail -n 120`)
	fx.t.Logf("%v:\n%s", err, out)
	console, err := fx.home.GuestConsole(within(fx.t, soon), fx.guest.Name)
	lines := strings.Split(console, "\n")
	fx.t.Logf("its console (%v):\n%s", err, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	out, err = fx.home.Run(within(fx.t, soon), "sh", "-c", "for c in /usr/lib/xen-4.17/bin/xenctx; do $c -C $(xl domid web1) 2>&1 | head -n 80; done")
	fx.t.Logf("xenctx (%v):\n%s", err, out)
}
