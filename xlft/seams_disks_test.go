package xlft_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"xlft/diskrepl"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
)

// A failingCopy is a backup's copy whose storage fails once: one flush says so,
// as the kernel does.
type failingCopy struct {
	backup.DiskCopy
	f *failure
}

type failure struct {
	mu      sync.Mutex
	next    error // of the next flush
	written int64 // bytes of first copies
	records []xlft.DiskRecord
	was     *xlft.DiskRecord // said of the copy, if not nil
	durable diskrepl.EpochStore
}

func (c failingCopy) Durable() diskrepl.EpochStore {
	if c.f.durable != nil {
		return c.f.durable
	}
	return c.DiskCopy.Durable()
}

func (c failingCopy) Was() xlft.DiskRecord {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.f.was != nil {
		return *c.f.was
	}
	return c.DiskCopy.Was()
}

// newest returns what was recorded last.
func (f *failure) newest() xlft.DiskRecord {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.records[len(f.records)-1]
}

func (c failingCopy) Flush() error {
	c.f.mu.Lock()
	err := c.f.next
	c.f.next = nil
	c.f.mu.Unlock()
	if err != nil {
		return err
	}
	return c.DiskCopy.Flush()
}

func (c failingCopy) WriteAt(b []byte, off int64, fua bool) error {
	c.f.mu.Lock()
	if len(b) == diskrepl.ChunkSize { // of a first copy: the domain's writes are smaller
		c.f.written += int64(len(b))
	}
	c.f.mu.Unlock()
	return c.DiskCopy.WriteAt(b, off, fua)
}

func (c failingCopy) Zero(off, n int64, keep, fua bool) error {
	c.f.mu.Lock()
	if n == diskrepl.ChunkSize {
		c.f.written += n
	}
	c.f.mu.Unlock()
	return c.DiskCopy.Zero(off, n, keep, fua)
}

func (c failingCopy) Record(r xlft.DiskRecord) error {
	c.f.mu.Lock()
	c.f.records = append(c.f.records, r)
	c.f.mu.Unlock()
	return c.DiskCopy.Record(r)
}

// The storage of the backup's copy fails in a session. The copy is recorded as
// inconsistent, with the reason. The next session copies all of the disk, and
// only then is the copy recorded as good for a domain.
func TestFailedCopyIsRecorded(t *testing.T) {
	seams(t, func(m *seam) {
		f := &failure{}
		m.disks(false, func(c backup.DiskCopy) backup.DiskCopy { return failingCopy{c, f} })
		f.mu.Lock()
		f.next, f.records, f.written = errors.New("medium error"), nil, 0
		f.mu.Unlock()
		generation := m.session.Status().Generation
		begun := time.Now()
		for st := m.session.Status(); !st.Protected || st.Generation == generation; st = m.session.Status() {
			if time.Sleep(50 * time.Millisecond); time.Since(begun) > time.Minute {
				t.Fatalf("not protected again: %+v", st)
			}
		}
		time.Sleep(3 * time.Second)
		m.await(m.session, primary.Protected)
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.records) < 2 {
			t.Fatalf("recorded: %+v", f.records)
		}
		first, last := f.records[0], f.records[len(f.records)-1]
		if first.State != xlft.Inconsistent || !strings.Contains(first.Failed, "medium error") {
			t.Errorf("recorded first: %+v", first)
		}
		if last.State != xlft.Consistent || last.Failed != "" {
			t.Errorf("recorded last: %+v", last)
		}
		if all := m.domain.OfferedDisks()[0].Size; f.written < all {
			t.Errorf("%d bytes of %d were copied", f.written, all)
		}
	}, "cas")
}

// The same with a journal on stable storage, which has what the storage lost: the
// copy is recorded as failed, and can be promoted.
func TestFailedCopyKeepsJournal(t *testing.T) {
	seams(t, func(m *seam) {
		f := &failure{durable: diskrepl.EpochDir(t.TempDir())}
		m.disks(false, func(c backup.DiskCopy) backup.DiskCopy { return failingCopy{c, f} })
		f.mu.Lock()
		f.next, f.records = errors.New("medium error"), nil
		f.mu.Unlock()
		begun := time.Now()
		for recorded := 0; recorded == 0; {
			time.Sleep(50 * time.Millisecond)
			f.mu.Lock()
			recorded = len(f.records)
			f.mu.Unlock()
			if time.Since(begun) > time.Minute {
				t.Fatal("nothing is recorded")
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if r := f.records[0]; r.State != xlft.Consistent || !strings.Contains(r.Failed, "medium error") || r.SyncPoint.Epoch != 0 || r.Data.ID == "" {
			t.Errorf("recorded: %+v", r)
		}
	}, "cas")
}

// The copy turns out to be newer than the primary's disk: the backup refuses, and
// names the command that gives the copy up.
func TestNewerCopyIsRefused(t *testing.T) {
	seams(t, func(m *seam) {
		f := &failure{}
		m.disks(false, func(c backup.DiskCopy) backup.DiskCopy { return failingCopy{c, f} })
		copied := f.newest().Data
		if copied.ID == "" || copied.Given {
			t.Errorf("the copy is recorded as %+v", copied)
		}
		f.mu.Lock()
		f.was = &xlft.DiskRecord{State: xlft.UpToDate, Data: xlft.DataGen{}.Next()}
		f.next = errors.New("so that there is another session")
		n := len(f.records)
		f.mu.Unlock()
		begun := time.Now()
		for !strings.Contains(m.session.Status().LastError, "xlft disk invalidate "+simDomain) {
			if time.Sleep(50 * time.Millisecond); time.Since(begun) > time.Minute {
				t.Fatalf("not refused: %+v", m.session.Status())
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, r := range f.records[n:] {
			if r.Failed == "" { // of the session that failed
				t.Errorf("the newer copy is recorded as %+v", r)
			}
		}
	}, "cas")
}

// A host that takes a domain over makes a new generation of its disks' data,
// which comes from the primary's.
func TestTakeoverMakesGeneration(t *testing.T) {
	seams(t, func(m *seam) {
		f := &failure{}
		m.disks(false, func(c backup.DiskCopy) backup.DiskCopy { return failingCopy{c, f} })
		copied := f.newest().Data
		m.a.Crash()
		begun := time.Now()
		for f.newest().State != xlft.UpToDate {
			if time.Sleep(50 * time.Millisecond); time.Since(begun) > time.Minute {
				t.Fatalf("no takeover: %+v", f.newest())
			}
		}
		took := f.newest().Data
		if took.ID == copied.ID || len(took.Past) == 0 || took.Past[0] != copied.ID {
			t.Errorf("taken over: %+v after %+v", took, copied)
		}
	}, "cas")
}
