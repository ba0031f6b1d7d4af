package soundness

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"
)

// An operator's "ft-undrain" while the host stays unsound is kept, also where one domain of the
// host can't be moved, which is what "ft-drain" says for ever, and when the receiver is
// started anew. Once the host was sound, it counts no more.
func TestUndrainIsKept(t *testing.T) {
	drained, calls := false, 0
	note := filepath.Join(t.TempDir(), "note")
	begin := func() *Watch {
		return &Watch{Log: zap.NewNop(), Note: note, Emptied: func() bool { return drained }, Empty: func(context.Context) error {
			drained = true
			calls++
			return errors.New("ft-drain: tool stays: it is not protected from here")
		}}
	}
	w := begin()
	bad, good := said(t, "exit 100"), said(t, "exit 0")
	look := func(command string, n int) {
		for range n {
			w.look(t.Context(), command)
		}
	}
	look(bad, 3)
	if !drained || calls != 2 {
		t.Fatalf("drained %v, called %d times", drained, calls)
	}
	drained = false // xl ft-undrain
	look(bad, 3)
	w = begin()
	look(bad, 3)
	if drained {
		t.Error("drained again: the operator's word is not kept")
	}
	look(good, 1)
	look(bad, 2)
	if !drained {
		t.Error("another time is another thing")
	}
}

// What a command prints costs this host little: its receiver goes last when memory is short.
func TestEndlessOutput(t *testing.T) {
	var peak uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer cancel()
		ask(ctx, said(t, "exec yes"))
	}()
	for {
		select {
		case <-done:
			if peak > 32<<20 {
				t.Errorf("%d MiB of memory for 0.7 s of a command's output; it may go on for %v", peak>>20, limit)
			}
			return
		case <-time.After(50 * time.Millisecond):
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if peak = max(peak, m.HeapAlloc); peak > 1<<30 {
				t.Fatal("more than 1 GiB")
			}
		}
	}
}
