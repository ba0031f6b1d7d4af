package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"xlft/xlft"
	"xlft/xlft/internal/store"
)

// A record that exists can be changed on a file system without room: a real one.
func TestFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts a file system: needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("mount: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	d := store.Dir(dir)
	long := xlft.Ownership{Generation: 3, Role: xlft.HostBackup, Peer: "alpha", UUID: "6f3e6a5c-0000-0000-0000-000000000000", Took: 2}
	if err := d.Save("web1", long); err != nil {
		t.Fatal(err)
	}
	// Full to the last page.
	for i := 0; ; i++ {
		if err := os.WriteFile(filepath.Join(dir, "filler", string(rune('a'+i))), make([]byte, 4096), 0o644); os.IsNotExist(err) {
			os.Mkdir(filepath.Join(dir, "filler"), 0o755)
		} else if err != nil {
			break
		}
	}
	if err := d.Save("web2", long); err == nil {
		t.Error("a new record was saved without room")
	}
	for _, o := range []xlft.Ownership{
		{Generation: 3, Role: xlft.HostOwner, Peer: "alpha", UUID: long.UUID, Pending: true, Took: 2}, // longer
		{Generation: 4, Role: xlft.HostFailed},                                                        // shorter
	} {
		if err := d.Save("web1", o); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		if got, err := d.Load("web1"); err != nil || got != o {
			t.Errorf("%+v, %v; want %+v", got, err, o)
		}
	}
}
