//go:build lab

package scenario

import (
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/probe"
)

// xvda is where a host has the guest's first disk.
func (w *world) xvda() string {
	switch w.kind {
	case mirror:
		return diskPath
	case volume:
		return volumePath
	}
	return lab.SAN
}

// junk puts into some MiBs of a host's disk for the guest what no other one has.
func (w *world) junk(h *lab.Host, mibs ...int) {
	w.t.Helper()
	for _, at := range mibs {
		h.Must(w.t, "dd", "if=/dev/urandom", "of="+w.xvda(), "bs=1M", "count=1", fmt.Sprint("seek=", at), "iflag=fullblock", "oflag=direct", "conv=notrunc", "status=none")
	}
}

// disk returns what a file on a host has, which is a disk. It is read past the host's cache, which knows nothing of what
// the other host writes.
func (w *world) disk(h *lab.Host, path string) []byte {
	w.t.Helper()
	out, err := h.Run(within(w.t, patience), "sh", "-c", `dd if="$1" bs=1M iflag=direct status=none | gzip -1 -c`, "sh", path)
	check(w.t, err)
	z, err := gzip.NewReader(strings.NewReader(out))
	check(w.t, err)
	disk, err := io.ReadAll(z)
	check(w.t, err)
	return disk
}

const (
	blockScript = "/etc/xen/scripts/block-xlft"
	resumedDisk = "/root/web1-xvda.resumed"

	// snapScript stands in for block-xlft on a backup. libxl calls that for a takeover when the disk is the domain's
	// already and the domain does not run yet. Once the disk is kept, its server is stopped, so that the domain makes
	// no write before it was asked how many it knows of. Only after the device was opened: the first one to open it
	// has the kernel read from it, and Xen's backend must not wait for that, because all others wait for it.
	snapScript = `#!/bin/sh
real=$0.real disk=%s kept=` + resumedDisk + `
if [ "$1" != add ] || [ -e "$kept" ]; then
	exec "$real" "$@"
fi
set -e
dd if="$disk" of="$kept" bs=1M iflag=direct status=none
"$real" "$@"
blockdev --getsize64 "$(xenstore-read "$XENBUS_PATH/physical-device-path")" >&2
systemctl kill --signal=STOP xlft-disk@web1.service
`
)

// A tally asks the guest without pause how many writes of the pattern it has made.
type tally struct {
	c    *probe.Client
	mu   sync.Mutex
	made uint64
	err  error
}

func (w *world) tally() *tally {
	w.t.Helper()
	y := &tally{c: w.dial()}
	check(w.t, y.c.SetDeadline(time.Time{}))
	go func() {
		for {
			n, err := y.c.PatternMade()
			y.mu.Lock()
			y.made, y.err = max(y.made, n), err
			y.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return y
}

// told returns the newest count that came out of the guest.
func (y *tally) told() (uint64, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.made, y.err
}

func (y *tally) await(w *world, n uint64) {
	w.t.Helper()
	w.until(patience, func() error {
		got, err := y.told()
		if err != nil {
			w.t.Fatal(err)
		}
		if got < n {
			return fmt.Errorf("the guest told of %d writes, of %d", got, n)
		}
		return nil
	})
}

// The host dies at any moment while the guest writes to its disk, one write after the other: the disk that the domain
// runs on from is, byte for byte, what the first so many writes make of the disk that it began with. All that the guest
// knew of at the checkpoint are there, and at most the one that was under way then. Each host begins with junk of
// its own on its disk. Shared storage is as the backup leaves it, which writes what its primary may not have written.
func TestDiskExact(t *testing.T) {
	lab.Long(t)
	eachStorage(t, mirror, []storage{mirror, shared}, testDiskExact)
}

func testDiskExact(t *testing.T, w *world) {
	w.chooseSeed()
	random := rand.New(rand.NewPCG(*seed, 0))
	w.junk(w.A, 0, 20, 40)
	w.junk(w.B, 0, 30, 50)
	model := probe.NewModel(w.disk(w.home, w.xvda()), *seed)
	w.boot()
	for death := range *deaths {
		from, to := w.home, w.backup()
		to.Must(t, "mv", blockScript, blockScript+".real")
		check(t, to.WriteFile(within(t, soon), blockScript, []byte(fmt.Sprintf(snapScript, w.xvda())), 0o755))
		// The first copy is made while the guest writes, which takes from the copying much of its host's one processor.
		check(t, w.ask().StartPattern(*seed, 2))
		_, err := from.Run(within(t, 2*patience), "xl", "ft-start", w.guest.Name)
		check(t, err)
		before, err := w.ask().StopPattern()
		check(t, err)
		check(t, w.ask().StartPattern(*seed, 1000))
		y := w.tally()
		y.await(w, before+10)
		<-time.After(time.Duration(random.Int64N(int64(3 * time.Second))))
		r := w.status(from)
		if !r.Protected {
			t.Fatalf("not protected any more: %s", r.State)
		}
		from.Kill()
		told, err := y.told()
		check(t, err)
		w.awaitTakeover(to)
		knows, err := w.ask().PatternMade()
		check(t, err)
		to.Must(t, "systemctl", "kill", "--signal=CONT", "xlft-disk@web1.service")

		// The guest counts a write when it was told that it is durable. The one after that may have reached the disk
		// before the checkpoint, without the guest hearing of it: then its driver asks for it again. No other is under
		// way.
		n, err := model.Find(w.disk(to, resumedDisk), knows+1)
		switch {
		case err != nil:
			t.Fatalf("the disk that the domain ran on from: %v (the guest knew of %d writes, %d were told of)", err, knows, told)
		case n < knows:
			t.Errorf("the disk has %d writes, but the guest knew of %d", n, knows)
		case n < told:
			t.Errorf("the disk has %d writes, but a client was told of %d", n, told)
		}
		t.Logf("death %d: %s died after checkpoint %d; clients were told of %d writes, the guest knew of %d, the disk has exactly %d",
			death+1, from.Name(), r.Epoch, told, knows, n)
		y.await(w, n+10)
		y.c.Close()
		_, err = w.ask().StopPattern()
		check(t, err)
		w.awaitDomains(to, w.guest.Name)
		if death+1 < *deaths {
			w.revive(from)
			w.makeDisk(from)
			if w.kind.mirrors() {
				w.junk(from, 0, 25)
			}
		}
	}
	all, err := w.ask().PatternMade()
	check(t, err)
	n, err := model.Find(w.disk(w.home, w.xvda()), all)
	check(t, err)
	if n != all {
		t.Errorf("the disk has %d writes at the end, but the guest made %d", n, all)
	}
	t.Logf("after %d writes the disk is what they make of it", all)
}
