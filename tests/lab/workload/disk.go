package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disk is the guest's first one, if it has any.
const (
	disk      = "/dev/xvda"
	blockSize = 4096
)

// writeBlock returns once the disk has called the write durable.
func writeBlock(block int64, n uint64) error {
	f, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := alignedBlock()
	for i := 0; i < blockSize; i += 8 { // all of it, so that half a block shows
		binary.LittleEndian.PutUint64(b[i:], n)
	}
	_, err = f.WriteAt(b, block*blockSize)
	return err
}

func readBlock(block int64) (uint64, error) {
	f, err := os.OpenFile(disk, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := alignedBlock()
	if _, err := f.ReadAt(b, block*blockSize); err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(b)
	for i := 8; i < blockSize; i += 8 {
		if m := binary.LittleEndian.Uint64(b[i:]); m != n {
			return 0, fmt.Errorf("block %d is torn: %d at 0, %d at %d", block, n, m, i)
		}
	}
	return n, nil
}

// alignedBlock returns a block that O_DIRECT takes.
func alignedBlock() []byte { return aligned(blockSize) }

// aligned returns n bytes that begin where a block of memory does.
func aligned(n int) []byte {
	b := make([]byte, n+blockSize)
	off := blockSize - int(uintptr(unsafe.Pointer(&b[0]))%blockSize)
	return b[off : off+n]
}
