package wire

import "sync"

// Buffers keeps buffers of DATA bodies for the next epoch, 64 MiB at most. The
// zero value is empty and ready. Its methods may be called from several
// goroutines.
type Buffers struct {
	mu   sync.Mutex
	free [][]byte
}

// maxFree is how many buffers are kept.
const maxFree = 64 << 20 / DataBody

// Get returns a buffer of length 0 that was Put, or nil.
func (b *Buffers) Get() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.free)
	if n == 0 {
		return nil
	}
	buf := b.free[n-1]
	b.free[n-1] = nil
	b.free = b.free[:n-1]
	return buf
}

// Put keeps buffers, as far as there is room.
func (b *Buffers) Put(bufs ...[]byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, buf := range bufs[:min(len(bufs), maxFree-len(b.free))] {
		b.free = append(b.free, buf[:0])
	}
}

// Clear forgets all buffers.
func (b *Buffers) Clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = nil
}
