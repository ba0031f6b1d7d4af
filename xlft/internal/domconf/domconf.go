// Package domconf reads, from libxl's JSON of a domain's configuration, what
// decides whether the domain can be protected.
//
// The one rule a caller must know: the package looks at the configuration only.
// Whether the hosts have what the domain needs is the caller's to find out.
package domconf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

// Config is the part of libxl_domain_config (libxl_types.idl) that matters
// here. Device lists that xlft can't carry are kept only to be counted.
type Config struct {
	Create struct {
		Type string `json:"type"` // "pv", "pvh", "hvm"
		Name string `json:"name"`
		UUID string `json:"uuid"`
	} `json:"c_info"`
	Build struct {
		MaxMemKiB    uint64 `json:"max_memkb"`
		TargetMemKiB uint64 `json:"target_memkb"`
		ShadowMemKiB uint64 `json:"shadow_memkb"`
		MaxVCPUs     int    `json:"max_vcpus"`
		// VCPUs lists those that are online.
		VCPUs []int `json:"avail_vcpus"`
		// Cmdline is the kernel's, of a domain that boots a kernel in dom0.
		Cmdline string `json:"cmdline"`

		NoMigrate defbool           `json:"disable_migrate"`
		NestedHVM defbool           `json:"nested_hvm"`
		IOPorts   []json.RawMessage `json:"ioports"`
		IOMem     []json.RawMessage `json:"iomem"`
		IRQs      []json.RawMessage `json:"irqs"`
	} `json:"b_info"`
	Disks    []Disk            `json:"disks"`
	NICs     []NIC             `json:"nics"`
	PCI      []json.RawMessage `json:"pcidevs"`
	RDMs     []json.RawMessage `json:"rdms"`
	DTDevs   []json.RawMessage `json:"dtdevs"`
	VFBs     []json.RawMessage `json:"vfbs"`
	VKBs     []json.RawMessage `json:"vkbs"`
	VTPMs    []json.RawMessage `json:"vtpms"`
	P9s      []json.RawMessage `json:"p9s"`
	PVCalls  []json.RawMessage `json:"pvcallsifs"`
	VDispls  []json.RawMessage `json:"vdispls"`
	VSnds    []json.RawMessage `json:"vsnds"`
	Channels []json.RawMessage `json:"channels"`
	USBCtrls []json.RawMessage `json:"usbctrls"`
	USBDevs  []json.RawMessage `json:"usbdevs"`
	Virtios  []json.RawMessage `json:"virtios"` // from Xen 4.18 on

	// What is to become of the domain when it ends by itself, see [Config.Action].
	OnPoweroff  Action `json:"on_poweroff"`
	OnReboot    Action `json:"on_reboot"`
	OnWatchdog  Action `json:"on_watchdog"`
	OnCrash     Action `json:"on_crash"`
	OnSoftReset Action `json:"on_soft_reset"`
}

// defbool is a libxl_defbool in JSON: "True", "False" or "<default>".
type defbool string

func (b defbool) set() bool { return b == "True" }

// Disk is a libxl_device_disk.
type Disk struct {
	VDev   string `json:"vdev"`
	Target string `json:"pdev_path"`
	Script string `json:"script"`
	// Backend is "qdisk" if the configuration asks for QEMU, Format anything
	// but "raw" if only QEMU has it. libxl does not record what it chose.
	Backend string `json:"backend"`
	Format  string `json:"format"`
	// ReadWrite is the number 0 or 1.
	ReadWrite int `json:"readwrite"`
	Server
	// Specification is "virtio" for a disk that no Xen backend serves.
	Specification string `json:"specification"`
}

// byQEMU reports whether QEMU serves the disk.
func (d Disk) byQEMU() bool {
	return d.Backend == "qdisk" || d.Format != "" && d.Format != "raw"
}

// ReplicaSuffix marks the name of a replica until it runs. It is not xl's
// "--incoming": a domain with this suffix is xlft's to destroy.
const ReplicaSuffix = "--xlft"

// Script is the hotplug script of disks that xlft copies.
const Script = "block-xlft"

// Copied reports whether xlft copies the disk.
func (d Disk) Copied() bool { return path.Base(d.Script) == Script }

// Copied returns the virtual devices of the disks that xlft copies.
func (c *Config) Copied() []string {
	var vdevs []string
	for _, d := range c.Disks {
		if d.Copied() {
			vdevs = append(vdevs, d.VDev)
		}
	}
	return vdevs
}

// NIC is a libxl_device_nic.
type NIC struct {
	DevID  int    `json:"devid"`
	MAC    string `json:"mac"`
	Bridge string `json:"bridge"`
	Script string `json:"script"`
	MTU    int    `json:"mtu"` // 0: that of its bridge
	Server
}

// Server is the domain that serves a device: its backend.
type Server struct {
	ID   uint32 `json:"backend_domid"`
	Name string `json:"backend_domname"`
}

// elsewhere returns the name of the domain that serves the device; "" if that is
// dom0.
func (s Server) elsewhere() string {
	switch {
	case s.Name != "" && s.Name != "0" && s.Name != "Domain-0":
		return s.Name
	case s.ID != 0:
		return fmt.Sprint(s.ID)
	}
	return ""
}

// Devices returns the numbers of the network devices.
func (c *Config) Devices() []int {
	ns := make([]int, len(c.NICs))
	for i, n := range c.NICs {
		ns[i] = n.DevID
	}
	return ns
}

// Parse reads libxl's JSON.
func Parse(b []byte) (*Config, error) {
	if err := unique(json.NewDecoder(bytes.NewReader(b))); err != nil {
		return nil, fmt.Errorf("read domain configuration: %w", err)
	}
	c := new(Config)
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("read domain configuration: %w", err)
	}
	if c.Create.Type == "" {
		return nil, fmt.Errorf("read domain configuration: c_info has no type")
	}
	return c, nil
}

// unique fails if an object in the next value has a key twice, in whatever case:
// encoding/json would take the last one in any case, libxl another, and what was
// looked at would not be what libxl does.
func unique(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]string{}
	for d.More() {
		if open == '{' {
			k, err := d.Token()
			if err != nil {
				return err
			}
			key := k.(string)
			folded := strings.ToLower(key)
			if was, ok := seen[folded]; ok {
				return fmt.Errorf("it has %q and %q in one object", was, key)
			}
			seen[folded] = key
		}
		if err := unique(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// Problem is a reason why the domain can't be protected, and what to do.
type Problem struct{ What, Advice string }

// Problems returns what in the configuration xlft can't protect. pvLogDirty
// says whether the hypervisor can track a PV guest's writes.
func (c *Config) Problems(pvLogDirty bool) []Problem {
	var ps []Problem
	add := func(what, advice string) { ps = append(ps, Problem{what, advice}) }
	switch c.Create.Type {
	case "pvh":
	case "pv":
		if !pvLogDirty {
			add("it is a PV domain, and this Xen was built without shadow paging, so that a PV domain's writes can't be tracked",
				"Run it as a PVH domain (type=\"pvh\").")
		}
	case "hvm":
		// Every HVM domain has a device model: libxl calls one without it PVH.
		add("it is an HVM domain with a device model (QEMU), whose state is not copied yet",
			"Run it as a PVH domain (type=\"pvh\").")
	default:
		add(fmt.Sprintf("it is a domain of unknown type %q", c.Create.Type), "Run it as a PVH domain (type=\"pvh\").")
	}
	for _, n := range c.NICs {
		if where := n.elsewhere(); where != "" {
			add(fmt.Sprintf("network device %d (%s) is served by domain %s, where its output can't be held", n.DevID, n.MAC, where),
				"Let dom0 serve it: remove backend= from its line in the domain's configuration.")
		}
	}
	if c.Build.NoMigrate.set() {
		add("nomigrate=1 shows it this host's own time stamp counter, and another host's counter differs",
			"Remove nomigrate from the domain's configuration and start the domain again.")
	}
	if c.Build.NestedHVM.set() {
		add("nestedhvm=1 lets it run domains of its own, whose state is not copied",
			"Remove nestedhvm from the domain's configuration and start the domain again.")
	}
	for _, d := range c.Disks {
		if where := d.elsewhere(); where != "" {
			add(fmt.Sprintf("disk %s is served by domain %s, out of reach of xlft", d.VDev, where),
				"Let dom0 serve it: remove backend= from its line in the domain's configuration.")
			continue
		}
		switch {
		case d.Specification == "virtio":
			add(fmt.Sprintf("disk %s (%s) is a virtio device, whose state is not copied", d.VDev, d.Target),
				"Remove specification=virtio from the disk.")
		case d.Copied():
			if want := c.Create.Name + "/" + d.VDev; d.Target != want {
				add(fmt.Sprintf("disk %s has the target %s, not %s", d.VDev, d.Target, want),
					"A disk with script=block-xlft is named after its domain and its virtual device.")
			}
		case d.ReadWrite == 0:
			// Nothing is written to it; the backup checks that it has the same.
		case d.byQEMU():
			add(fmt.Sprintf("disk %s (%s) would not be copied: QEMU serves it, and reaches xlft's disks neither by a hotplug script nor by their socket", d.VDev, d.Target),
				"Make it raw and give it to xlft with script=block-xlft instead of backendtype=qdisk, as docs/disks.md says.")
		default:
			add(fmt.Sprintf("disk %s (%s) would not be copied: it does not have script=block-xlft", d.VDev, d.Target),
				"Give it to xlft as docs/disks.md says, or make it read-only and put it on both hosts.")
		}
	}
	for _, d := range []struct {
		n    int
		what string
	}{
		{len(c.PCI), "PCI device passed through"}, {len(c.RDMs), "reserved memory region of a device"},
		{len(c.DTDevs), "device-tree device passed through"}, {len(c.VFBs), "virtual framebuffer"},
		{len(c.VTPMs), "virtual TPM"}, {len(c.P9s), "9p file system"}, {len(c.PVCalls), "PV calls device"},
		{len(c.VDispls), "virtual display"}, {len(c.VSnds), "virtual sound card"}, {len(c.Channels), "channel"},
		{len(c.USBCtrls) + len(c.USBDevs), "USB device"}, {len(c.Virtios), "virtio device"},
		{len(c.Build.IOPorts), "range of I/O ports"}, {len(c.Build.IOMem), "range of I/O memory"},
		{len(c.Build.IRQs), "hardware interrupt"},
	} {
		if d.n > 0 {
			add(fmt.Sprintf("it has %d of: %s; what it does can't be held back or copied", d.n, d.what),
				"Remove it from the domain's configuration.")
		}
	}
	return ps
}

// MemoryProblems returns what makes a domain's memory one that no replica could
// have: pages that the domain may use and that have no memory behind them
// (unpopulated), and more than libxl lets the replica have: the target and a
// slack. Sizes are in KiB.
func (c *Config) MemoryProblems(has, unpopulated, slack uint64) (ps []Problem) {
	if unpopulated > 0 {
		ps = append(ps, Problem{
			fmt.Sprintf("it was started with less memory than maxmem, and %d KiB are still to be populated on demand, which a checkpoint can't tell from written pages", unpopulated),
			"Wait until its balloon driver has begun to work, or start it with memory equal to maxmem; \"xl mem-set\" makes it smaller afterwards.",
		})
	}
	if most := c.Build.TargetMemKiB + slack; has > most && c.Build.TargetMemKiB > 0 {
		ps = append(ps, Problem{
			fmt.Sprintf("it has %d KiB of memory, and its target is %d KiB: its replica could not have as much", has, c.Build.TargetMemKiB),
			fmt.Sprintf("Wait until it has given memory back, or \"xl mem-set %s %dk\".", c.Create.Name, has),
		})
	}
	return ps
}
