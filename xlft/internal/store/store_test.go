package store_test

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"xlft/xlft"
	"xlft/xlft/internal/store"
)

func TestStore(t *testing.T) {
	d := store.Dir(filepath.Join(t.TempDir(), "new", "dir"))
	if r, err := d.Load("web1"); err != nil || r != (xlft.Ownership{}) {
		t.Errorf("unknown domain: %+v, %v", r, err)
	}
	if all, unread, err := d.All(); err != nil || len(all)+len(unread) != 0 {
		t.Errorf("empty store: %v, %v, %v", all, unread, err)
	}
	want := map[string]xlft.Ownership{
		"web1":          {Generation: 3, Role: xlft.HostPrimary, Peer: "beta", Exposed: true, Instance: "boot/1"},
		"../../etc/x y": {Generation: 1, Role: xlft.HostOwner, Peer: "alpha"},
	}
	for n, r := range want {
		if err := d.Save(n, xlft.Ownership{Generation: 99}); err != nil {
			t.Fatal(err)
		}
		if err := d.Save(n, r); err != nil {
			t.Fatal(err)
		}
	}
	got, unread, err := d.All()
	if err != nil || len(unread) != 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("all: %+v, %v, want %+v", got, err, want)
	}
	if es, _ := os.ReadDir(string(d)); len(es) != 2 {
		t.Errorf("%d files, want 2", len(es))
	}
}

// Half a record is an error, never an empty one: an empty one would let output
// out.
func TestDamaged(t *testing.T) {
	d := store.Dir(t.TempDir())
	if err := os.WriteFile(filepath.Join(string(d), "web1.json"), []byte(`{"generation":`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load("web1"); err == nil {
		t.Error("half a record was read")
	}
	if err := d.Save("web2", xlft.Ownership{Generation: 2}); err != nil {
		t.Fatal(err)
	}
	if all, unread, err := d.All(); err != nil || len(all) != 1 || unread["web1"] == nil {
		t.Errorf("one bad record among others: %v, %v, %v", all, unread, err)
	}
}
