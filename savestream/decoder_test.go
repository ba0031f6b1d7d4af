package savestream_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"slices"
	"testing"
	"testing/iotest"

	"xlft/savestream"
)

// decoded is the whole content of a stream.
type decoded struct {
	Header savestream.Header
	Recs   []savestream.Record
}

func decode(r io.Reader) (decoded, error) {
	d := savestream.NewDecoder(r)
	var out decoded
	for {
		rec, err := d.Next()
		if err != nil {
			out.Header, _ = d.Header()
			if err == io.EOF {
				err = nil
			}
			return out, err
		}
		rec.Body = bytes.Clone(rec.Body)
		out.Recs = append(out.Recs, rec)
	}
}

func TestDecoderGolden(t *testing.T) {
	full := slices.Concat(
		[]byte{
			0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // marker
			0x58, 0x45, 0x4e, 0x46, // "XENF"
			0, 0, 0, 3, // version, big-endian
			0, 0, // options: little-endian
			0, 0, 0, 0, 0, 0, // reserved

			2, 0, 0, 0, // x86 HVM
			12, 0, // page_shift
			0, 0, // reserved
			4, 0, 0, 0, // Xen 4
			17, 0, 0, 0, // .17

			0x10, 0, 0, 0, 0, 0, 0, 0, // STATIC_DATA_END

			0x01, 0, 0, 0, 0x18, 0x10, 0, 0, // PAGE_DATA, 8 + 2*8 + 4096 bytes
			2, 0, 0, 0, 0, 0, 0, 0, // two pfns
			0x34, 0x12, 0, 0, 0, 0, 0, 0x00, // pfn 0x1234, NOTAB
			0x35, 0x12, 0, 0, 0, 0, 0, 0xf0, // pfn 0x1235, XTAB: no data
		},
		page(0xaa),
		[]byte{
			0x07, 0, 0, 0x80, 5, 0, 0, 0, // an optional record, 5 bytes
			'h', 'e', 'l', 'l', 'o', 0, 0, 0,

			0x09, 0, 0, 0, 1, 0, 0, 0, // HVM_CONTEXT, 1 byte
			0x77, 0, 0, 0, 0, 0, 0, 0,

			0x0e, 0, 0, 0, 0, 0, 0, 0, // CHECKPOINT
			0x00, 0, 0, 0, 0, 0, 0, 0, // END
		},
	)
	want := decoded{
		savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17},
		[]savestream.Record{
			{Type: savestream.StaticDataEnd, Offset: 40},
			{Type: savestream.PageDataType, Offset: 48, Body: full[56 : 56+8+16+4096]},
			{Type: 0x80000007, Offset: 4176, Body: []byte("hello")},
			{Type: savestream.HVMContext, Offset: 4192, Body: []byte{0x77}},
			{Type: savestream.Checkpoint, Offset: 4208},
			{Type: savestream.End, Offset: 4216},
		},
	}
	for name, r := range map[string]io.Reader{
		"Whole":       bytes.NewReader(full),
		"ByteAtATime": iotest.OneByteReader(bytes.NewReader(full)),
		"DataErr":     iotest.DataErrReader(bytes.NewReader(full)),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decode(r)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Recs) != len(want.Recs) || got.Header != want.Header {
				t.Fatalf("got %+v with %d records", got.Header, len(got.Recs))
			}
			for i, g := range got.Recs {
				w := want.Recs[i]
				if g.Type != w.Type || g.Offset != w.Offset || !bytes.Equal(g.Body, w.Body) {
					t.Errorf("record %d: got %v at %d, %d bytes, want %v at %d, %d bytes", i, g.Type, g.Offset, len(g.Body), w.Type, w.Offset, len(w.Body))
				}
			}
		})
	}
	if got := encode(t, want.Header, want.Recs...); !bytes.Equal(got, full) {
		t.Error("Encoder does not give the golden bytes back")
	}

	p, err := savestream.ParsePageData(want.Recs[1].Body)
	if err != nil {
		t.Fatal(err)
	}
	var got []savestream.PageEntry
	for e, data := range p.All() {
		got = append(got, e)
		if (data != nil) != e.Type.HasData() || data != nil && !bytes.Equal(data, page(0xaa)) {
			t.Errorf("pfn %#x has the wrong data", e.PFN)
		}
	}
	if want := []savestream.PageEntry{{PFN: 0x1234}, {PFN: 0x1235, Type: savestream.PageXTab}}; !slices.Equal(got, want) {
		t.Errorf("got entries %v, want %v", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	pv := savestream.Header{Version: 3, Type: savestream.PV, XenMajor: 4, XenMinor: 17}
	v2 := savestream.Header{Version: 2, Type: savestream.HVM}
	for name, tt := range map[string]struct {
		h    savestream.Header
		recs []savestream.Record
	}{
		"HVM":          {v3, plainHVM(t)},
		"PV":           {pv, plainPV(t)},
		"Checkpointed": {v3, checkpointed(t, 3)},
		"Version2":     {v2, append(hvmEpoch(t, 1), rec(savestream.End))},
	} {
		t.Run(name, func(t *testing.T) {
			full := encode(t, tt.h, tt.recs...)
			got, err := decode(bytes.NewReader(full))
			if err != nil {
				t.Fatal(err)
			}
			if got.Header != tt.h || len(got.Recs) != len(tt.recs) {
				t.Fatalf("got %v and %d records, want %v and %d", got.Header, len(got.Recs), tt.h, len(tt.recs))
			}
			if again := encode(t, got.Header, got.Recs...); !bytes.Equal(again, full) {
				t.Error("decoding and encoding again gives other bytes")
			}
			if err := scanAll(full, 1<<20); err != nil {
				t.Errorf("Scanner: %v", err)
			}
		})
	}
}

func TestCutAtEveryByte(t *testing.T) {
	full := encode(t, v3, checkpointed(t, 2)...)
	for n := range len(full) {
		d := savestream.NewDecoder(bytes.NewReader(full[:n]))
		var err error
		var last savestream.Record
		for err == nil {
			var rec savestream.Record
			if rec, err = d.Next(); err == nil {
				last = rec
			}
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: got %v", n, err)
		}
		whole := last.Type == savestream.Checkpoint && int64(n) == last.Offset+8
		if d.AtCheckpoint() != whole {
			t.Fatalf("cut at %d: AtCheckpoint is %v", n, !whole)
		}
		if err := scanAll(full[:n], 1000); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: Scanner: got %v", n, err)
		}
	}
}

func TestFlipEveryBit(t *testing.T) {
	h := savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17}
	full := encode(t, h, slices.Concat(
		hvmStatic(), hvmEpoch(t, 1), []savestream.Record{rec(savestream.Checkpoint)},
		hvmContext(), []savestream.Record{rec(savestream.End)},
	)...)
	want, err := decode(bytes.NewReader(full))
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(full) * 8 {
		full[i/8] ^= 1 << (i % 8)
		got, err := decode(bytes.NewReader(full))
		if err == nil && reflect.DeepEqual(got, want) {
			t.Fatalf("flipping bit %d of byte %d changes nothing", i%8, i/8)
		}
		if serr := scanAll(full, 4096); (serr == nil) != (err == nil) {
			t.Fatalf("bit %d of byte %d: Decoder says %v, Scanner %v", i%8, i/8, err, serr)
		}
		full[i/8] ^= 1 << (i % 8)
	}
}

// FuzzDecoder: what decodes encodes to the same bytes.
func FuzzDecoder(f *testing.F) {
	f.Add(encode(f, v3, plainHVM(f)...))
	f.Add(encode(f, savestream.Header{Version: 3, Type: savestream.PV}, plainPV(f)...))
	f.Add(encode(f, v3, checkpointed(f, 2)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decode(bytes.NewReader(b))
		if err != nil {
			var fe *savestream.FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("not a FormatError: %v", err)
			}
			return
		}
		again := encode(t, got.Header, got.Recs...)
		if !bytes.HasPrefix(b, again) {
			t.Fatal("decoding and encoding again gives other bytes")
		}
	})
}
