package diskserver

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/internal/disktest"
	"xlft/xlft/primary"
)

func (h hostDir) record(t *testing.T) xlft.DiskRecord {
	t.Helper()
	r, err := h.Store.LoadDisk("web1", "xvda")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The host that was the primary before a takeover is back, and protects the
// domain from its old disk: the newer copy is not overwritten before somebody
// says so there.
func TestNewerCopyIsKept(t *testing.T) {
	r := newRig(t, 20*time.Millisecond, 64<<20)
	old := xlft.DataGen{}.Next()
	newer := xlft.DiskRecord{State: xlft.UpToDate, Data: old.Next()}
	if err := r.a.Store.SaveDisk("web1", "xvda", xlft.DiskRecord{State: xlft.UpToDate, Data: old}); err != nil {
		t.Fatal(err)
	}
	if err := r.b.Store.SaveDisk("web1", "xvda", newer); err != nil {
		t.Fatal(err)
	}
	was := r.b.image()
	if err := r.client.Open(t.Context(), "xvda"); err != nil {
		t.Fatal(err)
	}
	go func() {
		r.ended <- r.session.Run(r.pa.Context())
		close(r.ended)
	}()
	err := <-r.ended
	disktest.Refused(t, "protection from the old disk", err, "xlft disk invalidate web1/xvda")
	if got := r.b.record(t); got.State != newer.State || got.Data.ID != newer.Data.ID || !bytes.Equal(r.b.image(), was) {
		t.Errorf("the newer copy is recorded as %+v", got)
	}
	if err := old.MayOverwrite(r.b.record(t)); !errors.Is(err, xlft.ErrNewerHere) {
		t.Error(err)
	}
	patience := time.After(20 * time.Second)
	for err = r.copies.Invalidate("web1", "xvda"); err != nil; err = r.copies.Invalidate("web1", "xvda") {
		select {
		case <-patience:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond): // the session is ending
		}
	}
	if err := old.MayOverwrite(r.b.record(t)); err != nil {
		t.Errorf("given up, and %v", err)
	}
}

// The generations of a disk's data in its life: the backup's copy has the
// primary's; a primary that runs on alone makes a new one, and so does one whose
// domain is started anew, and a takeover.
func TestDataGenerations(t *testing.T) {
	r := newRig(t, 20*time.Millisecond, 64<<20)
	r.protect()
	given := r.a.record(t).Data
	if !given.Given || given.ID == "" {
		t.Errorf("in a session: %+v", given)
	}
	copied := func() bool {
		b := r.b.record(t)
		return b.State == xlft.Consistent && b.Data.ID == r.a.record(t).Data.ID
	}
	r.await("the copy's record", func(primary.Status) bool { return copied() })
	if err := r.client.ReleaseAll(); err != nil {
		t.Fatal(err)
	}
	r.server.recording.Wait()
	alone := r.a.record(t).Data
	if alone.ID == given.ID || alone.Given || len(alone.Past) != 1 || alone.Past[0] != given.ID {
		t.Errorf("alone: %+v after %+v", alone, given)
	}
	if err := r.client.ReleaseAll(); err != nil {
		t.Fatal(err)
	}
	r.server.recording.Wait()
	if again := r.a.record(t).Data; again.ID != alone.ID {
		t.Errorf("alone for longer: %+v after %+v", again, alone)
	}
	if _, err := r.server.giveData("xvda"); err != nil {
		t.Fatal(err)
	}
	// The domain is started anew.
	if err := r.client.Detach(t.Context(), "xvda", Operator); err != nil {
		t.Fatal(err)
	}
	<-r.server.Idle()
	r.stop()
	r.server, r.stop = r.a.serve(r.dial)
	if err := r.client.Open(t.Context(), "xvda"); err != nil {
		t.Fatal(err)
	}
	if anew := r.a.record(t).Data; anew.ID == alone.ID || anew.Past[0] != alone.ID {
		t.Errorf("started anew: %+v after %+v", anew, alone)
	}
	r.await("protected again", func(st primary.Status) bool { return st.Protected && copied() })
	if _, err := r.session.Failover(t.Context()); err != nil {
		t.Fatal(err)
	}
	last, b := r.a.record(t).Data, r.b.record(t)
	if b.State != xlft.UpToDate || b.Data.ID == last.ID || b.Data.Past[0] != last.ID {
		t.Errorf("taken over: %+v after %+v", b, last)
	}
	disktest.Refused(t, "back", b.Data.MayOverwrite(r.a.record(t)), "")
}
