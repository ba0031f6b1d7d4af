//go:build lab

package scenario

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

var (
	campaignFor   = flag.Duration("campaign.for", 5*time.Minute, "how long the campaign lasts")
	campaignFault = flag.String("campaign.fault", "", "only the faults whose name has this text")
)

// A campaign is a guest that is always to be protected, with an etcd as the arbiter, under one fault after the other, some
// of them two at a time.
type campaign struct {
	*fixture
	random *rand.Rand
	etcd   *lab.Etcd
	away   *lab.Host // the host that the guest is not on, as the round began
}

// A harm is a fault of the campaign.
type harm struct {
	name string
	// deadly: it may be all that the domain survives. Only a mild one comes beside it.
	deadly bool
	mild   bool
	// still: a host does nothing until it is over. remote: it needs commands on the hosts.
	still, remote bool
	do            func(c *campaign) (heal func())
}

// span is how long a fault lasts: from nothing that anybody notices to longer than anybody waits, which with the lab's
// failure timeout is half a minute.
func (c *campaign) span() time.Duration {
	most := []time.Duration{2 * time.Second, 20 * time.Second, time.Minute}[c.random.IntN(3)]
	return time.Duration(c.random.Int64N(int64(most))) + 200*time.Millisecond
}

// try runs a command on a host that may be in trouble; it is not to hang for ever.
func (c *campaign) try(h *lab.Host, script string) error {
	_, err := h.Run(within(c.t, soon), "sh", "-c", script)
	return err
}

// wait lets a fault last.
func (c *campaign) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-c.t.Context().Done():
	}
}

// during makes a harm that lasts for a while out of its begin and its end.
func during(begin, end func(c *campaign, home, away *lab.Host) error) func(c *campaign) func() {
	return func(c *campaign) func() {
		home, away := c.home, c.away
		check(c.t, begin(c, home, away))
		c.wait(c.span())
		return func() { check(c.t, end(c, home, away)) }
	}
}

// once makes a harm out of a command on a host; what comes of the command is no matter.
func once(where func(c *campaign) *lab.Host, script string) func(c *campaign) func() {
	return func(c *campaign) func() {
		c.try(where(c), script)
		c.wait(time.Duration(c.random.Int64N(int64(5 * time.Second))))
		return func() {}
	}
}

func atHome(c *campaign) *lab.Host { return c.home }
func away(c *campaign) *lab.Host   { return c.away }

// either chooses one of the hosts that have power.
func either(c *campaign) *lab.Host {
	living := c.living(c.home, c.away)
	return living[c.random.IntN(len(living))]
}

func (c *campaign) living(hosts ...*lab.Host) []*lab.Host {
	return slices.DeleteFunc(hosts, func(h *lab.Host) bool { return h.PID() == 0 })
}

// stood makes a process stand still for a while.
func stood(where func(c *campaign) *lab.Host, word string) func(c *campaign) func() {
	return func(c *campaign) func() {
		h := where(c)
		c.try(h, "pkill -STOP -f '/xlft "+word+"'")
		c.wait(c.span())
		return func() { c.try(h, "pkill -CONT -f '/xlft "+word+"'") }
	}
}

// netem puts a queue of the kernel's that loses and delays in front of what a host sends on the LAN.
func netem(where func(c *campaign) []*lab.Host, how string) func(c *campaign) func() {
	return func(c *campaign) func() {
		hosts := c.living(where(c)...)
		for _, h := range hosts {
			check(c.t, c.try(h, "tc qdisc replace dev eth0 root netem "+how))
		}
		c.wait(c.span())
		return func() {
			for _, h := range hosts {
				check(c.t, c.try(h, "tc qdisc del dev eth0 root"))
			}
		}
	}
}

// power takes a host's power.
func power(where func(c *campaign) *lab.Host) func(c *campaign) func() {
	return func(c *campaign) func() {
		h := where(c)
		h.Kill()
		c.wait(c.span())
		return func() { c.revive(h) }
	}
}

var harms = []harm{
	{name: "the protector is killed", remote: true, do: once(atHome, "pkill -KILL -f '/xlft protect'")},
	{name: "the backup's receiver is killed", remote: true, do: once(away, "pkill -KILL -f '/xlft receive'")},
	{name: "the receiver at home is killed", mild: true, remote: true, do: once(atHome, "pkill -KILL -f '/xlft receive'")},
	{name: "the protector stands still", remote: true, do: stood(atHome, "protect")},
	{name: "the backup's receiver stands still", remote: true, do: stood(away, "receive")},
	{name: "the hosts lose each other", do: during(
		func(c *campaign, _, _ *lab.Host) error { return c.SplitHosts() },
		func(c *campaign, _, _ *lab.Host) error { return c.JoinHosts() })},
	{name: "the LAN of the guest's host is cut", do: during(
		func(_ *campaign, home, _ *lab.Host) error { return home.CutLAN() },
		func(_ *campaign, home, _ *lab.Host) error { return home.RestoreLAN() })},
	{name: "the backup's LAN is cut", do: during(
		func(_ *campaign, _, away *lab.Host) error { return away.CutLAN() },
		func(_ *campaign, _, away *lab.Host) error { return away.RestoreLAN() })},
	{name: "the guest's host sends nothing", remote: true, do: netem(func(c *campaign) []*lab.Host { return []*lab.Host{c.home} }, "loss 100%")},
	{name: "the backup sends nothing", remote: true, do: netem(func(c *campaign) []*lab.Host { return []*lab.Host{c.away} }, "loss 100%")},
	{name: "loss and delay", mild: true, remote: true, do: netem(func(c *campaign) []*lab.Host { return []*lab.Host{c.home, c.away} }, "delay 30ms 20ms loss 3%")},
	{name: "etcd is down", mild: true, do: during(
		func(c *campaign, _, _ *lab.Host) error { c.etcd.Stop(); return nil },
		func(c *campaign, _, _ *lab.Host) error { return c.etcd.Start(within(c.t, soon)) })},
	{name: "the guest's host loses its power", deadly: true, do: power(atHome)},
	{name: "the backup loses its power", deadly: true, do: power(away)},
	{name: "the guest's host stands still", still: true, do: during(
		func(_ *campaign, home, _ *lab.Host) error { return home.Pause() },
		func(_ *campaign, home, _ *lab.Host) error { return home.Resume() })},
	{name: "the backup stands still", still: true, do: during(
		func(_ *campaign, _, away *lab.Host) error { return away.Pause() },
		func(_ *campaign, _, away *lab.Host) error { return away.Resume() })},
	{name: "no room on a host", mild: true, remote: true, do: func(c *campaign) func() {
		h := either(c)
		c.fill(h, "/", "/run")
		c.wait(c.span())
		return func() { c.try(h, "rm -f /filler /run/filler") }
	}},
	{name: "dbus and the journal are restarted", mild: true, remote: true, do: once(either, "systemctl restart dbus.service systemd-journald.service")},
	{name: "no processor time on a host", mild: true, remote: true, do: func(c *campaign) func() {
		h, d := either(c), c.span()
		c.try(h, fmt.Sprintf("for i in 1 2; do timeout %.1f sh -c 'while :; do :; done' > /dev/null 2>&1 & done", d.Seconds()))
		c.wait(d)
		return func() {}
	}},
	{name: "an operator switches over", remote: true, do: once(atHome, "xl ft-failover web1")},
	{name: "an operator stops the protection and begins it again", remote: true, do: once(atHome, "xl ft-stop web1 && xl ft-start web1")},
	{name: "an operator drains the guest's host", remote: true, do: func(c *campaign) func() {
		h := c.home
		c.try(h, "xl ft-drain")
		return func() { c.try(h, "xl ft-undrain") }
	}},
	{name: "an operator drains the backup", mild: true, remote: true, do: func(c *campaign) func() {
		h := c.away
		c.try(h, "xl ft-drain")
		return func() { c.try(h, "xl ft-undrain") }
	}},
}

// A seeded campaign of faults on two real hosts. After each the guest is one, and it is protected again with nobody's
// hand; in all of it no client is told what does not come true, and no frame of the guest's is heard after a later one.
//
//	make lab-campaign FOR=2h SEED=7
func TestCampaign(t *testing.T) {
	lab.Long(t)
	c := &campaign{fixture: fresh(t)}
	s := ft.Usual
	s.Protect = true
	c.etcd = c.fixture.etcd(&s)
	c.install(s)
	c.boot()
	c.chooseSeed()
	c.random = rand.New(rand.NewPCG(*seed, 0))
	chosen := slices.DeleteFunc(slices.Clone(harms), func(h harm) bool { return !strings.Contains(h.name, *campaignFault) })
	if len(chosen) == 0 {
		t.Fatalf("no fault has %q in its name", *campaignFault)
	}
	c.settle()
	client := c.call(200 * time.Millisecond)
	k := c.talk(5)

	counts := map[string]int{}
	moves := 0
	for i, begun := 1, time.Now(); time.Since(begun) < *campaignFor && !t.Failed(); i++ {
		c.away = c.Peer(c.home)
		first := chosen[c.random.IntN(len(chosen))]
		both := []harm{first}
		if beside := slices.DeleteFunc(slices.Clone(chosen), func(h harm) bool {
			return h.name == first.name || h.deadly || first.deadly && !h.mild || first.still && (h.still || h.remote)
		}); len(beside) > 0 && c.random.IntN(3) == 0 {
			both = append(both, beside[c.random.IntN(len(beside))])
		}
		at, from := time.Now(), c.home
		var names []string
		var heals []func()
		for _, h := range both {
			names = append(names, h.name)
			counts[h.name]++
		}
		t.Logf("round %d, on %s: %s", i, from.Name(), strings.Join(names, ", and "))
		for _, h := range both {
			heals = append(heals, h.do(c))
		}
		for _, heal := range slices.Backward(heals) {
			heal()
		}
		healed := time.Now()
		c.settle()
		if c.home != from {
			moves++
		}
		// The client goes on.
		client.await(3)
		t.Logf("round %d: %v in all, well %v after the last fault was over, on %s", i, round(time.Since(at)), round(time.Since(healed)), c.home.Name())
	}
	client.end()
	h := k.end()
	c.order(h)
	t.Logf("%d faults, %d moves: %v; %d frames heard", total(counts), moves, counts, len(h.probes))
}

func total(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// settle waits until the guest runs on one host, which becomes home, and is protected by the other; nothing else is on
// either.
func (c *campaign) settle() {
	c.t.Helper()
	c.until(2*patience, func() error {
		var home *lab.Host
		var says []string
		for _, h := range c.Hosts() {
			ctx, cancel := context.WithTimeout(c.t.Context(), soon)
			r, err := ft.Status(ctx, h, c.guest.Name)
			cancel()
			says = append(says, fmt.Sprintf("%s: %s, %s, protected %v", h.Name(), r.Role, r.State, r.Protected))
			if err == nil && r.Role == "primary" && r.Protected {
				if home != nil {
					c.t.Fatalf("both say that they protect the guest: %v", says)
				}
				home = h
			}
		}
		if home == nil {
			return errors.New(strings.Join(says, "; "))
		}
		for h, want := range map[*lab.Host]string{home: c.guest.Name, c.Peer(home): c.guest.Name + "--xlft"} {
			ctx, cancel := context.WithTimeout(c.t.Context(), soon)
			all, err := h.Domains(ctx)
			cancel()
			if err != nil {
				return err
			}
			for _, d := range all {
				if d.ID != 0 && d.Name != want {
					return fmt.Errorf("host %s has %s besides %s", h.Name(), d.Name, want)
				}
			}
			if len(all) != 2 {
				return fmt.Errorf("host %s has %d domains, want dom0 and %s", h.Name(), len(all), want)
			}
		}
		c.home = home
		return nil
	})
}

// order checks that no frame of the guest's was heard after a later one of its kind, or twice: of two lives of the guest
// both would count on from the same checkpoint.
func (c *campaign) order(h heard) {
	c.t.Helper()
	last, wrong := map[probe.Proto]spoken{}, 0
	for _, s := range h.probes {
		if was := last[s.Proto]; s.Seq <= was.Seq {
			if wrong++; wrong <= 5 {
				c.t.Errorf("%v frame %d from %s, %v after %d from %s", s.Proto, s.Seq, s.host.Name(), s.at.Sub(was.at), was.Seq, was.host.Name())
			}
			continue
		}
		last[s.Proto] = s
	}
	if wrong > 0 {
		c.t.Errorf("%d frames were heard after a later one, or twice", wrong)
	}
}
