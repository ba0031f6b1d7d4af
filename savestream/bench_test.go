package savestream_test

import (
	"bytes"
	"io"
	"testing"

	"xlft/savestream"
)

// benchStream is an epoch of 64 MiB in records of 1024 pages, as libxc makes
// them.
func benchStream(tb testing.TB) ([]byte, []savestream.Record) {
	recs := hvmStatic()
	entries := make([]savestream.PageEntry, 1024)
	for i := range 16 {
		for j := range entries {
			entries[j].PFN = uint64(i*1024 + j)
		}
		recs = append(recs, pages(tb, entries, make([]byte, 1024*savestream.PageSize)))
	}
	recs = append(recs, hvmContext()...)
	recs = append(recs, rec(savestream.Checkpoint), rec(savestream.End))
	return encode(tb, v3, recs...), recs
}

func BenchmarkMemmove(b *testing.B) {
	full, _ := benchStream(b)
	to := make([]byte, len(full))
	b.SetBytes(int64(len(full)))
	for b.Loop() {
		copy(to, full)
	}
}

// BenchmarkScan reads in pieces of 1 MiB, a pipe's worth.
func BenchmarkScan(b *testing.B) {
	full, _ := benchStream(b)
	b.SetBytes(int64(len(full)))
	b.ReportAllocs()
	for b.Loop() {
		var s savestream.Scanner
		for p := full; len(p) > 0; {
			n, _, err := s.Scan(p[:min(len(p), 1<<20)])
			if err != nil {
				b.Fatal(err)
			}
			p = p[n:]
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	full, _ := benchStream(b)
	b.SetBytes(int64(len(full)))
	b.ReportAllocs()
	for b.Loop() {
		d := savestream.NewDecoder(bytes.NewReader(full))
		for {
			if _, err := d.Next(); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	full, recs := benchStream(b)
	b.SetBytes(int64(len(full)))
	b.ReportAllocs()
	for b.Loop() {
		e := savestream.NewEncoder(io.Discard, v3)
		for _, r := range recs {
			if err := e.Encode(r); err != nil {
				b.Fatal(err)
			}
		}
	}
}
