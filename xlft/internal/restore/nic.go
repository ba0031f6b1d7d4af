package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"xlft/xlft/internal/domconf"
	"xlft/xlft/wire"
)

// scriptPath is where libxl finds a hotplug script: a name alone is in
// scriptDir.
func (p places) scriptPath(script string) string {
	if filepath.IsAbs(script) {
		return script
	}
	return filepath.Join(p.scripts, script)
}

// places is where a host has its network devices and hotplug scripts.
type places struct {
	net     string // "/sys/class/net"
	scripts string
}

var ownPlaces = places{"/sys/class/net", scriptDir}

// script returns the problem with a hotplug script that user needs; nil if there
// is none.
func (p places) script(script, user string) []wire.Problem {
	if script == "" {
		return nil
	}
	path := p.scriptPath(script)
	st, err := os.Stat(path)
	if err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
		return nil
	}
	return []wire.Problem{{What: fmt.Sprintf("no hotplug script %s that can be run, which %s uses", path, user), Advice: "Install the script on the backup."}}
}

// bridge returns the problems with the bridge of a network device: the device
// joins it at a takeover, and has to work at once and as it did before.
func (p places) bridge(nic domconf.NIC, offered wire.NIC) (ps []wire.Problem) {
	if nic.Bridge == "" {
		return nil
	}
	add := func(advice, format string, args ...any) {
		ps = append(ps, wire.Problem{What: fmt.Sprintf(format, args...), Advice: advice})
	}
	dir := filepath.Join(p.net, nic.Bridge)
	if _, err := os.Stat(filepath.Join(dir, "bridge")); err != nil {
		add(fmt.Sprintf("Make a bridge %s on the backup, on the same network.", nic.Bridge), "no bridge %s, which the domain's network device %d is on", nic.Bridge, nic.DevID)
		return ps
	}
	// The kernel's own STP (1) leaves a new port deaf for two forward delays. One
	// in user space (2) knows of edge ports.
	if delay := p.number(nic.Bridge, "bridge/forward_delay"); p.number(nic.Bridge, "bridge/stp_state") == 1 && delay > 0 {
		add(fmt.Sprintf("Switch it off: \"ip link set %s type bridge stp_state 0\", and in the network's configuration.", nic.Bridge),
			"bridge %s runs the spanning tree protocol, and would keep network device %d deaf and mute for %d s after a takeover",
			nic.Bridge, nic.DevID, 2*delay/100)
	}
	if mtu := p.number(nic.Bridge, "mtu"); offered.MTU > 0 && mtu > 0 && mtu < offered.MTU {
		add(fmt.Sprintf("Give the bridge and its devices the same MTU: \"ip link set %s mtu %d\".", nic.Bridge, offered.MTU),
			"bridge %s has an MTU of %d, and network device %d uses %d: its larger frames would be lost after a takeover",
			nic.Bridge, mtu, nic.DevID, offered.MTU)
	}
	return ps
}

// number reads an attribute of a network device; 0 if it is not there.
func (p places) number(dev, attr string) int {
	b, err := os.ReadFile(filepath.Join(p.net, dev, attr))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// nics returns the problems with a domain's network devices.
func (p places) nics(c *domconf.Config, offered []wire.NIC) (ps []wire.Problem) {
	for _, nic := range c.NICs {
		var o wire.NIC
		for _, x := range offered {
			if x.DevID == nic.DevID {
				o = x
			}
		}
		ps = append(ps, p.bridge(nic, o)...)
		ps = append(ps, p.script(nic.Script, fmt.Sprintf("the domain's network device %d", nic.DevID))...)
	}
	return ps
}
