package preflight

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/xen"
	"xlft/xlft/wire"
)

// Each reason of a gate's refusal is a problem of its own.
func TestEach(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	if got := each(errors.Join(a, errors.Join(b, nil, c))); !reflect.DeepEqual(got, []error{a, b, c}) {
		t.Errorf("got %v", got)
	}
	if got := append(each(nil), each(a)...); !reflect.DeepEqual(got, []error{a}) {
		t.Errorf("got %v", got)
	}
}

// A problem of the domain itself, which both hosts see, is named once; one of
// the backup is named as the backup's.
func TestMerge(t *testing.T) {
	pci := wire.Problem{What: "it has a PCI device", Advice: "Remove it."}
	bridge := wire.Problem{What: "no bridge br0", Advice: "Make one."}
	own := pci
	own.Host = "alpha"
	theirs := bridge
	theirs.Host = "beta"
	got := merge([]wire.Problem{own}, []wire.Problem{pci, bridge}, "beta")
	if want := []wire.Problem{own, theirs}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The backup is told the MTU that each network device has here.
func TestNICs(t *testing.T) {
	net := t.TempDir()
	if err := os.Mkdir(filepath.Join(net, "br0"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(net, "br0/mtu"), []byte("9000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := nics(net, &domconf.Config{NICs: []domconf.NIC{
		{DevID: 0, Bridge: "br0"}, {DevID: 1, Bridge: "br0", MTU: 1400}, {DevID: 2, Bridge: "br1"}, {DevID: 3},
	}})
	if want := []wire.NIC{{DevID: 0, MTU: 9000}, {DevID: 1, MTU: 1400}, {DevID: 2}, {DevID: 3}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// libvirt leaves its XML with libxl.
func TestLibvirt(t *testing.T) {
	dir, d := t.TempDir(), xen.Domain{ID: 7, Name: "web1", UUID: "7f1c"}
	for name, want := range map[string]bool{
		"userdata-d.7.7f1c.libxl-json": false, "userdata-d.8.7f1c.libvirt-xml": false, "userdata-d.7.7f1c.libvirt-xml": true,
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := libvirts(dir, d); got != want {
			t.Errorf("with %s: %v", name, got)
		}
		os.Remove(file)
	}
}
