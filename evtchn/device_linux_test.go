package evtchn

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// Without the driver the error says what is missing.
func TestNoDevice(t *testing.T) {
	if _, err := open(filepath.Join(t.TempDir(), "evtchn")); !errors.Is(err, ErrNoDevice) {
		t.Errorf("%v", err)
	}
}

// pipes is a Device whose driver is a FIFO: what is written to it comes back as events.
func pipes(t *testing.T) *Device {
	path := filepath.Join(t.TempDir(), "evtchn")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// Wait ends at its deadline and when the Device is closed, and returns ports in the
// driver's format.
func TestWait(t *testing.T) {
	d := pipes(t)
	buf := make([]Port, 8)
	if err := d.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Wait(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at its deadline: %v", err)
	}
	if err := d.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := d.Unmask(3, 70000); err != nil {
		t.Fatal(err)
	}
	got, err := d.Wait(buf)
	if err != nil || !slices.Equal(got, []Port{3, 70000}) {
		t.Errorf("ports %d, %v", got, err)
	}
	time.AfterFunc(10*time.Millisecond, func() { d.Close() })
	if _, err := d.Wait(buf); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := d.Notify(3); !errors.Is(err, os.ErrClosed) {
		t.Errorf("notify after Close: %v", err)
	}
}
