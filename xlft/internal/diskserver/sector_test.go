package diskserver

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/disktest"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// A sectorDisk is a disk with sectors of some size that begins with some bytes.
type sectorDisk struct {
	sector, size int64
	b            []byte
}

func (d sectorDisk) Name() string  { return "/dev/disk" }
func (d sectorDisk) Size() int64   { return d.size }
func (d sectorDisk) Sector() int64 { return d.sector }
func (d sectorDisk) ReadAt(p []byte, off int64) error {
	clear(p)
	if off < int64(len(d.b)) {
		copy(p, d.b[off:])
	}
	return nil
}

// The sectors that a domain sees stay what they were, whatever the storage has.
func TestSectorOf(t *testing.T) {
	gpt := func(at int) []byte { return append(make([]byte, at), "EFI PART\x00\x00\x01\x00"...) }
	served, recorded := xlft.DiskRecord{State: xlft.UpToDate}, xlft.DiskRecord{Sector: 4096}
	given := xlft.DiskRecord{Data: xlft.DataGen{ID: "1"}}
	for _, c := range []struct {
		name string
		disk sectorDisk
		conf int
		rec  xlft.DiskRecord
		want int
		err  string
	}{
		{"a file", sectorDisk{512, 1 << 20, nil}, 0, xlft.DiskRecord{}, 512, ""},
		{"a new volume", sectorDisk{4096, 1 << 20, nil}, 0, xlft.DiskRecord{}, 4096, ""},
		{"a partition table for 4096", sectorDisk{4096, 1 << 20, gpt(4096)}, 0, xlft.DiskRecord{}, 4096, ""},
		{"a partition table for 512", sectorDisk{4096, 1 << 20, gpt(512)}, 0, xlft.DiskRecord{}, 512, ""},
		{"content that does not say", sectorDisk{4096, 1 << 20, []byte("boot")}, 0, xlft.DiskRecord{}, 0, "sector_size = 4096 if the domain used it without xlft"},
		{"the same, configured", sectorDisk{4096, 1 << 20, []byte("boot")}, 512, xlft.DiskRecord{}, 512, ""},
		{"served by an earlier version", sectorDisk{4096, 1 << 20, gpt(4096)}, 0, served, 512, ""},
		{"replicated by an earlier version", sectorDisk{4096, 1 << 20, nil}, 0, given, 512, ""},
		{"a copy of a disk with 4096", sectorDisk{512, 1 << 20, nil}, 0, recorded, 4096, ""},
		{"the configuration comes first", sectorDisk{512, 1 << 20, nil}, 512, recorded, 512, ""},
		{"an odd size", sectorDisk{512, 1<<20 + 512, nil}, 4096, xlft.DiskRecord{}, 0, "no multiple of its sectors' 4096"},
		{"a file of an odd size", sectorDisk{512, 1<<20 + 100, nil}, 0, xlft.DiskRecord{}, 512, ""},
	} {
		got, err := sectorOf(c.disk, config.Disk{Sector: c.conf}, c.rec)
		if got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
		disktest.Refused(t, c.name, err, c.err)
	}
}

// sectors sets the size of a host's sectors.
func (h hostDir) sectors(n int) {
	d := h.Conf.Domains["web1"].Disks["xvda"]
	d.Sector = n
	h.Conf.Domains["web1"].Disks["xvda"] = d
}

// A disk with sectors of 4096 bytes has them on the backup too, after a takeover
// and without a word in the configuration there. A backup that is configured
// otherwise refuses it, and so is one that knows nothing of sectors.
func TestSectorsAreThePrimarys(t *testing.T) {
	r := newRig(t, 20e6, 64<<20)
	r.a.sectors(4096)
	r.client.order.Disks[0].Sector = 4096
	offer := r.client.order.Disks[0]
	r.b.sectors(512)
	disktest.Refused(t, "other sectors", r.copies.Check("web1", offer), "sector_size = 4096 in [domain.web1.disk.xvda]")
	offer.Sector = 0
	disktest.Refused(t, "a primary that does not say", r.copies.Check("web1", offer), "")
	r.b.sectors(4096)
	disktest.Refused(t, "a primary that does not say, for 4096", r.copies.Check("web1", offer), "sector_size = 512 in")
	r.b.sectors(0)
	disktest.Refused(t, "an old backup", knowsSectors(4096, []string{wire.FeatureVerify}), "Install this version")
	disktest.Refused(t, "an old backup, sectors of 512", knowsSectors(512, nil), "")

	r.protect()
	if st := r.server.Status(); len(st) != 1 || st[0].Sector != 4096 {
		t.Errorf("served as %+v", st)
	}
	at := r.session.Status().Epoch
	r.await("more epochs", func(st primary.Status) bool { return st.Epoch > at+1 })
	if _, err := r.session.Failover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}
	other, stop := r.b.serve(nil)
	defer stop()
	if err := other.Open("xvda"); err != nil {
		t.Fatal(err)
	}
	if st := other.Status(); len(st) != 1 || st[0].Sector != 4096 {
		t.Errorf("the other host serves %+v", st)
	}
}

// A disk server of an order that was made for other sectors does not begin.
func TestOfferOfOtherSectors(t *testing.T) {
	r := newRig(t, 20e6, 64<<20)
	r.a.sectors(4096) // the offer says 512
	if err := r.client.Open(t.Context(), "xvda"); err != nil {
		t.Fatal(err)
	}
	close(r.ended)
	err := r.client.Replicate(t.Context(), "1", func(error) {})
	disktest.Refused(t, "an offer of other sectors", err, "it was offered with sectors of 512 bytes, and has 4096")
}

// A device that a domain has keeps its sectors when its server is started again,
// whatever the configuration says by then; what an earlier version left is of 512.
func TestReattachKeepsSectors(t *testing.T) {
	for _, old := range []bool{false, true} {
		h := newHostDir(t, 'a')
		devs := &fakeDevices{}
		s := h.server(devs)
		want, other := 4096, 512
		if old {
			want, other = 512, 4096
		}
		h.sectors(want)
		if _, err := s.Attach("xvda", User{Name: Operator}); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if old { // which said nothing of sectors
			b, err := os.ReadFile(s.AttachedFile)
			if err != nil {
				t.Fatal(err)
			}
			b = bytes.Replace(b, []byte(`,"sector":512`), nil, 1)
			if strings.Contains(string(b), "sector") || !json.Valid(b) || os.WriteFile(s.AttachedFile, b, 0o600) != nil {
				t.Fatalf("%s", b)
			}
		}
		h.sectors(other)
		s = h.server(devs)
		if err := s.Recover(); err != nil {
			t.Fatal(err)
		}
		if st := s.Status(); len(st) != 1 || st[0].Sector != want {
			t.Errorf("served again as %+v, want sectors of %d", st, want)
		}
		s.Close()
	}
}
