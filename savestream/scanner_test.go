package savestream_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"xlft/savestream"
)

type markAt struct {
	mark savestream.Mark
	off  int64
}

// scan feeds b in pieces of the size that next says and returns the marks.
func scan(b []byte, next func() int) ([]markAt, *savestream.Scanner, error) {
	var s savestream.Scanner
	var marks []markAt
	for len(b) > 0 {
		p := b[:min(next(), len(b))]
		for len(p) > 0 {
			n, m, err := s.Scan(p)
			if err != nil {
				return marks, &s, err
			}
			p, b = p[n:], b[n:]
			if m != savestream.MarkNone {
				marks = append(marks, markAt{m, s.Offset()})
			} else if len(p) > 0 {
				return marks, &s, errors.New("Scan stopped without a mark")
			}
			if m == savestream.MarkEnd {
				return marks, &s, s.Close()
			}
		}
	}
	return marks, &s, s.Close()
}

func scanAll(b []byte, piece int) error {
	_, _, err := scan(b, func() int { return piece })
	return err
}

// decodeMarks is scan's result by way of a Decoder.
func decodeMarks(b []byte) ([]markAt, error) {
	d := savestream.NewDecoder(bytes.NewReader(b))
	var marks []markAt
	for {
		rec, err := d.Next()
		if err == io.EOF {
			return marks, nil
		}
		if err != nil {
			return marks, err
		}
		switch rec.Type {
		case savestream.Checkpoint:
			marks = append(marks, markAt{savestream.MarkCheckpoint, d.Offset()})
		case savestream.End:
			marks = append(marks, markAt{savestream.MarkEnd, d.Offset()})
		}
	}
}

func TestScannerStats(t *testing.T) {
	full := encode(t, v3, checkpointed(t, 2)...)
	var s savestream.Scanner
	n, m, err := s.Scan(full)
	if err != nil || m != savestream.MarkCheckpoint {
		t.Fatalf("got mark %v, error %v", m, err)
	}
	want := savestream.Stats{Records: 8, PFNs: 3, Pages: 2, PageBytes: 8192, Bytes: uint64(n)}
	if got := s.Stats(); got != want {
		t.Errorf("first epoch: got %+v, want %+v", got, want)
	}
	first := want
	m2, m, err := s.Scan(full[n:])
	if err != nil || m != savestream.MarkCheckpoint {
		t.Fatalf("got mark %v, error %v", m, err)
	}
	want = savestream.Stats{Records: 5, PFNs: 3, Pages: 2, PageBytes: 8192, Bytes: uint64(m2)}
	if got := s.Stats(); got != want {
		t.Errorf("second epoch: got %+v, want %+v", got, want)
	}
	if got := s.Total(); got.Records != first.Records+want.Records || got.Bytes != uint64(n+m2) {
		t.Errorf("total: got %+v", got)
	}
	if n, m, err := s.Scan(full[n+m2:]); n != 8 || m != savestream.MarkEnd || err != nil {
		t.Errorf("END: got %d, %v, %v", n, m, err)
	}
	if _, _, err := s.Scan([]byte{0}); !errors.Is(err, savestream.ErrTrailing) {
		t.Errorf("byte after END: got %v", err)
	}
}

func TestScannerAnyPieces(t *testing.T) {
	full := encode(t, v3, checkpointed(t, 3)...)
	want, err := decodeMarks(full)
	if err != nil {
		t.Fatal(err)
	}
	for piece := 1; piece < 70; piece++ {
		got, _, err := scan(full, func() int { return piece })
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("pieces of %d: got %v, %v, want %v", piece, got, err, want)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		got, _, err := scan(full, func() int { return 1 + rng.IntN(6000) })
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
	}
}

func TestScannerDoesNotAllocate(t *testing.T) {
	full := encode(t, v3, checkpointed(t, 1)...)
	if n := testing.AllocsPerRun(100, func() {
		var s savestream.Scanner
		for b := full; len(b) > 0; {
			n, _, err := s.Scan(b)
			if err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
	}); n > 0 {
		t.Errorf("%v allocations for a stream", n)
	}
}

// FuzzScanner: Scanner and Decoder accept the same streams and see the same
// boundaries, whatever the pieces.
func FuzzScanner(f *testing.F) {
	f.Add(encode(f, v3, plainHVM(f)...), uint64(1))
	f.Add(encode(f, savestream.Header{Version: 3, Type: savestream.PV}, plainPV(f)...), uint64(2))
	f.Add(encode(f, v3, checkpointed(f, 2)...), uint64(3))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		want, werr := decodeMarks(b)
		rng := rand.New(rand.NewPCG(seed, 0))
		got, _, gerr := scan(b, func() int { return 1 + rng.IntN(5000) })
		if (werr == nil) != (gerr == nil) {
			t.Fatalf("Decoder says %v, Scanner %v", werr, gerr)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("Decoder saw %v, Scanner %v", want, got)
		}
		for _, target := range []error{io.ErrUnexpectedEOF, savestream.ErrOrder, savestream.ErrMandatory} {
			if werr != nil && errors.Is(werr, target) && target != io.ErrUnexpectedEOF && !errors.Is(gerr, target) {
				t.Fatalf("Decoder says %v, Scanner %v", werr, gerr)
			}
		}
	})
}
