package restore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlft/xlft/internal/domconf"
	"xlft/xlft/wire"
)

// A network device's bridge and script are looked at as libxl and the kernel will
// use them at a takeover.
func TestNICs(t *testing.T) {
	p := places{t.TempDir(), t.TempDir()}
	file := func(mode os.FileMode, path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	bridge := func(name, stp, delay, mtu string) {
		file(0o644, filepath.Join(p.net, name, "bridge/stp_state"), stp+"\n")
		file(0o644, filepath.Join(p.net, name, "bridge/forward_delay"), delay+"\n")
		file(0o644, filepath.Join(p.net, name, "mtu"), mtu+"\n")
	}
	bridge("br0", "0", "1500", "1500")
	bridge("stp0", "1", "1500", "1500")
	bridge("rstp0", "2", "1500", "1500")
	bridge("jumbo0", "0", "0", "9000")
	file(0o644, filepath.Join(p.net, "eth0/mtu"), "1500\n")
	file(0o755, filepath.Join(p.scripts, "vif-bridge"), "#!/bin/sh\n")
	file(0o644, filepath.Join(p.scripts, "vif-broken"), "#!/bin/sh\n")

	for _, c := range []struct {
		name string
		nic  domconf.NIC
		mtu  int
		want []string
	}{
		{"as it is", domconf.NIC{Bridge: "br0", Script: filepath.Join(p.scripts, "vif-bridge")}, 1500, nil},
		{"script by its name", domconf.NIC{Bridge: "br0", Script: "vif-bridge"}, 1500, nil},
		{"no such script", domconf.NIC{Bridge: "br0", Script: "vif-mine"}, 1500, []string{"no hotplug script " + p.scripts + "/vif-mine"}},
		{"no such absolute script", domconf.NIC{Bridge: "br0", Script: "/nowhere/vif-mine"}, 1500, []string{"no hotplug script /nowhere/vif-mine"}},
		{"script that can't be run", domconf.NIC{Bridge: "br0", Script: "vif-broken"}, 1500, []string{"vif-broken that can be run"}},
		{"no bridge", domconf.NIC{Bridge: "br1"}, 1500, []string{"no bridge br1"}},
		{"not a bridge", domconf.NIC{Bridge: "eth0"}, 1500, []string{"no bridge eth0"}},
		{"spanning tree", domconf.NIC{Bridge: "stp0"}, 1500, []string{"deaf and mute for 30 s"}},
		{"spanning tree in user space", domconf.NIC{Bridge: "rstp0"}, 1500, nil},
		{"smaller frames", domconf.NIC{Bridge: "br0"}, 9000, []string{"MTU of 1500, and network device 0 uses 9000"}},
		{"larger frames", domconf.NIC{Bridge: "jumbo0"}, 1500, nil},
		{"MTU not told", domconf.NIC{Bridge: "br0"}, 0, nil},
		{"no bridge wanted", domconf.NIC{Script: "vif-bridge"}, 0, nil},
	} {
		ps := p.nics(&domconf.Config{NICs: []domconf.NIC{c.nic}}, []wire.NIC{{DevID: 1, MTU: 65000}, {DevID: 0, MTU: c.mtu}})
		if len(ps) != len(c.want) {
			t.Errorf("%s: %v, want %q", c.name, ps, c.want)
			continue
		}
		for i, x := range ps {
			if !strings.Contains(x.What, c.want[i]) || x.Advice == "" {
				t.Errorf("%s: %+v, want %q with advice", c.name, x, c.want[i])
			}
		}
	}
}
