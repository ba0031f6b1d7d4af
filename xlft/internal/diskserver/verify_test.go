package diskserver

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"xlft/diskrepl"
	"xlft/xlft/internal/disktest"
)

// verify returns what a Verify of the client finds, and how much it compared.
func (r *rig) verify(o Verification) (diff []diskrepl.Difference, compared diskrepl.Compared, err error) {
	err = r.client.Verify(r.t.Context(), o, func(f Finding) {
		if f.VDev != "xvda" {
			r.t.Errorf("a finding of disk %q", f.VDev)
		}
		diff = append(diff, f.Differences...)
		compared = f.Compared
	})
	return diff, compared, err
}

// In a whole session, between files: what changed behind the back of the receiver
// is found and repaired while the domain writes, and the session goes on.
func TestVerifySession(t *testing.T) {
	r := newRig(t, 20*time.Millisecond, 64<<20)
	if err := r.client.Open(t.Context(), "xvda"); err != nil {
		t.Fatal(err)
	}
	_, _, err := r.verify(Verification{})
	disktest.Refused(t, "without a session", err, "\"xl ft-start web1\"")
	r.protect()
	disk, stop := r.server.open["xvda"].repl, make(chan struct{})
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
				disk.WriteAt([]byte("the domain writes"), 1<<20+i*4099%(1<<20), i%16 == 0)
			}
		}
	}()
	want := diskrepl.Compared{Total: disktest.Size, Compared: disktest.Size}
	for range 5 {
		if diff, compared, err := r.verify(Verification{}); err != nil || len(diff) > 0 || compared != want {
			t.Fatalf("equal copies: %+v, %+v, %v", diff, compared, err)
		}
	}
	f, err := os.OpenFile(filepath.Join(r.b.Dir, "xvda"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{5, 3 << 20, disktest.Size - 1} {
		if _, err := f.WriteAt([]byte("?"), at); err != nil {
			t.Fatal(err)
		}
	}
	for _, repair := range []bool{false, true} {
		chunk := func(off int64) diskrepl.Difference {
			return diskrepl.Difference{Offset: off, Length: diskrepl.ChunkSize, Repaired: repair}
		}
		want := []diskrepl.Difference{chunk(0), chunk(3 << 20), chunk(disktest.Size - diskrepl.ChunkSize)}
		if diff, _, err := r.verify(Verification{VDev: "xvda", Repair: repair}); err != nil || !slices.Equal(diff, want) {
			t.Errorf("repair %v: %+v, %v", repair, diff, err)
		}
	}
	if diff, _, err := r.verify(Verification{}); err != nil || len(diff) > 0 {
		t.Errorf("repaired: %+v, %v", diff, err)
	}
	close(stop)
	<-wrote
	if st := r.session.Status(); !st.Protected || st.Generation != 1 {
		t.Errorf("the session did not last: %+v", st)
	}
	_, _, err = r.verify(Verification{VDev: "xvdz"})
	disktest.Refused(t, "a disk that there is not", err, "disk xvdz: ")

	// At this rate it would take an hour.
	time.AfterFunc(100*time.Millisecond, r.cut)
	if _, _, err := r.verify(Verification{Rate: 1000}); err == nil {
		t.Error("no error though the session ended")
	}
}

// Shared storage has one copy.
func TestVerifyShared(t *testing.T) {
	r := newRigOn(t, 20*time.Millisecond, 64<<20, true)
	r.protect()
	for _, vdev := range []string{"", "xvda"} {
		if _, _, err := r.verify(Verification{VDev: vdev}); err == nil || !strings.Contains(err.Error(), "one copy only") {
			t.Errorf("%q: %v", vdev, err)
		}
	}
}

// A session that has only begun has no copy that could be compared: that is not shared storage.
func TestVerifyTooEarly(t *testing.T) {
	s := &Server{session: &session{}}
	if err := s.Verify(t.Context(), Verification{}, nil); !errors.Is(err, errNotReplicated) {
		t.Errorf("%v", err)
	}
}
