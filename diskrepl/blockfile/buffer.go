package blockfile

import (
	"math/bits"
	"sync"
	"unsafe"
)

// Align is the alignment in bytes that satisfies O_DIRECT on every disk: of
// addresses, of offsets and of lengths.
const Align = 4096

// pools hold aligned buffers by the logarithm of their size.
var pools [33]sync.Pool

// addressOf returns the address of a slice's first byte.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// AlignedBuffer returns a buffer of n bytes whose address suits O_DIRECT. Its
// contents are undefined. Give it back with [FreeBuffer].
func AlignedBuffer(n int) []byte {
	class := max(bits.Len(uint(max(n, 1)-1)), 12)
	if p, ok := pools[class].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	size := 1 << class
	// Go does not document how large objects are aligned.
	b := make([]byte, size+Align)
	skip := int(-addressOf(b) & (Align - 1))
	return b[skip : skip+size : skip+size][:n]
}

// FreeBuffer takes back a buffer of [AlignedBuffer]. The caller must not use it
// afterwards.
func FreeBuffer(b []byte) {
	class := bits.Len(uint(cap(b))) - 1
	b = b[:cap(b)]
	pools[class].Put(&b)
}
