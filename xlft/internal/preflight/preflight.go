// Package preflight finds every reason why a domain can't be protected now, on
// both hosts, and describes the domain to the backup.
//
// The one rule a caller must know: it changes nothing, on either host.
package preflight

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"xlft/netbuffer"
	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskserver"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/store"
	"xlft/xlft/internal/xen"
	"xlft/xlft/wire"
)

// A Check looks at a domain of this host.
type Check struct {
	Config   *config.Config
	Identity *wire.Identity
	Host     *xen.Host
	Software string // for the peer's log
	// Instance tells this run of the domain from any other; "" if that is not known.
	Instance string
	// Advice says what to do about an error; "" if that is not known.
	Advice func(error) string
}

// Dial returns the way to a peer.
func (c *Check) Dial(p config.Peer) wire.Dialer {
	return c.Identity.Dialer(p.Addresses, p.Fingerprint)
}

// Offer describes a domain to a backup. It fails while the domain's memory is in
// a state that no replica can have.
func (c *Check) Offer(ctx context.Context, d xen.Domain) (wire.Offer, *domconf.Config, error) {
	o, conf, err := c.Describe(ctx, d)
	if err != nil {
		return o, conf, err
	}
	ps, err := c.memory(d, conf, o.Pages)
	if err == nil && len(ps) > 0 {
		err = fmt.Errorf("%s: %s. %s", d.Name, ps[0].What, ps[0].Advice)
	}
	return o, conf, err
}

// memory returns what in the domain's memory no replica could have.
func (c *Check) memory(d xen.Domain, conf *domconf.Config, pages uint64) ([]domconf.Problem, error) {
	var unpopulated uint64
	if conf.Create.Type != "pv" {
		var err error
		if unpopulated, err = c.Host.Guest(d).Unpopulated(); err != nil {
			return nil, err
		}
	}
	return conf.MemoryProblems(pages*4, unpopulated*4, xen.MaxMemSlack), nil
}

// Describe describes a domain as it is.
func (c *Check) Describe(ctx context.Context, d xen.Domain) (wire.Offer, *domconf.Config, error) {
	raw, err := c.Host.Config(d.ID)
	if err != nil {
		return wire.Offer{}, nil, err
	}
	conf, err := domconf.Parse(raw)
	if err != nil {
		return wire.Offer{}, nil, err
	}
	info, err := c.Host.Info()
	if err != nil {
		return wire.Offer{}, nil, err
	}
	memory, err := c.Host.Guest(d).Memory()
	if err != nil {
		return wire.Offer{}, nil, err
	}
	cpu, err := c.Host.CPUID(d.ID)
	if err != nil {
		return wire.Offer{}, nil, err
	}
	disks, err := c.disks(ctx, d.Name, conf.Copied())
	if err != nil {
		return wire.Offer{}, nil, err
	}
	return wire.Offer{
		Disks: disks, Domain: d.Name, UUID: d.UUID, Config: raw, MaxMemKiB: conf.Build.MaxMemKiB,
		Arbiter: c.arbiter().String(), Pages: memory.Pages, NICs: nics("/sys/class/net", conf), CPUID: cpu,
		XenVersion: info.Version, FailureTimeout: c.Config.For(d.Name).FailureTimeout,
	}, conf, nil
}

func (c *Check) arbiter() xlft.Arbiter {
	return arbiter.New(c.Config, c.Software, c.Dial, zap.NewNop())
}

// nics describes a domain's network devices: vif-bridge gives a device the MTU of
// its bridge, unless its configuration has one.
func nics(net string, conf *domconf.Config) (all []wire.NIC) {
	for _, n := range conf.NICs {
		mtu := n.MTU
		if b, err := os.ReadFile(filepath.Join(net, n.Bridge, "mtu")); err == nil && mtu == 0 && n.Bridge != "" {
			mtu, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		all = append(all, wire.NIC{DevID: n.DevID, MTU: mtu})
	}
	return all
}

// disks describes the disks of a domain that are copied, as its disk server has
// them.
func (c *Check) disks(ctx context.Context, domain string, vdevs []string) ([]wire.Disk, error) {
	if len(vdevs) == 0 {
		return nil, nil
	}
	st, err := diskserver.NewClient(diskserver.CommandSocket(c.Config.RunDir, domain), "", nil).Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("disk server of %s: %w", domain, err)
	}
	served := map[string]diskserver.DiskStatus{}
	for _, s := range st {
		served[s.VDev] = s
	}
	var ds []wire.Disk
	for _, v := range vdevs {
		s, ok := served[v]
		if !ok {
			return nil, fmt.Errorf("disk server of %s: it does not serve %s", domain, v)
		}
		ds = append(ds, wire.Disk{VDev: v, Size: s.Size, Shared: s.Shared, Sector: saidSector(s.Sector)})
	}
	return ds, nil
}

// saidSector is the size of a sector as an offer has it: 512 need not be said, and
// hosts that know nothing else take the offer then.
func saidSector(n int) int {
	if n == xlft.Sector(0) {
		return 0
	}
	return n
}

// Problems returns every reason why a domain can't be protected now by a peer.
// An error means that this host could not be looked at.
func (c *Check) Problems(ctx context.Context, d xen.Domain, p config.Peer) ([]wire.Problem, error) {
	o, conf, err := c.Describe(ctx, d)
	if err != nil {
		return nil, err
	}
	ps, err := c.local(ctx, d, conf, p, o.Pages)
	if err != nil {
		return nil, err
	}
	o.MaxEpoch = c.Config.CheckpointMemory
	if name, err := xlft.ArbiterName(ctx, c.arbiter()); err == nil { // else local has said so
		o.Arbiter = name
	}
	var r wire.CheckResult
	if err := wire.Ask(ctx, c.Dial(p), c.Software, wire.TypeCheck, o, wire.TypeCheckResult, &r); err != nil {
		advice := c.Advice(err)
		if advice == "" {
			advice = "Look at the network between the hosts, and at the receiver's log on the backup."
		}
		return append(ps, wire.Problem{Host: c.Config.Name, What: fmt.Sprintf("backup %s (%s) can't be asked: %v", p.Name, strings.Join(p.Addresses, ", "), err), Advice: advice}), nil
	}
	return merge(ps, r.Problems, p.Name), nil
}

// merge adds the problems that the backup named. Both hosts report the problems of
// the domain itself; each is listed once.
func merge(own, backups []wire.Problem, backup string) []wire.Problem {
	named := map[string]bool{}
	for _, p := range own {
		named[p.What] = true
	}
	for _, p := range backups {
		if !named[p.What] {
			p.Host = backup
			own = append(own, p)
		}
	}
	return own
}

// patience says whether a host is suspected before it is fenced, with a margin.
func patience(c *config.Config, domain string) (p wire.Problem, ok bool) {
	silence, after := c.For(domain).FailureTimeout, c.Arbiter.FenceAfter
	if c.Arbiter.Type != "fence" || after >= silence {
		return p, true
	}
	return wire.Problem{
		What:   fmt.Sprintf("arbiter.fence_after, %v, is shorter than failure_timeout, %v: a host that is slow for as long as it takes to be suspected would be fenced", after, silence),
		Advice: "Raise arbiter.fence_after, or lower failure_timeout.",
	}, false
}

// each returns the errors that were joined to err.
func each(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range j.Unwrap() {
			all = append(all, each(e)...)
		}
		return all
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// standing says why a domain that does not run can't be protected; nil if it can. One that
// its protector suspended or paused, in this run of it, is that protector's successor's to
// go on with.
func standing(domain string, st xlft.GuestState, why string, paused bool, instance string, o xlft.Ownership, unread error) *wire.Problem {
	left := unread == nil && o.Left() && o.Instance != "" && o.Instance == instance
	switch {
	case st == xlft.GuestOver:
		return &wire.Problem{What: "the domain has ended: " + why, Advice: "Start it again."}
	case left:
		return nil
	case st == xlft.GuestSuspended || st == xlft.GuestSuspendedByOther:
		return &wire.Problem{What: "the domain is suspended", Advice: "Resume it, or wait for what suspended it."}
	case paused && unread == nil:
		return &wire.Problem{What: "the domain is paused: it could not suspend for a checkpoint", Advice: fmt.Sprintf("\"xl unpause %s\", or wait for what paused it.", domain)}
	}
	return nil
}

// maxSocketPath is the longest path of a unix socket (unix(7), sun_path).
const maxSocketPath = 107

// userdataDir is where libxl keeps what its callers store of a domain (libxl_dom.c,
// userdata_path).
const userdataDir = "/var/lib/xen"

// libvirts reports whether libvirt manages a domain: it stores its XML with libxl.
func libvirts(dir string, d xen.Domain) bool {
	_, err := os.Stat(filepath.Join(dir, fmt.Sprintf("userdata-d.%d.%s.libvirt-xml", d.ID, d.UUID)))
	return err == nil
}

// local returns the reasons on this host.
func (c *Check) local(ctx context.Context, d xen.Domain, conf *domconf.Config, peer config.Peer, pages uint64) (ps []wire.Problem, err error) {
	add := func(what, advice string) {
		ps = append(ps, wire.Problem{Host: c.Config.Name, What: what, Advice: advice})
	}
	info, err := c.Host.Info()
	if err != nil {
		return nil, err
	}
	memory, err := c.memory(d, conf, pages)
	if err != nil {
		return nil, err
	}
	for _, p := range append(conf.Problems(info.ShadowPV), memory...) {
		add(p.What, p.Advice)
	}
	if socket := control.Socket(c.Config.RunDir, d.Name); len(socket) > maxSocketPath {
		add(fmt.Sprintf("its name is too long: the path of its socket, %s, has %d bytes, and the kernel takes %d", socket, len(socket), maxSocketPath),
			"Give the domain a shorter name.")
	}
	if len(conf.NICs) > 0 {
		for _, err := range []error{netbuffer.Check(ctx), netbuffer.Inspect(d.ID, netbuffer.Options{Devices: conf.Devices()})} {
			for _, err := range each(err) {
				add(err.Error(), c.Advice(err))
			}
		}
	}
	if libvirts(userdataDir, d) && conf.Again() {
		add("libvirt manages it, and would start it again by itself when it ends, also while nobody has decided which host it is to run on",
			"Give it on_poweroff, on_reboot and on_crash \"destroy\" in libvirt, or run it with xl: \"virsh domxml-to-native xen-xl\" prints its configuration.")
	}
	st, why, err := c.Host.Guest(d).State()
	if err != nil {
		return nil, err
	}
	paused, err := c.Host.Paused(d.ID)
	if err != nil {
		return nil, err
	}
	o, err := store.Dir(c.Config.StateDir).Load(d.Name)
	if p := standing(d.Name, st, why, paused, c.Instance, o, err); p != nil {
		add(p.What, p.Advice)
	}
	if p, ok := patience(c.Config, d.Name); !ok {
		add(p.What, p.Advice)
	}
	if a, ok := c.arbiter().(xlft.ArbiterChecker); ok {
		if err := a.Check(ctx, peer.Name); err != nil {
			add(err.Error(), xlft.ArbiterAdvice(c.arbiter()))
		}
	}
	return ps, nil
}
