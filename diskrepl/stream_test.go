package diskrepl

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"
)

// stream is what a mirror sends for two epochs.
func stream(t testing.TB) []byte {
	a, b := net.Pipe()
	m := NewMirror(newMemory(512))
	l, err := m.Attach(a, Options{Limit: 1 << 20, Lost: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	done := make(chan struct{})
	go func() { defer close(done); got.ReadFrom(b) }()
	zero := record{typ: recHashes, n: hashSize}.append(nil)
	b.Write(append(zero, make([]byte, hashSize)...))
	if err := l.AwaitSync(); err != nil {
		t.Fatal(err)
	}
	l.Seal(1)
	m.WriteAt([]byte("hello"), 5, true)
	m.Zero(10, 20, true, false)
	m.Trim(256, 256, false)
	m.Flush()
	l.Seal(2)
	for {
		m.mu.Lock()
		idle := l.queued == 0 && len(l.queue) == 0
		m.mu.Unlock()
		if idle {
			break
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(5 * time.Millisecond)
	l.Detach()
	<-done
	return got.Bytes()
}

// take feeds a replica a stream that then ends, and returns the newest epoch
// that came whole.
func take(dev Device, s []byte) (uint64, error) {
	a, b := net.Pipe()
	r := NewReplica(dev, b)
	go func() {
		a.Write(s)
		a.Close()
	}()
	go func() {
		var sink [4096]byte
		for {
			if _, err := a.Read(sink[:]); err != nil {
				return
			}
		}
	}()
	done := make(chan struct{})
	go func() {
		for e := uint64(1); r.AwaitSealed(context.Background(), e) == nil; e++ {
			if r.Commit(e) != nil {
				break
			}
		}
		close(done)
	}()
	err := r.Run()
	<-done
	r.Close()
	return r.Status().Committed, err
}

// A stream that stops at any byte, or has any bit of it turned, is never taken
// for whole.
func TestDamagedStream(t *testing.T) {
	s := stream(t)
	whole, err := take(newMemory(512), s)
	if whole != 2 {
		t.Fatalf("%d bytes, %d epochs: %v", len(s), whole, err)
	}
	for n := range len(s) {
		if e, err := take(newMemory(512), s[:n]); e >= 2 || err == nil {
			t.Errorf("cut at %d of %d: %d epochs, error %v", n, len(s), e, err)
		}
	}
	for i := range s {
		bad := bytes.Clone(s)
		bad[i] ^= 1 << (i % 8)
		if e, err := take(newMemory(512), bad); e >= 2 {
			t.Errorf("bit turned at %d of %d: %d epochs, error %v", i, len(s), e, err)
		}
	}
}

func FuzzReplica(f *testing.F) {
	f.Add(stream(f))
	f.Fuzz(func(t *testing.T, s []byte) { take(newMemory(512), s) })
}
