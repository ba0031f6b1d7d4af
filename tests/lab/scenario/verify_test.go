//go:build lab

package scenario

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"xlft/tests/lab"
)

// compared is what "xlft disk verify --json" prints, as far as it is looked at here.
type compared struct {
	Disks []struct {
		VDev        string `json:"vdev"`
		Compared    int64  `json:"compared"`
		Differences []struct {
			Offset   int64 `json:"offset"`
			Repaired bool  `json:"repaired"`
		} `json:"differences"`
	} `json:"disks"`
}

// verify compares the guest's disks, and returns the exit status too.
func (fx *fixture) verify(flags ...string) (c compared, status int) {
	fx.t.Helper()
	begun := time.Now()
	out, err := fx.home.Run(within(fx.t, patience), append([]string{"xlft", "disk", "verify", "--json", fx.guest.Name}, flags...)...)
	var ce *lab.CommandError
	if errors.As(err, &ce) {
		status = ce.Status.Code
	} else {
		check(fx.t, err)
	}
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		fx.t.Fatalf("exit status %d: %v\n%s\n%v", status, err, out, ce)
	}
	fx.t.Logf("verify %v: exit status %d after %v: %s", flags, status, round(time.Since(begun)), out)
	return c, status
}

// The copies are compared while the guest writes: they are equal. Then something else changes the backup's copy in two
// places: these are named, and mended by --repair; the guest stays protected, and after a takeover it has what it wrote.
func TestDiskVerify(t *testing.T) {
	lab.Long(t)
	fx := diskFixture(t)
	fx.boot()
	fx.protect()
	all := fx.scribes(6, 1)
	all.await(fx, 3)
	if c, status := fx.verify(); status != 0 || len(c.Disks) != 1 || len(c.Disks[0].Differences) != 0 || c.Disks[0].Compared != diskMiB<<20 {
		t.Errorf("exit status %d, %+v", status, c)
	}
	at := []int64{40 << 20, 50<<20 + 64<<10} // beyond what the scribes write
	for _, off := range at {
		fx.backup().Must(t, "dd", "if=/dev/urandom", "of="+diskPath, "bs=4096", "count=1", "conv=notrunc,fsync", "oflag=seek_bytes", "seek="+strconv.FormatInt(off, 10))
	}
	for _, flags := range [][]string{nil, {"--repair"}} {
		c, status := fx.verify(flags...)
		var found []int64
		for _, d := range c.Disks {
			for _, r := range d.Differences {
				found = append(found, r.Offset)
				if r.Repaired != (len(flags) > 0) {
					t.Errorf("%v: %+v", flags, r)
				}
			}
		}
		if status != 1 || !slices.Equal(found, at) {
			t.Errorf("%v: exit status %d, ranges at %v, want %v", flags, status, found, at)
		}
	}
	if c, status := fx.verify("--rate", "20MiB"); status != 0 {
		t.Errorf("after the repair: exit status %d, %+v", status, c)
	}
	if r := fx.status(fx.home); !r.Protected {
		t.Errorf("not protected any more: %s", r.State)
	}
	all.more(fx, 3)
	from, to := fx.home, fx.backup()
	from.Kill()
	fx.awaitTakeover(to)
	all.more(fx, 3)
	all.end(fx)
	all.judge(fx)
}
