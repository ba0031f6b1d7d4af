package blockfile

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// create returns a disk of n bytes.
func create(t testing.TB, n int64, direct bool) *File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, n); err != nil {
		t.Fatal(err)
	}
	f, err := Open(name, direct)
	if direct && err != nil && strings.Contains(err.Error(), "direct I/O") {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A disk that is open can't be opened again; a directory is not a disk.
func TestInUse(t *testing.T) {
	f := create(t, 4096, false)
	if _, err := Open(f.Name(), false); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second open: %v", err)
	}
	if _, err := Open(filepath.Dir(f.Name()), false); err == nil || !strings.Contains(err.Error(), "neither a file nor a block device") {
		t.Errorf("directory: %v", err)
	}
}

// More O_DIRECT requests at once than the kernel is given: each reads back what
// it wrote, and one beyond the end fails.
func TestManyRequests(t *testing.T) {
	const n = 3 * aioDepth
	d := create(t, n*Align, true)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			b := AlignedBuffer(Align)
			defer FreeBuffer(b)
			for round := range 5 {
				want := byte(i + round)
				for j := range b {
					b[j] = want
				}
				if err := d.WriteAt(b, int64(i)*Align, round == 0); err != nil {
					t.Error(err)
				}
				clear(b)
				if err := d.ReadAt(b, int64(i)*Align); err != nil || b[0] != want || b[Align-1] != want {
					t.Errorf("block %d has %d, want %d: %v", i, b[0], want, err)
				}
			}
		})
	}
	wg.Wait()
	b := AlignedBuffer(2 * Align)
	defer FreeBuffer(b)
	if err := d.ReadAt(b, (n-1)*Align); err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("a read beyond the end: %v", err)
	}
}
