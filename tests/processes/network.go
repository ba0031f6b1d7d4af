package processes

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A network is a switch in a namespace of its own; each host has a cable to it.
type network struct {
	prefix string
	netem  bool // the kernel can delay and lose packets
}

const prefix = "xlftp"

func sh(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func newNetwork() (*network, error) {
	sweep()
	n := &network{prefix: fmt.Sprintf("%s%d", prefix, os.Getpid())}
	sw := n.prefix + "s"
	for _, c := range [][]string{
		{"ip", "netns", "add", sw},
		{"ip", "-n", sw, "link", "add", "br0", "type", "bridge"},
		{"ip", "-n", sw, "link", "set", "br0", "up"},
	} {
		if err := sh(c...); err != nil {
			n.close()
			return nil, err
		}
	}
	n.netem = sh("tc", "-n", sw, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms") == nil
	return n, nil
}

// sweep removes the namespaces of runs that were killed.
func sweep() {
	es, _ := os.ReadDir("/run/netns")
	for _, e := range es {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		if pid, err := strconv.Atoi(strings.TrimRight(rest, "sAB")); ok && err == nil && dead(pid) {
			sh("ip", "netns", "del", e.Name())
		}
	}
}

func (n *network) close() { sh("ip", "netns", "del", n.prefix+"s") }

func (n *network) ns(host string) string { return n.prefix + host }

var addresses = map[string]string{"A": "10.99.0.1", "B": "10.99.0.2"}

// plug gives a host its namespace and its cable.
func (n *network) plug(host string) error {
	ns, sw := n.ns(host), n.prefix+"s"
	for _, c := range [][]string{
		{"ip", "netns", "add", ns},
		{"ip", "-n", sw, "link", "add", "p" + host, "type", "veth", "peer", "name", "eth0", "netns", ns},
		{"ip", "-n", sw, "link", "set", "p" + host, "master", "br0", "up"},
		{"ip", "-n", ns, "link", "set", "eth0", "address", "02:00:00:00:00:0" + strings.ToLower(host)}, // the same at each boot
		{"ip", "-n", ns, "addr", "add", addresses[host] + "/24", "dev", "eth0"},
		{"ip", "-n", ns, "link", "set", "eth0", "up"},
		{"ip", "-n", ns, "link", "set", "lo", "up"},
	} {
		if err := sh(c...); err != nil {
			return err
		}
	}
	return nil
}

// unplug removes the cable: nothing is heard of the host from here on.
func (n *network) unplug(host string) { sh("ip", "-n", n.prefix+"s", "link", "del", "p"+host) }

// remove removes the namespace, with every connection that still is in it.
func (n *network) remove(host string) { sh("ip", "netns", "del", n.ns(host)) }

// cut breaks and mends the cable at the switch: the host sees no change.
func (n *network) cut(host string, cut bool) error {
	state := "3" // forwarding
	if cut {
		state = "0" // disabled
	}
	return sh("bridge", "-n", n.prefix+"s", "link", "set", "dev", "p"+host, "state", state)
}

// mute makes nobody hear a host that itself hears all.
func (n *network) mute(host string, mute bool) error {
	peer := addresses[other(host)]
	if mute {
		return sh("ip", "-n", n.ns(host), "neigh", "replace", peer, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent")
	}
	return sh("ip", "-n", n.ns(host), "neigh", "del", peer, "dev", "eth0")
}

// down takes the link of a host down, so that the host sees it.
func (n *network) down(host string, down bool) error {
	return sh("ip", "-n", n.prefix+"s", "link", "set", "p"+host, map[bool]string{false: "up", true: "down"}[down])
}

// slow makes a host's cable slow, and lossy if the kernel can.
func (n *network) slow(host string, slow bool) error {
	if !slow {
		return sh("tc", "-n", n.ns(host), "qdisc", "del", "dev", "eth0", "root")
	}
	args := []string{"tc", "-n", n.ns(host), "qdisc", "add", "dev", "eth0", "root"}
	if n.netem {
		args = append(args, "netem", "delay", "40ms", "20ms", "loss", "5%")
	} else {
		args = append(args, "tbf", "rate", "2mbit", "burst", "16kb", "limit", "30kb")
	}
	return sh(args...)
}

func other(host string) string { return map[string]string{"A": "B", "B": "A"}[host] }

// listen opens a host's port in its namespace.
func (n *network) listen(host string) (lf *os.File, err error) {
	ns, err := os.Open(filepath.Join("/run/netns", n.ns(host)))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	// The thread goes back: one that ended would end the processes that it started.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // other goroutines would be in a host's namespace
		}
	}()
	l, err := net.Listen("tcp", ":7789")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}
