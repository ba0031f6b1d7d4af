package diskrepl_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"xlft/diskrepl"
)

// A ramDisk is a Device in memory.
type ramDisk []byte

func (d ramDisk) Size() int64                               { return int64(len(d)) }
func (d ramDisk) ReadAt(p []byte, off int64) error          { copy(p, d[off:]); return nil }
func (d ramDisk) WriteAt(p []byte, off int64, _ bool) error { copy(d[off:], p); return nil }
func (d ramDisk) Zero(off, n int64, _, _ bool) error        { clear(d[off : off+n]); return nil }
func (d ramDisk) Trim(off, n int64, _ bool) error           { return nil }
func (d ramDisk) Flush() error                              { return nil }

// A write reaches the backup's copy when its epoch is committed there, and not
// before.
func ExampleMirror() {
	primary, backup := make(ramDisk, 1<<20), make(ramDisk, 1<<20)
	ours, theirs := net.Pipe() // in practice: a connection between two hosts

	replica := diskrepl.NewReplica(backup, theirs)
	go replica.Run()

	mirror := diskrepl.NewMirror(primary)
	link, err := mirror.Attach(ours, diskrepl.Options{Session: "1", Limit: 1 << 20, Lost: func(err error) { log.Print(err) }})
	if err != nil {
		log.Fatal(err)
	}
	if err := link.AwaitSync(); err != nil {
		log.Fatal(err)
	}
	checkpoint := func(epoch uint64) {
		// With the domain suspended:
		if err := link.Seal(epoch); err != nil {
			log.Fatal(err)
		}
		// At the backup, which then acknowledges the epoch:
		if err := replica.AwaitSealed(context.Background(), epoch); err != nil {
			log.Fatal(err)
		}
	}
	commit := func(epoch uint64) {
		link.Release(epoch)
		if err := replica.Commit(epoch); err != nil {
			log.Fatal(err)
		}
	}
	checkpoint(1) // the first copy
	commit(1)

	mirror.WriteAt([]byte("hello"), 4096, false)
	checkpoint(2)
	fmt.Printf("sealed:    %q\n", backup[4096:4101])
	commit(2)
	fmt.Printf("committed: %q\n", backup[4096:4101])

	link.Detach()
	if err := replica.Finish(2); err != nil { // takeover
		log.Fatal(err)
	}
	// Output:
	// sealed:    "\x00\x00\x00\x00\x00"
	// committed: "hello"
}
