//go:build linux

package lab

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestKeyCoversWhatGoesIn(t *testing.T) {
	sum := func(k *keyer) string {
		t.Helper()
		s, err := k.sum()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	tree := fstest.MapFS{"d/a": {Data: []byte("1")}, "d/b": {Data: []byte("2")}}
	moved := fstest.MapFS{"d/a": {Data: []byte("12")}, "d/b": {}}
	keys := map[string]string{
		"nothing":      sum(newKey()),
		"text":         sum(newKey().text("a", "bc")),
		"other border": sum(newKey().text("ab", "c")),
		"two texts":    sum(newKey().text("a", "b").text("a", "c")),
		"tree":         sum(newKey().tree(tree, "d")),
		"other tree":   sum(newKey().tree(moved, "d")),
	}
	seen := map[string]string{}
	for name, key := range keys {
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s have the key %s", name, other, key)
		}
		seen[key] = name
	}
	if again := sum(newKey().tree(tree, "d")); again != keys["tree"] {
		t.Errorf("one tree has the keys %s and %s", keys["tree"], again)
	}
	if _, err := newKey().file("x", "/no/such/file").sum(); err == nil {
		t.Error("a key of a missing file")
	}
}

func TestSnapshotKeyHasNoPaths(t *testing.T) {
	key := func(img image, spec hostSpec) string {
		t.Helper()
		k, err := snapshotKey("QEMU emulator version 7.2.0", img, spec)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	a := key(image{xen: "/one/xen", key: "1"}, hostSpecs[0])
	if b := key(image{xen: "/two/xen", key: "1"}, hostSpecs[0]); a != b {
		t.Error("the key depends on where the cache is")
	}
	if b := key(image{xen: "/one/xen", key: "2"}, hostSpecs[0]); a == b {
		t.Error("the key does not depend on the image")
	}
	if b := key(image{xen: "/one/xen", key: "1"}, hostSpecs[1]); a == b {
		t.Error("both hosts have one key")
	}
}

func TestCheckQEMU(t *testing.T) {
	for version, ok := range map[string]bool{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)": true,
		"QEMU emulator version 10.0.2":                                   false,
		"something else":                                                 false,
	} {
		err := checkQEMU(version)
		if (err == nil) != ok {
			t.Errorf("%s: %v, want accepted %v", version, err, ok)
		}
		if err != nil && strings.Contains(version, "10.0") && !strings.Contains(err.Error(), "PVH") {
			t.Errorf("%s: %v does not give the reason", version, err)
		}
	}
}
