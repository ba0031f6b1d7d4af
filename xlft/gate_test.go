package xlft_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"xlft/xlft"
)

// A recorder is a gate, and the domain's disks, that notes what it is asked.
type recorder struct {
	name        string
	log         *[]string
	err         error
	held, limit uint64
}

func (r *recorder) note(format string, args ...any) error {
	*r.log = append(*r.log, r.name+" "+fmt.Sprintf(format, args...))
	return r.err
}

func (r *recorder) Seal(e uint64) error         { return r.note("seal %d", e) }
func (r *recorder) Release(e uint64) error      { return r.note("release %d", e) }
func (r *recorder) Drain(context.Context) error { return r.note("drain") }
func (r *recorder) ReleaseAll() error           { return r.note("release all") }
func (r *recorder) Discard() error              { return r.note("discard") }
func (r *recorder) Close() error                { return r.note("close") }
func (r *recorder) Held() (held, limit uint64, err error) {
	return r.held, r.limit, r.err
}
func (r *recorder) Replicate(context.Context, string, func(error)) error { return nil }
func (r *recorder) End()                                                 {}
func (r *recorder) Progress() []xlft.DiskProgress                        { return nil }

// What is asked of all gates reaches network and disks in this order; an error
// of one keeps nothing from the other but a seal.
func TestGates(t *testing.T) {
	errNet, errDisk := errors.New("network"), errors.New("disk")
	for _, c := range []struct {
		what      string
		do        func(xlft.Gates) error
		net, disk error
		want      []string
	}{
		{"seal", func(g xlft.Gates) error { return g.Seal(3) }, nil, nil, []string{"net seal 3", "disk seal 3"}},
		{"seal, network fails", func(g xlft.Gates) error { return g.Seal(3) }, errNet, nil, []string{"net seal 3"}},
		{"seal, disk fails", func(g xlft.Gates) error { return g.Seal(3) }, nil, errDisk, []string{"net seal 3", "disk seal 3"}},
		{"release", func(g xlft.Gates) error { return g.Release(3) }, errNet, errDisk, []string{"net release 3", "disk release 3"}},
		{"drain", func(g xlft.Gates) error { return g.Drain(t.Context()) }, errNet, errDisk, []string{"net drain", "disk drain"}},
		{"release all", xlft.Gates.ReleaseAll, errNet, errDisk, []string{"net release all", "disk release all"}},
		{"discard", xlft.Gates.Discard, errNet, errDisk, []string{"disk discard", "net discard"}},
		{"close", xlft.Gates.Close, errNet, errDisk, []string{"net close", "disk close"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			var log []string
			net, disk := &recorder{name: "net", log: &log, err: c.net}, &recorder{name: "disk", log: &log, err: c.disk}
			err := c.do(xlft.Gates{Net: net, Disks: disk})
			if !slices.Equal(log, c.want) {
				t.Errorf("asked %q, want %q", log, c.want)
			}
			for _, r := range []*recorder{net, disk} {
				if asked := slices.ContainsFunc(log, func(l string) bool { return l[:3] == r.name[:3] }); asked && r.err != nil && !errors.Is(err, r.err) {
					t.Errorf("error %v lacks that of %s", err, r.name)
				}
			}

			// A domain without disks.
			log = nil
			c.do(xlft.Gates{Net: net})
			if len(log) != 1 || log[0][:3] != "net" {
				t.Errorf("without disks: %q", log)
			}
		})
	}
}

// The gate that is fullest, in proportion to its limit, decides.
func TestGatesHeld(t *testing.T) {
	for _, c := range []struct{ netHeld, netLimit, diskHeld, diskLimit, held, limit uint64 }{
		{10, 100, 0, 0, 10, 100},
		{10, 100, 5, 20, 5, 20},
		{30, 100, 5, 20, 30, 100},
		{0, 0, 5, 20, 5, 20}, // a domain without a network
		{0, 100, 0, 20, 0, 100},
	} {
		var log []string
		g := xlft.Gates{Net: &recorder{log: &log, held: c.netHeld, limit: c.netLimit}, Disks: &recorder{log: &log, held: c.diskHeld, limit: c.diskLimit}}
		if held, limit, err := g.Held(); held != c.held || limit != c.limit || err != nil {
			t.Errorf("%+v: held %d of %d, %v", c, held, limit, err)
		}
	}
	var log []string
	g := xlft.Gates{Net: &recorder{log: &log, limit: 100}, Disks: &recorder{log: &log, err: errors.New("no answer")}}
	if _, _, err := g.Held(); err == nil {
		t.Error("a gate that can't be asked is no error")
	}
}
