package savestream_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"xlft/savestream"
)

func xl(t savestream.LibxlType, body ...[]byte) savestream.Item {
	return savestream.Item{Libxl: &savestream.LibxlRecord{Type: t, Body: slices.Concat(body...)}}
}

func xc(recs ...savestream.Record) []savestream.Item {
	var items []savestream.Item
	for _, r := range recs {
		items = append(items, savestream.Item{Libxc: &r})
	}
	return items
}

func encodeLibxl(tb testing.TB, form savestream.Form, items ...savestream.Item) []byte {
	tb.Helper()
	var buf bytes.Buffer
	enc := savestream.NewLibxlEncoder(&buf, v3)
	enc.Form = form
	for i, it := range items {
		var err error
		if it.Libxl != nil {
			err = enc.Encode(*it.Libxl)
		} else {
			err = enc.EncodeLibxc(*it.Libxc)
		}
		if err != nil {
			tb.Fatalf("item %d: %v", i, err)
		}
	}
	return buf.Bytes()
}

func decodeLibxl(r io.Reader, form savestream.Form) (items []savestream.Item, err error) {
	d := savestream.NewLibxlDecoder(r)
	d.Form = form
	for {
		it, err := d.Next()
		if err == io.EOF {
			return items, nil
		}
		if err != nil {
			return items, err
		}
		if it.Libxl != nil {
			it.Libxl.Body = bytes.Clone(it.Libxl.Body)
		} else {
			it.Libxc.Body = bytes.Clone(it.Libxc.Body)
		}
		items = append(items, it)
	}
}

// plainLibxl is what "xl save" writes of an HVM domain.
func plainLibxl(tb testing.TB) []savestream.Item {
	return slices.Concat(
		[]savestream.Item{xl(savestream.LibxcContext)},
		xc(plainHVM(tb)...),
		[]savestream.Item{
			xl(savestream.EmulatorXenstoreData, u32(2, 0), []byte("physmap/1/size\x004096\x00")),
			xl(savestream.EmulatorContext, u32(2, 0), []byte("QEVM")),
			xl(savestream.LibxlEnd),
		})
}

// remusLibxl is a checkpointed stream of a PVH domain; libxl writes nothing
// behind libxc's records.
func remusLibxl(tb testing.TB, epochs int) []savestream.Item {
	items := append([]savestream.Item{xl(savestream.LibxcContext)}, xc(hvmStatic()...)...)
	for i := range epochs {
		items = append(items, xc(hvmEpoch(tb, byte(i))...)...)
		items = append(items, xc(rec(savestream.Checkpoint))...)
		items = append(items, xl(savestream.CheckpointEnd))
	}
	return items
}

func sameItems(a, b []savestream.Item) bool {
	return slices.EqualFunc(a, b, func(a, b savestream.Item) bool {
		if (a.Libxl == nil) != (b.Libxl == nil) {
			return false
		}
		if a.Libxl != nil {
			return a.Libxl.Type == b.Libxl.Type && bytes.Equal(a.Libxl.Body, b.Libxl.Body)
		}
		return a.Libxc.Type == b.Libxc.Type && bytes.Equal(a.Libxc.Body, b.Libxc.Body)
	})
}

func TestLibxlRoundTrip(t *testing.T) {
	colo := remusLibxl(t, 1)
	colo = append(colo, xl(savestream.CheckpointState, u32(0)))
	colo = append(colo, xc(rec(savestream.End))...)
	for name, tt := range map[string]struct {
		form  savestream.Form
		items []savestream.Item
	}{
		"Plain":        {savestream.Plain, plainLibxl(t)},
		"Checkpointed": {savestream.Checkpointed, append(remusLibxl(t, 3), xc(rec(savestream.End))...)},
		"COLO":         {savestream.COLO, colo},
	} {
		t.Run(name, func(t *testing.T) {
			full := encodeLibxl(t, tt.form, tt.items...)
			got, err := decodeLibxl(bytes.NewReader(full), tt.form)
			if err != nil || !sameItems(got, tt.items) {
				t.Fatalf("got %d items, %v, want %d", len(got), err, len(tt.items))
			}
			for n := range len(full) {
				if _, err := decodeLibxl(bytes.NewReader(full[:n]), tt.form); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("cut at %d: got %v", n, err)
				}
			}
		})
	}
}

// TestFeed: the pieces of the feed, put together by hand, are the stream that
// the encoder makes.
func TestFeed(t *testing.T) {
	want := encodeLibxl(t, savestream.Checkpointed, remusLibxl(t, 2)...)
	var libxc bytes.Buffer
	enc := savestream.NewEncoder(&libxc, v3)
	got := slices.Concat(savestream.LibxlHeader(), savestream.LibxcContextRecord())
	for i, r := range remusLibxl(t, 2) {
		if r.Libxc == nil {
			continue
		}
		if err := enc.Encode(*r.Libxc); err != nil {
			t.Fatalf("item %d: %v", i, err)
		}
		if r.Libxc.Type == savestream.Checkpoint {
			got = append(got, libxc.Bytes()...)
			got = append(got, savestream.CheckpointEndRecord()...)
			libxc.Reset()
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the feed differs from the encoder's stream")
	}
	golden := []byte{
		'L', 'i', 'b', 'x', 'l', 'F', 'm', 't', // ident
		0, 0, 0, 2, // version, big-endian
		0, 0, 0, 0, // options: little-endian, not legacy
		1, 0, 0, 0, 0, 0, 0, 0, // LIBXC_CONTEXT
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // libxc's marker
	}
	if !bytes.HasPrefix(got, golden) {
		t.Errorf("got % x", got[:len(golden)])
	}
	if !bytes.HasSuffix(got, []byte{
		0x0e, 0, 0, 0, 0, 0, 0, 0, // libxc CHECKPOINT
		0x04, 0, 0, 0, 0, 0, 0, 0, // libxl CHECKPOINT_END
	}) {
		t.Errorf("ends in % x", got[len(got)-16:])
	}
}

// TestFailingRecords: FailingRecords after a complete epoch are refused, by our
// decoder as by libxc, which reads them at libxl's CHECKPOINT_END.
func TestFailingRecords(t *testing.T) {
	golden := []byte{
		0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, // the last type that is mandatory
		0x0e, 0, 0, 0, 0, 0, 0, 0, // libxc CHECKPOINT
		0x04, 0, 0, 0, 0, 0, 0, 0, // libxl CHECKPOINT_END
	}
	if got := savestream.FailingRecords(); !bytes.Equal(got, golden) {
		t.Errorf("got % x", got)
	}
	whole := encodeLibxl(t, savestream.Checkpointed, remusLibxl(t, 2)...)
	failing := bytes.NewReader(append(whole, savestream.FailingRecords()...))
	if _, err := decodeLibxl(failing, savestream.Checkpointed); !errors.Is(err, savestream.ErrMandatory) {
		t.Errorf("got %v, want ErrMandatory", err)
	}
}

func saveFile(tb testing.TB) []byte {
	h := savestream.SaveHeader{Mandatory: 1, Config: []byte(`{"c_info":{"type":"pvh","name":"web1","uuid":"u-1"},"b_info":{"max_memkb":131072}}` + "\x00")}
	return append(h.AppendTo(nil), encodeLibxl(tb, savestream.Plain, plainLibxl(tb)...)...)
}

func TestSaveHeader(t *testing.T) {
	full := slices.Concat(
		[]byte("Xen saved domain, xl format\n \x00 \r"),
		u32(0x01020304), // byte order
		u32(3),          // mandatory flags: JSON, stream v2
		u32(0),          // optional flags
		u32(4+3),        // bytes of optional data
		u32(3),          // bytes of config
		[]byte("{}\x00"),
	)
	h, err := savestream.ReadSaveHeader(bytes.NewReader(full))
	if err != nil || string(h.Config) != "{}\x00" || !h.JSON() {
		t.Fatalf("got %+v, %v", h, err)
	}
	if !bytes.Equal(h.AppendTo(nil), full) {
		t.Error("the header does not come back")
	}
	for n := range len(full) {
		if _, err := savestream.ReadSaveHeader(bytes.NewReader(full[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: got %v", n, err)
		}
	}
	for at, want := range map[int]error{
		0:  savestream.ErrMagic,
		39: savestream.ErrMandatory, // an unknown mandatory flag
		36: savestream.ErrLegacy,    // not stream v2
		44: savestream.ErrLength,    // config longer than the optional data
	} {
		bad := slices.Clone(full)
		bad[at] ^= 0x02
		if _, err := savestream.ReadSaveHeader(bytes.NewReader(bad)); !errors.Is(err, want) {
			t.Errorf("byte %d: got %v, want %v", at, err, want)
		}
	}
}

func TestInspect(t *testing.T) {
	for name, tt := range map[string]struct {
		in    []byte
		lines []string // each a part of a line, in order
	}{
		"SaveFile": {saveFile(t), []string{
			"xl     SAVE_HEADER",
			"name=web1 type=pvh uuid=u-1 max_memkb=131072",
			"libxl  LIBXC_CONTEXT",
			`domain="x86 HVM" xen=4.17`,
			"X86_CPUID_POLICY                24  leaves=1",
			"X86_MSR_POLICY                  16  msrs=1",
			"PAGE_DATA                     8224  pfns=3 pages=2 first_pfn=0x10 last_pfn=0x12 types(NOTAB=2 XTAB=1)",
			"mode=2 khz=2400000 nsec=123456789 incarnation=1",
			"entries(HEADER=1)",
			"count=2 STORE_PFN=0xfeffc CONSOLE_PFN=0xfefff",
			"EMULATOR_XENSTORE_DATA          28  emulator=qemu-upstream index=0 data_bytes=20 keys=1",
			"TOTAL",
			"pages=2 page_bytes=8192 checkpoints=0",
		}},
		"Libxc": {encode(t, v3, checkpointed(t, 2)...), []string{
			"           0  libxc  HEADER",
			"number=2",
			"checkpoints=2",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := savestream.Inspect(&out, bytes.NewReader(tt.in), savestream.InspectOptions{}); err != nil {
				t.Fatalf("%v after:\n%s", err, &out)
			}
			rest := out.String()
			for _, want := range tt.lines {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("no %q in:\n%s", want, rest)
				}
				rest = after
			}

			out.Reset()
			if err := savestream.Inspect(&out, bytes.NewReader(tt.in), savestream.InspectOptions{JSON: true}); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(out.String()) {
				var v struct {
					Offset *int64
					Type   string
				}
				if err := json.Unmarshal([]byte(line), &v); err != nil || v.Offset == nil || v.Type == "" {
					t.Errorf("%s: %v", line, err)
				}
			}
		})
	}
}

func TestInspectBadStream(t *testing.T) {
	full := saveFile(t)
	for n := 8; n < len(full); n++ {
		var out bytes.Buffer
		if err := savestream.Inspect(&out, bytes.NewReader(full[:n]), savestream.InspectOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: got %v", n, err)
		}
	}
	remus := encodeLibxl(t, savestream.AnyForm, remusLibxl(t, 1)...)
	for name, tt := range map[string]struct {
		in   []byte
		want string
	}{
		"Magic":    {[]byte("#!/bin/sh\n"), `savestream: magic at offset 0: not a stream of this kind: "#!/bin/s" is none of xl save file, libxl stream, libxc stream`},
		"Trailing": {append(slices.Clone(full), 0), fmt.Sprintf("savestream: end of stream at offset %d: bytes after END", len(full))},
		"Remus":    {remus, fmt.Sprintf("savestream: record header at offset %d: unexpected EOF", len(remus))},
		"Type":     {slices.Concat(full[:len(full)-8], u32(0x7f, 0)), fmt.Sprintf("savestream: libxl 0x0000007f record at offset %d: unknown mandatory record", len(full)-8)},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := savestream.Inspect(&out, bytes.NewReader(tt.in), savestream.InspectOptions{})
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if name != "Magic" && !strings.Contains(out.String(), "TOTAL") {
				t.Errorf("no totals in:\n%s", &out)
			}
			if name == "Remus" && !strings.Contains(out.String(), `ends="at checkpoint"`) {
				t.Errorf("the whole checkpoint is not told in:\n%s", &out)
			}
		})
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(saveFile(f))
	f.Add(encodeLibxl(f, savestream.AnyForm, remusLibxl(f, 2)...))
	f.Add(encode(f, savestream.Header{Version: 3, Type: savestream.PV}, plainPV(f)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = savestream.Inspect(io.Discard, bytes.NewReader(b), savestream.InspectOptions{JSON: len(b)%2 == 0})
	})
}
