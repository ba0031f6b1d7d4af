package nbd

import (
	"math/bits"
	"sync"
)

// Align is what O_DIRECT wants of addresses, offsets and lengths, at most.
const Align = 4096

// pools hold page-aligned buffers by the logarithm of their size.
var pools [33]sync.Pool

// AlignedBuffer returns a buffer of n bytes that O_DIRECT can use. Give it back
// with [FreeBuffer].
func AlignedBuffer(n int) []byte {
	class := max(bits.Len(uint(max(n, 1)-1)), 12)
	if p, ok := pools[class].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	size := 1 << class
	// Go's allocator gives no promise for large objects that it states.
	b := make([]byte, size+Align)
	skip := int(-addressOf(b) & (Align - 1))
	return b[skip : skip+size : skip+size][:n]
}

// FreeBuffer takes back what [AlignedBuffer] gave.
func FreeBuffer(b []byte) {
	class := bits.Len(uint(cap(b))) - 1
	b = b[:cap(b)]
	pools[class].Put(&b)
}
