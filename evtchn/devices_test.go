package evtchn

import (
	"maps"
	"strings"
	"testing"
	"testing/fstest"
)

// A tree is xenstore's nodes that hold something.
type tree map[string]string

func (t tree) Read(path string) string { return t[path] }

func (t tree) List(path string) (names []string) {
	seen := map[string]bool{}
	for p := range t {
		if rest, ok := strings.CutPrefix(p, path+"/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names
}

func TestUses(t *testing.T) {
	const at = "/local/domain/7/"
	store := tree{
		at + "store/port":                             "1",
		at + "console/port":                           "2",
		at + "device/vif/0/event-channel":             "9",
		at + "device/vif/1/multi-queue-num-queues":    "2",
		at + "device/vif/1/queue-0/event-channel-tx":  "10",
		at + "device/vif/1/queue-0/event-channel-rx":  "11",
		at + "device/vif/1/queue-1/event-channel-tx":  "12",
		at + "device/vif/1/queue-1/event-channel-rx":  "13",
		at + "device/vif/1/event-channel-ctrl":        "14",
		at + "device/vbd/51712/event-channel":         "15",
		at + "device/vbd/51728/queue-1/event-channel": "16",
		at + "device/vbd/51744/state":                 "1", // not connected yet
		at + "device/console/1/port":                  "17",
		at + "device/vbd/51760/event-channel":         "many", // the domain writes what it wants
		at + "device/vbd/51776/queue-x/event-channel": "18",
		at + "device/vbd/51777/event-channel":         "0",
		"/local/domain/8/device/vif/0/event-channel":  "9",
	}
	want := map[Port]string{
		1: "xenstore", 2: "console", 9: "vif/0", 10: "vif/1 queue 0 tx", 11: "vif/1 queue 0 rx", 12: "vif/1 queue 1 tx",
		13: "vif/1 queue 1 rx", 14: "vif/1 ctrl", 15: "vbd/51712", 16: "vbd/51728 queue 1", 17: "console/1",
	}
	got := map[Port]string{}
	for p, u := range Uses(store, 7) {
		got[p] = u.String()
	}
	if !maps.Equal(got, want) {
		t.Errorf("uses\n%v\nwant\n%v", got, want)
	}
}

func TestCount(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	root := fstest.MapFS{
		"sys/bus/xen-backend/devices/vif-7-0/xenbus/events":     file("120\n"),
		"sys/bus/xen-backend/devices/vif-7-1/xenbus/events":     file("-2147483648\n"), // 32 bits, signed
		"sys/bus/xen-backend/devices/vbd-7-51712/xenbus/events": file("3\n"),
		"sys/bus/xen-backend/devices/vbd-7-51728/mode":          file("w\n"),
		"sys/bus/xen-backend/devices/vif-70-0/xenbus/events":    file("9\n"),
		"sys/bus/xen-backend/devices/vif-6-7/xenbus/events":     file("9\n"),
		"sys/bus/xen-backend/devices/unrelated/xenbus/events":   file("9\n"),
		"proc/interrupts": file(`           CPU0       CPU1
  48:      12345          0   xen-percpu    -virq      timer0
  75:        100         20   xen-dyn    -event     vif7.0
  76:          1          2   xen-dyn    -event     vif7.1-q0-tx
  77:          3          4   xen-dyn    -event     vif7.1-q0-rx
  78:          5          6   xen-dyn    -event     vif7.1-q1-tx
  79:          7          0   xen-dyn    -event     vif70.0
  80:          8          0   xen-dyn    -event     blkif-backend
 NMI:          0          0   Non-maskable interrupts
`),
	}
	got, err := Count(root, 7)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]uint32{"vif/0": 120, "vif/1": 1 << 31, "vbd/51712": 3}; !maps.Equal(got.Devices, want) {
		t.Errorf("devices %v, want %v", got.Devices, want)
	}
	want := map[Use]uint32{
		{"vif/0", -1, ""}: 120, {"vif/1", 0, "tx"}: 3, {"vif/1", 0, "rx"}: 7, {"vif/1", 1, "tx"}: 11,
	}
	if !maps.Equal(got.Queues, want) {
		t.Errorf("queues %v, want %v", got.Queues, want)
	}
	for _, c := range []struct {
		of Use
		n  uint32
		ok bool
	}{
		{Use{"vif/0", -1, ""}, 120, true},
		{Use{"vif/1", -1, "tx"}, 3, true}, // the only queue, which xenstore does not number
		{Use{"vif/1", 1, "tx"}, 11, true},
		{Use{"vif/1", 1, "rx"}, 0, false},
		{Use{"vbd/51712", -1, ""}, 0, false},
	} {
		if n, ok := got.Of(c.of); n != c.n || ok != c.ok {
			t.Errorf("%v counts %d, %v", c.of, n, ok)
		}
	}
	if got, err := Count(fstest.MapFS{}, 7); err != nil || len(got.Devices) > 0 {
		t.Errorf("a kernel without the counters: %v, %v", got, err)
	}
}
