//go:build linux

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"xlft/tests/lab/probe"
)

// GuestDir is where a host has the Linux guest's kernel (vmlinux), its initramfs, a sample configuration (linux.cfg)
// and the disk with the programs for [Guest].Tools (tools.img).
const GuestDir = "/var/lib/xlft-lab"

// guestOptions skip slow probes during the guest's boot that find nothing: for an AGP bridge, serial ports and so on.
const guestOptions = "console=hvc0 quiet mitigations=off iommu=off 8250.nr_uarts=0 apparmor=0"

// A Guest describes a Linux PVH guest that runs tests/lab/workload.
type Guest struct {
	Name   string
	Memory int // MiB
	VCPUs  int
	IPv4   netip.Addr
	IPv6   netip.Addr
	MAC    string

	VifScript string // hotplug script of the network device; empty: the lab's own, which is Xen's vif-bridge made quick

	Disks      []string // as xl.cfg has them, without the outer quotes; the workload writes to xvda
	Tools      bool     // has the programs to work on xvda with: mkfs, e2fsck, fio, SQLite; they come on a read-only xvdb
	DirtyRate  int      // pages a second, from boot on
	WorkingSet int      // pages that the dirtier goes round in
	Chatter    int      // probes of each kind a second, from boot on
	Ramdisk    string   // path on the host; empty: the workload's
	Kernel     string   // more words for the kernel command line
	Config     string   // more lines for the configuration
}

// NewGuest returns a small guest whose addresses end in n, which is 10 to 99.
func NewGuest(name string, n int) Guest {
	return Guest{
		Name:   name,
		Memory: 128,
		VCPUs:  1,
		IPv4:   netip.MustParseAddr(fmt.Sprintf("10.20.0.%d", n)),
		IPv6:   netip.MustParseAddr(fmt.Sprintf("fd20::%d", n)),
		MAC:    fmt.Sprintf("00:16:3e:20:00:%02d", n),
	}
}

// Render returns the guest's configuration for xl.
func (g Guest) Render() string {
	cmdline := fmt.Sprintf(guestOptions+" lab.ip4=%v lab.ip6=%v lab.peer4=%v lab.peer6=%v lab.peermac=%v",
		g.IPv4, g.IPv6, ClientIP4, ClientIP6, clientMAC)
	if g.DirtyRate > 0 {
		cmdline += fmt.Sprintf(" lab.dirty=%d,%d", g.DirtyRate, g.WorkingSet)
	}
	if g.Chatter > 0 {
		cmdline += fmt.Sprintf(" lab.chatter=%d", g.Chatter)
	}
	if g.Kernel != "" {
		cmdline += " " + g.Kernel
	}
	var b strings.Builder
	fmt.Fprintf(&b, "name = %q\n", g.Name)
	fmt.Fprintf(&b, "type = \"pvh\"\n")
	fmt.Fprintf(&b, "kernel = \"%s/vmlinux\"\n", GuestDir)
	ramdisk := g.Ramdisk
	if ramdisk == "" {
		ramdisk = GuestDir + "/initramfs"
	}
	fmt.Fprintf(&b, "ramdisk = %q\n", ramdisk)
	fmt.Fprintf(&b, "extra = %q\n", cmdline)
	fmt.Fprintf(&b, "memory = %d\n", g.Memory)
	fmt.Fprintf(&b, "vcpus = %d\n", g.VCPUs)
	fmt.Fprintf(&b, "tsc_mode = \"native\"\n") // a trapped RDTSC is dear under emulation
	script := g.VifScript
	if script == "" {
		script = "vif-lab"
	}
	fmt.Fprintf(&b, "vif = [\"script=%s,bridge=xenbr0,mac=%s\"]\n", script, g.MAC)
	var disks []string
	for _, d := range g.Disks {
		disks = append(disks, strconv.Quote(d))
	}
	if g.Tools {
		disks = append(disks, fmt.Sprintf("\"format=raw,vdev=xvdb,access=r,target=%s/tools.img\"", GuestDir))
	}
	if len(disks) > 0 {
		fmt.Fprintf(&b, "disk = [%s]\n", strings.Join(disks, ", "))
	}
	b.WriteString(g.Config)
	return b.String()
}

// ConfigPath is the guest's configuration file on a host.
func (g Guest) ConfigPath() string { return "/etc/xen/" + g.Name + ".cfg" }

// CreateGuest starts the guest on the host. It returns before the guest has booted: see [Lab.DialGuest].
func (h *Host) CreateGuest(ctx context.Context, g Guest) error {
	if err := h.WriteFile(ctx, g.ConfigPath(), []byte(g.Render()), 0o644); err != nil {
		return err
	}
	_, err := h.Run(ctx, "xl", "create", g.ConfigPath())
	return err
}

// DialGuest connects to the guest's service by IPv4, waiting until it answers.
func (l *Lab) DialGuest(ctx context.Context, g Guest) (*probe.Client, error) {
	return l.dialGuest(ctx, g, g.IPv4)
}

// DialGuest6 is DialGuest by IPv6.
func (l *Lab) DialGuest6(ctx context.Context, g Guest) (*probe.Client, error) {
	return l.dialGuest(ctx, g, g.IPv6)
}

func (l *Lab) dialGuest(ctx context.Context, g Guest, addr netip.Addr) (*probe.Client, error) {
	var client *probe.Client
	// Ever longer: the answer of a protected guest waits for a checkpoint, on a busy machine for seconds.
	patience := probeTimeout
	err := Await(ctx, func() error {
		try, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		patience = min(patience*5/4, 5*probeTimeout)
		conn, err := l.Dial(try, "tcp", netip.AddrPortFrom(addr, probe.Port).String())
		if err != nil {
			return err
		}
		client = probe.NewClient(conn)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: guest %s does not answer: %w", g.Name, err)
	}
	return client, nil
}

// A Domain is a line of xl list.
type Domain struct {
	Name  string
	ID    int
	State string // xl's six letters, such as "-b----"
}

// Domains returns the host's domains, dom0 included.
func (h *Host) Domains(ctx context.Context) ([]Domain, error) {
	out, err := h.Run(ctx, "xl", "list")
	if err != nil {
		return nil, err
	}
	domains, err := parseDomains(out)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.name, err)
	}
	return domains, nil
}

// parseDomains reads what xl list prints: name, id, memory, vCPUs, state and time.
func parseDomains(out string) ([]Domain, error) {
	var domains []Domain
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if len(f) < 6 {
			return nil, fmt.Errorf("xl list: line %q", line)
		}
		// A domain that is being built may have no name or one with spaces.
		id, err := strconv.Atoi(f[len(f)-5])
		if err != nil {
			return nil, fmt.Errorf("xl list: line %q: %w", line, err)
		}
		domains = append(domains, Domain{strings.Join(f[:len(f)-5], " "), id, f[len(f)-2]})
	}
	return domains, nil
}

// Domid returns the id of the domain of that name.
func (h *Host) Domid(ctx context.Context, name string) (int, error) {
	out, err := h.Run(ctx, "xl", "domid", name)
	if err != nil {
		return 0, err
	}
	id, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		return 0, fmt.Errorf("host %s: domid of %s: %w", h.name, name, err)
	}
	return id, nil
}

// GuestConsole returns what the guest has printed on this host. The log of a restored domain has the name that the
// domain had when its console came up, which may be "NAME--incoming".
func (h *Host) GuestConsole(ctx context.Context, name string) (string, error) {
	return h.Run(ctx, "cat", "/var/log/xen/console/guest-"+name+".log")
}
