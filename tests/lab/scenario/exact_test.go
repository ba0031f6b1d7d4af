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
func (fx *fixture) xvda() string {
	switch fx.kind {
	case mirror:
		return diskPath
	case volume:
		return volumePath
	}
	return lab.SAN
}

// junk fills some MiBs of a host's disk for the guest with random bytes.
func (fx *fixture) junk(h *lab.Host, mibs ...int) {
	fx.t.Helper()
	for _, at := range mibs {
		h.Must(fx.t, "dd", "if=/dev/urandom", "of="+fx.xvda(), "bs=1M", "count=1",
			fmt.Sprint("seek=", at), "iflag=fullblock", "oflag=direct", "conv=notrunc", "status=none")
	}
}

// disk returns the content of a host's disk. It bypasses the host's cache, which does not see the other host's writes.
func (fx *fixture) disk(h *lab.Host, path string) []byte {
	fx.t.Helper()
	out, err := h.Run(within(fx.t, patience), "sh", "-c", `dd if="$1" bs=1M iflag=direct status=none | gzip -1 -c`, "sh", path)
	check(fx.t, err)
	z, err := gzip.NewReader(strings.NewReader(out))
	check(fx.t, err)
	disk, err := io.ReadAll(z)
	check(fx.t, err)
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

func (fx *fixture) tally() *tally {
	fx.t.Helper()
	y := &tally{c: fx.dial()}
	check(fx.t, y.c.SetDeadline(time.Time{}))
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

// told returns the newest count that the guest has reported.
func (y *tally) told() (uint64, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.made, y.err
}

func (y *tally) await(fx *fixture, n uint64) {
	fx.t.Helper()
	fx.until(patience, func() error {
		got, err := y.told()
		if err != nil {
			fx.t.Fatal(err)
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

func testDiskExact(t *testing.T, fx *fixture) {
	fx.chooseSeed()
	random := rand.New(rand.NewPCG(*seed, 0))
	fx.junk(fx.A, 0, 20, 40)
	fx.junk(fx.B, 0, 30, 50)
	model := probe.NewModel(fx.disk(fx.home, fx.xvda()), *seed)
	fx.boot()
	for death := range *deaths {
		from, to := fx.home, fx.backup()
		to.Must(t, "mv", blockScript, blockScript+".real")
		check(t, to.WriteFile(within(t, soon), blockScript, []byte(fmt.Sprintf(snapScript, fx.xvda())), 0o755))
		// The first copy is made while the guest writes, which takes from the copying much of its host's one processor.
		check(t, fx.ask().StartPattern(*seed, 2))
		_, err := from.Run(within(t, 2*patience), "xl", "ft-start", fx.guest.Name)
		check(t, err)
		before, err := fx.ask().StopPattern()
		check(t, err)
		check(t, fx.ask().StartPattern(*seed, 1000))
		y := fx.tally()
		y.await(fx, before+10)
		<-time.After(time.Duration(random.Int64N(int64(3 * time.Second))))
		r := fx.status(from)
		if !r.Protected {
			t.Fatalf("not protected any more: %s", r.State)
		}
		from.Kill()
		told, err := y.told()
		check(t, err)
		fx.awaitTakeover(to)
		knows, err := fx.ask().PatternMade()
		check(t, err)
		to.Must(t, "systemctl", "kill", "--signal=CONT", "xlft-disk@web1.service")

		// The guest counts a write when it is acknowledged as durable. The next write may have reached the disk before the
		// checkpoint without the guest's knowledge: then the guest's driver issues it again. No other write is in flight.
		n, err := model.Find(fx.disk(to, resumedDisk), knows+1)
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
		y.await(fx, n+10)
		y.c.Close()
		_, err = fx.ask().StopPattern()
		check(t, err)
		fx.awaitDomains(to, fx.guest.Name)
		if death+1 < *deaths {
			fx.revive(from)
			fx.makeDisk(from)
			if fx.kind.mirrors() {
				fx.junk(from, 0, 25)
			}
		}
	}
	all, err := fx.ask().PatternMade()
	check(t, err)
	n, err := model.Find(fx.disk(fx.home, fx.xvda()), all)
	check(t, err)
	if n != all {
		t.Errorf("the disk has %d writes at the end, but the guest made %d", n, all)
	}
	t.Logf("after %d writes the disk is what they make of it", all)
}
