//go:build lab

package scenario

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

// A host whose certificate is not the pinned one is refused, by either side; nothing changes.
func TestWrongCertificate(t *testing.T) {
	lab.Long(t)
	fx := unprotected(t)
	a, b := fx.home, fx.backup()
	t.Run("primary", func(t *testing.T) {
		a.Must(t, "xlft", "keygen", "--dir", "/etc/xlft/other")
		fx.edit(t, a, `[host]`, "[host]\nidentity = \"/etc/xlft/other\"")
		before := len(turnedAway(t, b))
		fx.unchanged(t, "does not know this host's certificate", "xl", "ft-start", "--config", edited, fx.guest.Name)
		lines := turnedAway(t, b)[before:]
		t.Logf("log of %s:\n%s", b.Name(), strings.Join(lines, "\n"))
		if len(lines) != 1 {
			t.Errorf("%d lines in the log of %s, want one", len(lines), b.Name())
		}
	})
	t.Run("backup", func(t *testing.T) {
		print := strings.TrimSpace(b.Must(t, "xlft", "keygen", "--show"))
		fx.edit(t, a, print, "sha256:"+strings.Repeat("ab", 32))
		fx.unchanged(t, print, "xl", "ft-start", "--config", edited, fx.guest.Name)
	})
}

// turnedAway returns the lines in a receiver's log about peers that it refused.
func turnedAway(t *testing.T, h *lab.Host) (lines []string) {
	for line := range strings.Lines(ft.Journal(within(t, soon), h)) {
		if strings.Contains(line, "turned away") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// edited is a configuration that differs in one place from the host's.
const edited = "/etc/xlft/edited.toml"

func (fx *fixture) edit(t *testing.T, h *lab.Host, old, replacement string) {
	t.Helper()
	body, err := h.ReadFile(within(t, soon), ft.ConfigPath)
	check(t, err)
	if !bytes.Contains(body, []byte(old)) {
		t.Fatalf("no %q in the configuration:\n%s", old, body)
	}
	body = bytes.Replace(body, []byte(old), []byte(replacement), 1)
	check(t, h.WriteFile(within(t, soon), edited, body, 0o644))
}

// unchanged runs a command that must be refused and must change nothing.
func (fx *fixture) unchanged(t *testing.T, words string, argv ...string) {
	t.Helper()
	defer func(outer *testing.T) { fx.t = outer }(fx.t)
	fx.t = t
	a, b := fx.domains(fx.home), fx.domains(fx.backup())
	fx.refused(fx.home, words, argv...)
	fx.awaitClean(fx.home)
	fx.awaitDomains(fx.home, a...)
	fx.awaitDomains(fx.backup(), b...)
	units, err := fx.home.Run(within(t, soon), "systemctl", "list-units", "--no-legend", "--state=active,activating,deactivating", "xlft@*")
	check(t, err)
	if units = strings.TrimSpace(units); units != "" {
		t.Errorf("units: %s", units)
	}
	fx.get()
}

// An operator's mistakes and missing parts: exit status 1, a clear message, and nothing is changed.
func TestErrors(t *testing.T) {
	lab.Long(t)
	fx := unprotected(t)
	a, b := fx.home, fx.backup()
	name := fx.guest.Name

	t.Run("unknown domain", func(t *testing.T) {
		fx.unchanged(t, "xl list", "xl", "ft-start", "nosuch")
		fx.unchanged(t, "nosuch", "xl", "ft-status", "nosuch")
		fx.unchanged(t, "is not protected from this host", "xl", "ft-stop", name)
		fx.unchanged(t, "is not protected from this host", "xl", "ft-failover", name)
	})
	t.Run("paused", func(t *testing.T) {
		a.Must(t, "xl", "pause", name)
		defer a.Must(t, "xl", "unpause", name)
		fx.refused(a, "the domain is paused", "xl", "ft-start", name)
	})
	t.Run("unknown key", func(t *testing.T) {
		fx.edit(t, a, "[arbiter]", "[arbiter]\nepoch_mox = \"1s\"")
		line := strings.TrimSpace(a.Must(t, "sh", "-c", "grep -n epoch_mox "+edited+" | cut -d: -f1"))
		fx.unchanged(t, fmt.Sprintf("%s:%s: arbiter.epoch_mox: unknown key", edited, line), "xl", "ft-start", "--config", edited, name)
	})
	t.Run("backup unreachable", func(t *testing.T) {
		address := fmt.Sprintf("%v:7789", b.IPv4())
		fx.edit(t, a, address, fmt.Sprintf("%v:1", b.IPv4()))
		fx.unchanged(t, "systemctl start xlft-receiver.socket", "xl", "ft-start", "--config", edited, name)
		fx.edit(t, a, address, "10.20.0.99:7789")
		fx.unchanged(t, "network between the hosts", "xl", "ft-start", "--config", edited, name)
		check(t, b.CutLAN())
		fx.unchanged(t, "network between the hosts", "xl", "ft-start", name)
		check(t, b.RestoreLAN())
	})
	t.Run("memory at the backup", func(t *testing.T) {
		big := lab.NewGuest("big", 20)
		free := strings.TrimSpace(b.Must(t, "sh", "-c", "xl info free_memory"))
		fmt.Sscan(free, &big.Memory)
		big.Memory -= 80
		fx.create(t, b, big)
		fx.unchanged(t, "MiB of memory are needed", "xl", "ft-start", name)
	})
	t.Run("kernel modules", func(t *testing.T) {
		for _, module := range []string{"sch_plug", "ifb", "act_gact"} {
			a.Must(t, "sh", "-c", fmt.Sprintf("rmmod %s && echo 'install %[1]s /bin/false' > /etc/modprobe.d/missing.conf", module))
			fx.unchanged(t, "modprobe "+module, "xl", "ft-start", name)
			a.Must(t, "sh", "-c", "rm /etc/modprobe.d/missing.conf; modprobe "+module)
		}
	})
	t.Run("filter at the vif", func(t *testing.T) {
		vif := fx.vif()
		a.Must(t, "sh", "-c", "tc qdisc add dev "+vif+" clsact && tc filter add dev "+vif+" ingress prio 7 protocol all u32 match u32 0 0 action ok")
		defer a.Must(t, "tc", "qdisc", "del", "dev", vif, "clsact")
		for _, command := range []string{"ft-check", "ft-start"} {
			fx.refused(a, vif+" has another program's ingress u32 filter with priority 7", "xl", command, name)
		}
	})
	t.Run("vif elsewhere", func(t *testing.T) {
		g := lab.NewGuest("odd", 30)
		t.Cleanup(func() { a.Must(fx.t, "ip", "netns", "del", "elsewhere") })
		fx.create(t, a, g)
		id, err := a.Domid(within(t, soon), g.Name)
		check(t, err)
		vif := fmt.Sprintf("vif%d.0", id)
		a.Must(t, "sh", "-c", "ip netns add elsewhere && ip link set dev "+vif+" netns elsewhere")
		for _, command := range []string{"ft-check", "ft-start"} {
			fx.unchanged(t, "no interface "+vif+" in this network namespace", "xl", command, g.Name)
		}
	})
	for _, kind := range []struct {
		name, words string
		edit        func(*lab.Guest)
	}{
		{"PV", "was built without shadow paging", func(g *lab.Guest) { g.Config = "type = \"pv\"\n" }},
		{"disk", "does not have script=block-xlft", func(g *lab.Guest) { g.Disks = []string{"format=raw,vdev=xvda,access=rw,target=/dev/loop0"} }},
		{"bridge at the backup", "no bridge xenbr7", func(g *lab.Guest) {
			g.Config = fmt.Sprintf("vif = [\"script=vif-lab,bridge=xenbr7,mac=%s\"]\n", g.MAC)
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			g := lab.NewGuest("odd", 30)
			kind.edit(&g)
			a.Must(t, "sh", "-c", "test -e /root/disk || { truncate -s 1M /root/disk; losetup /dev/loop0 /root/disk; }; ip link add xenbr7 type bridge 2>&1 || true")
			fx.create(t, a, g)
			fx.unchanged(t, kind.words, "xl", "ft-start", g.Name)
		})
	}
}

// create makes a domain that never runs, for the length of a test.
func (fx *fixture) create(t *testing.T, h *lab.Host, g lab.Guest) {
	t.Helper()
	check(t, h.WriteFile(within(t, soon), g.ConfigPath(), []byte(g.Render()), 0o644))
	h.Must(t, "xl", "create", "-p", g.ConfigPath())
	t.Cleanup(func() {
		if _, err := h.Run(within(fx.t, soon), "xl", "destroy", g.Name); err != nil {
			t.Error(err)
		}
	})
}
