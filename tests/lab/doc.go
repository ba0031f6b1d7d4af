//go:build linux

// Package lab boots two real Xen hosts, A and B, under QEMU's software emulation, and gives a Go test hold of them
// and of the network around them. The hosts run stock Debian: hypervisor, dom0 kernel, xl, systemd. The test process is
// the outside world: it dials, listens and captures in a network namespace of its own, and it cuts cables, stops hosts
// and kills them.
//
// The one rule: nothing in the lab outlives the test process, and no state of a host outlives the test it was made
// in. Hosts are restored from snapshots, which takes a second or two, rather than cleaned.
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
//	func TestTakeover(t *testing.T) {
//		l := lab.Start(t)
//		...
//	}
//
// A host has two networks. The LAN is 10.20.0.0/24 and fd20::/64, on the bridge xenbr0 in dom0, where guests join it;
// the test process is 10.20.0.1 and fd20::1 there. The other one carries the lab's own commands and stays when the
// LAN is cut; the hosts can't reach each other over it.
//
// Time in an emulated host is real time on a machine that may be busy: compare times of one run, and wait for states
// with a deadline.
package lab
