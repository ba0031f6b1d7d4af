package blockfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
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

// Disks that could not be used as a whole are refused.
func TestOpenRefusesSizes(t *testing.T) {
	for _, c := range []struct {
		size   int64
		direct bool
		want   string
	}{
		{0, false, "no bytes"}, {0, true, "no bytes"},
		{4096 + 100, true, "no multiple of 512"}, {4096 + 100, false, ""}, {4096 + 512, true, ""},
	} {
		name := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(name, make([]byte, c.size), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(name, c.direct)
		if err == nil {
			f.Close()
		} else if strings.Contains(err.Error(), "direct I/O") {
			t.Skip(err)
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%d bytes, direct %v: %v, want %q", c.size, c.direct, err, c.want)
		}
	}
}

// While a part of a block is written, which takes a read of the rest, nobody
// zeroes or trims the rest.
func TestZeroBesidePartialWrite(t *testing.T) {
	d := create(t, 16*Align, true)
	for name, do := range map[string]func() error{
		"zero":         func() error { return d.Zero(0, Align, false, false) },
		"zero, part":   func() error { return d.Zero(512, 512, false, false) },
		"trim":         func() error { return d.Trim(0, Align, false) },
		"write zeroes": func() error { return d.writeZeroes(512, 512) },
	} {
		span := d.part.Lock(0, Align) // as a write of a part does
		done := make(chan error, 1)
		go func() { done <- do() }()
		select {
		case err := <-done:
			t.Errorf("%s did not wait: %v", name, err)
			done <- err
		case <-time.After(20 * time.Millisecond):
		}
		d.part.Unlock(span)
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What ReadStable returns is on the storage, also of ranges that are not aligned.
func TestReadStable(t *testing.T) {
	for _, direct := range []bool{false, true} {
		d := create(t, 16*Align+512, direct)
		want := []byte("written, and not flushed")
		if err := d.WriteAt(want, 3*Align-5, false); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := d.ReadStable(got, 3*Align-5); err != nil || string(got) != string(want) {
			t.Errorf("direct %v: %q, %v", direct, got, err)
		}
		if err := d.ReadStable(make([]byte, 512), 16*Align); err != nil {
			t.Errorf("the end: %v", err)
		}
		if err := d.Forget(0, 16*Align); err != nil {
			t.Error(err)
		}
	}
}

// Close while others read: each of them hears of it.
func TestCloseBesideReaders(t *testing.T) {
	for range 20 {
		d := create(t, 64*Align, true)
		var wg sync.WaitGroup
		var reading sync.WaitGroup
		const readers = 32
		reading.Add(readers)
		for i := range readers {
			wg.Go(func() {
				b := AlignedBuffer(Align)
				defer FreeBuffer(b)
				for n := 0; ; n++ {
					if n == 1 {
						reading.Done()
					}
					if err := d.ReadAt(b, int64(i)*Align); err != nil {
						if !errors.Is(err, os.ErrClosed) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		reading.Wait()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		ended := make(chan struct{})
		go func() {
			wg.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatal("a reader still waits for what Close dropped")
		}
	}
}
