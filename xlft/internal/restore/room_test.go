package restore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKeepRoom(t *testing.T) {
	dir := t.TempDir()
	f, err := keepRoom(dir, 1<<20)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 < 1<<20 {
		t.Errorf("it keeps %d bytes, %v", st.Blocks*512, err)
	}
	if es, err := os.ReadDir(dir); len(es) > 0 || err != nil {
		t.Errorf("a killed worker would leave %v, %v", es, err)
	}
	if _, err := keepRoom(filepath.Join(dir, "none"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the directory: %v", err)
	}
	if _, err := keepRoom(dir, 1<<62); err == nil {
		t.Error("there is no such room")
	}
}
