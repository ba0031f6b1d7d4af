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

// What a guest's and a host's settings cost in each pause: the figures behind the advice in docs/performance.md. It judges
// nothing but that the guest is protected in each.
func TestAdvice(t *testing.T) {
	lab.Long(t)
	const checkpoints = 40
	const idle = "an idle guest"
	fx := fresh(t)
	fx.install(ft.Usual)
	t.Logf("scheduler: %s", fx.home.Must(t, "sh", "-c", "xl info | grep -E 'xen_scheduler|nr_cpus'; xl sched-credit2 2>&1 | head -n 4"))
	plain := func(*lab.Guest) {}
	for _, v := range []struct {
		name  string
		guest func(*lab.Guest)
		dom0  string // a command on both hosts
	}{
		{idle, plain, ""},
		{idle + ", nohz=off", func(g *lab.Guest) { g.Kernel = "nohz=off" }, ""},
		{idle + ", rcupdate.rcu_expedited=1", func(g *lab.Guest) { g.Kernel = "rcupdate.rcu_expedited=1" }, ""},
		{idle + ", both", func(g *lab.Guest) { g.Kernel = "nohz=off rcupdate.rcu_expedited=1" }, ""},
		{"rcupdate.rcu_expedited=1", func(g *lab.Guest) { g.Kernel = "rcupdate.rcu_expedited=1" }, ""},
		{"as it is", plain, ""},
		{"the kernel logs each step to its console", func(g *lab.Guest) { g.Kernel = "ignore_loglevel loglevel=8" }, ""},
		{"2 vCPUs", func(g *lab.Guest) { g.VCPUs = 2 }, ""},
		{"2 vCPUs, one queue", func(g *lab.Guest) { g.VCPUs, g.Kernel = 2, "xen_netfront.max_queues=1" }, ""},
		{"4 vCPUs", func(g *lab.Guest) { g.VCPUs = 4 }, ""},
		{"dom0 has four times the guest's weight", plain, "xl sched-credit2 -d 0 -w 1024"},
		{"and slices of 100 us at least", plain, "xl sched-credit2 -s -r 100"},
		{"as it is", plain, "xl sched-credit2 -d 0 -w 256; xl sched-credit2 -s -r 1000"},
	} {
		if v.dom0 != "" {
			for _, h := range fx.Hosts() {
				h.Must(t, "sh", "-c", v.dom0)
			}
		}
		v.guest(&fx.guest)
		fx.boot()
		if !strings.HasPrefix(v.name, idle) {
			check(t, fx.ask().Dirty(dirtyRate, workingSet))
		}
		fx.protect()
		r := fx.await(fx.home, fmt.Sprint(checkpoints, " checkpoints"), func(r ft.Row) bool {
			return r.Primary != nil && r.Primary.Checkpoints >= checkpoints
		})
		p := r.Primary.PauseMedian
		t.Logf("%s: pause %v (suspend %v, seal %v, capture %v, resume %v), ack %v", v.name, round(p.Total), round(p.Suspend), round(p.Seal),
			round(p.Capture), round(p.Resume), round(r.Primary.AckMedian))
		if !r.Protected {
			t.Errorf("%s: not protected: %s", v.name, r.State)
		}
		fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)
		fx.client.Close()
		fx.home.Must(t, "xl", "destroy", fx.guest.Name)
		fx.awaitDomains(fx.home)
		fx.guest = lab.NewGuest("web1", 10)
		<-time.After(time.Second) // the bridge forgets its port
	}
}

// What a guest's TCP makes of answers that come after a checkpoint: bulk out of the guest, in steady state, with settings of
// its kernel. It judges nothing but that something comes.
func TestBulkAdvice(t *testing.T) {
	lab.Long(t)
	fx := fresh(t)
	fx.install(ft.Usual)
	for _, kernel := range []string{"", "tcp_cubic.hystart=0", "sysctl.net.ipv4.tcp_wmem=\"4096 4194304 33554432\""} {
		fx.guest.Kernel = kernel
		fx.boot()
		var rates []string
		for _, protect := range []bool{false, true} {
			if protect {
				fx.protect()
			}
			c := fx.dial()
			check(t, c.SetDeadline(time.Time{}))
			const each = 15 * time.Second
			n, err := c.Bulk(each, each)
			c.Close()
			if err != nil || n == 0 {
				t.Errorf("%q, protected %v: %d bytes, %v", kernel, protect, n, err)
			}
			rates = append(rates, fmt.Sprintf("%.2f", float64(n)*8/1e6/each.Seconds()))
		}
		p := fx.status(fx.home).Primary
		t.Logf("%q: unprotected and protected, Mbit/s: %s; pause %v, ack %v, held at most %d KiB of %d", kernel, strings.Join(rates, " and "), round(p.PauseMedian.Total), round(p.AckMedian), p.HeldBytes>>10, p.HeldLimit>>10)
		fx.home.Must(t, "xl", "ft-stop", fx.guest.Name)
		fx.client.Close()
		fx.home.Must(t, "xl", "destroy", fx.guest.Name)
		fx.awaitDomains(fx.home)
		<-time.After(time.Second) // the bridge forgets its port
	}
}
