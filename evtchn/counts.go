package evtchn

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// Where Linux' backends count the events of their devices, below /, as an fs.FS has it.
const (
	backendDevices = "sys/bus/xen-backend/devices"
	interrupts     = "proc/interrupts"
)

// Counts are how many events backends have had from a domain since they connected. They
// are 32 bits wide, and begin anew when a device is connected anew.
type Counts struct {
	// Devices counts by device, as in Use.Device: all its ports together (the
	// attribute xenbus/events of the backend's device, since Linux 5.12).
	Devices map[string]uint32
	// Queues counts single ports of network devices, by device, queue and role, where
	// dom0 has an interrupt of its own for each: netback names these after the
	// interface.
	Queues map[Use]uint32
}

// Of returns the count of a single port. Netback names a queue also where the frontend
// has one that xenstore does not number.
func (c Counts) Of(u Use) (n uint32, ok bool) {
	if n, ok = c.Queues[u]; !ok && u.Queue < 0 {
		u.Queue = 0
		n, ok = c.Queues[u]
	}
	return n, ok
}

// Count reads the counts of the devices that this kernel is the backend of. Root is the
// file system's, os.DirFS("/"). A kernel without the counters gives none.
func Count(root fs.FS, domid uint32) (Counts, error) {
	c := Counts{map[string]uint32{}, map[Use]uint32{}}
	all, err := fs.ReadDir(root, backendDevices)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("evtchn: count: %w", err)
	}
	for _, e := range all {
		// KIND-DOMID-ID
		f := strings.Split(e.Name(), "-")
		if len(f) != 3 || f[1] != strconv.FormatUint(uint64(domid), 10) {
			continue
		}
		b, err := fs.ReadFile(root, backendDevices+"/"+e.Name()+"/xenbus/events")
		if err != nil {
			continue // gone meanwhile, or an older kernel
		}
		// The kernel prints a signed number.
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
			c.Devices[f[0]+"/"+f[2]] = uint32(n)
		}
	}
	f, err := root.Open(interrupts)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("evtchn: count: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return c, fmt.Errorf("evtchn: count: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if u, n, ok := interrupt(line, domid); ok {
			c.Queues[u] = n
		}
	}
	return c, nil
}

// interrupt parses a line of /proc/interrupts: a number and a colon, a count for each
// processor, what the interrupt controller is, and the name, which is "vif5.0-q1-tx" or
// "vif5.0" for netback's.
func interrupt(line string, domid uint32) (u Use, n uint32, ok bool) {
	f := strings.Fields(line)
	if len(f) < 3 {
		return u, 0, false
	}
	rest, ok := strings.CutPrefix(f[len(f)-1], fmt.Sprintf("vif%d.", domid))
	if !ok {
		return u, 0, false
	}
	parts := strings.Split(rest, "-")
	if _, err := strconv.ParseUint(parts[0], 10, 16); err != nil {
		return u, 0, false
	}
	u = Use{"vif/" + parts[0], -1, ""}
	for _, p := range parts[1:] {
		if q, err := strconv.ParseUint(strings.TrimPrefix(p, "q"), 10, 16); err == nil && strings.HasPrefix(p, "q") {
			u.Queue = int(q)
		} else {
			u.Role = p
		}
	}
	for _, s := range f[1:] {
		v, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			break
		}
		n += uint32(v)
	}
	return u, n, true
}
