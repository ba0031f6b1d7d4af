package evtchn

import (
	"fmt"
	"strconv"
	"strings"
)

// A Tree is xenstore, as far as device names need it.
type Tree interface {
	// Read returns what a node holds, "" if there is no such node.
	Read(path string) string
	// List returns the names of a node's children.
	List(path string) []string
}

// A Use is what a domain uses a port for.
type Use struct {
	// Device is the kind and number of the domain's device as in xenstore, such as
	// "vif/0" or "vbd/51712"; "console" and "xenstore" are the rings that each domain
	// has.
	Device string
	Queue  int    // of a device with several queues, or -1
	Role   string // "tx", "rx" or "ctrl", of a device with several ports in a queue
}

// String returns the use as in "vif/0 queue 1 tx".
func (u Use) String() string {
	s := u.Device
	if u.Queue >= 0 {
		s += fmt.Sprintf(" queue %d", u.Queue)
	}
	if u.Role != "" {
		s += " " + u.Role
	}
	return s
}

// eventChannel is the name that frontends write their ports by, with "-tx", "-rx" or
// "-ctrl" after it if there are several (public/io/netif.h, blkif.h and others).
const eventChannel = "event-channel"

// Uses returns what a domain's ports are for, by what its frontends wrote to xenstore
// below device/. A frontend that has not connected yet has none.
func Uses(t Tree, domid uint32) map[Port]Use {
	uses := map[Port]Use{}
	at := fmt.Sprintf("/local/domain/%d/", domid)
	note := func(path string, u Use) {
		if p, err := strconv.ParseUint(t.Read(path), 10, 32); err == nil && p > 0 {
			uses[Port(p)] = u
		}
	}
	note(at+"store/port", Use{"xenstore", -1, ""})
	note(at+"console/port", Use{"console", -1, ""})
	for _, kind := range t.List(at + "device") {
		for _, id := range t.List(at + "device/" + kind) {
			device := kind + "/" + id
			channels(t, at+"device/"+device, Use{device, -1, ""}, note)
		}
	}
	return uses
}

// channels notes the ports below a device, or below one of its queues.
func channels(t Tree, path string, u Use, note func(string, Use)) {
	for _, name := range t.List(path) {
		if n, ok := strings.CutPrefix(name, "queue-"); ok && u.Queue < 0 {
			if q, err := strconv.ParseUint(n, 10, 16); err == nil {
				u := u
				u.Queue = int(q)
				channels(t, path+"/"+name, u, note)
			}
			continue
		}
		if role, ok := strings.CutPrefix(name, eventChannel); ok {
			u := u
			u.Role = strings.TrimPrefix(role, "-")
			note(path+"/"+name, u)
		}
	}
	// The console's second and later rings call it "port" (docs/misc/console.txt).
	if strings.HasPrefix(u.Device, "console/") {
		note(path+"/port", u)
	}
}
