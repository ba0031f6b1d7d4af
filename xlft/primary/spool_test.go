package primary

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"xlft/savestream"

	"xlft/xlft/wire"
)

// stream writes checkpoints of so many pages each.
func stream(t *testing.T, w io.Writer, pages ...int) {
	t.Helper()
	enc := savestream.NewEncoder(w, savestream.Header{Version: 3, Type: savestream.HVM})
	must := func(err error) {
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
	}
	must(enc.Encode(savestream.Record{Type: savestream.StaticDataEnd}))
	for _, n := range pages {
		for ; n > 0; n -= min(n, 256) {
			k := min(n, 256)
			must(enc.WritePages(make([]savestream.PageEntry, k), make([]byte, k*savestream.PageSize)))
		}
		must(enc.Encode(savestream.Record{Type: savestream.HVMContext, Body: []byte("context")}))
		must(enc.Encode(savestream.Record{Type: savestream.Checkpoint}))
	}
}

// read returns epoch e from the spool.
func read(t *testing.T, s *spool, e uint64) []byte {
	t.Helper()
	var b []byte
	for {
		p, err := s.next(e)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, p.data...)
		s.recycle(p.data)
		if p.last {
			if p.stats.Bytes == 0 {
				t.Error("the last piece has no counts")
			}
			return b
		}
	}
}

func TestSpoolGivesTheStreamBack(t *testing.T) {
	var want bytes.Buffer
	stream(t, &want, 300, 1, 0, 700)
	s := newSpool(64 << 20)
	s.suspended()
	s.open(4)
	if n, err := s.ReadFrom(bytes.NewReader(want.Bytes())); err == nil || n == 0 {
		// All of it at once is what libxc never does: it waits at each
		// checkpoint.
		t.Errorf("took a second epoch before it was asked for: %d, %v", n, err)
	}
	s = newSpool(64 << 20)
	s.open(4)
	pr, pw := io.Pipe()
	go func() { stream(t, pw, 300, 1, 0, 700); pw.Close() }()
	done := make(chan error)
	go func() { _, err := s.ReadFrom(pr); done <- err }()
	var got []byte
	for e := range uint64(4) {
		got = append(got, read(t, s, e+1)...)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes came out, %d went in, or others", len(got), want.Len())
	}
}

func TestSpoolRefusesGarbage(t *testing.T) {
	s := newSpool(1 << 20)
	if _, err := s.ReadFrom(bytes.NewReader(make([]byte, 100))); !errors.Is(err, savestream.ErrMagic) {
		t.Errorf("error %v, want %v", err, savestream.ErrMagic)
	}
	if _, err := s.next(1); !errors.Is(err, savestream.ErrMagic) {
		t.Errorf("the reader hears %v", err)
	}
}

// While the domain runs, what is not sent holds the writer back; suspended, it
// never waits, up to the limit; beyond it the epoch goes out early.
func TestSpoolLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSpool(16 << 20)
		pr, pw := io.Pipe()
		go s.ReadFrom(pr)
		wrote := make(chan struct{})
		go func() { stream(t, pw, 5000, 5000); close(wrote) }() // 20 MB each
		synctest.Wait()
		if peak, _ := s.usage(); peak > liveLimit {
			t.Errorf("%d bytes wait while the domain runs", peak)
		}
		s.suspended()
		synctest.Wait()
		if peak, _ := s.usage(); peak > 16<<20 || peak < 15<<20 {
			t.Errorf("%d bytes wait while it is suspended, want nearly 16 MiB", peak)
		}
		s.open(1)
		read(t, s, 1)
		synctest.Wait()
		if _, over := s.usage(); over != 1 {
			t.Errorf("%d overflows, want 1: the second epoch does not fit", over)
		}
		var rest []byte
		go func() { rest = read(t, s, 2) }() // was opened by the overflow
		synctest.Wait()
		if rest != nil || s.size == 0 || s.size > wire.DataBody {
			t.Errorf("the end of an epoch was sent, or more than it waits (%d bytes), before the capture is done", s.size)
		}
		s.open(2)
		<-wrote
		pw.Close()
	})
}

// A reader that goes away frees the writer.
func TestSpoolFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSpool(1 << 20)
		pr, pw := io.Pipe()
		done := make(chan error, 1)
		go func() { _, err := s.ReadFrom(pr); pr.CloseWithError(io.ErrClosedPipe); done <- err }()
		go stream(t, pw, 5000)
		time.Sleep(time.Second)
		s.fail(errSpoolClosed)
		if err := <-done; !errors.Is(err, errSpoolClosed) {
			t.Errorf("the writer hears %v", err)
		}
	})
}
