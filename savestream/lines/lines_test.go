package lines

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"xlft/savestream"
)

// epochs returns streams of a domain, checkpoint by checkpoint, together one libxc stream.
// In each some pages are written anew: a few bytes, all of them, zeroes, or nothing.
func epochs(rnd *rand.Rand, pages, n int) [][]byte {
	mem := make([]page, pages)
	for i := range mem {
		switch rnd.IntN(4) {
		case 0: // zeroes
		case 1:
			mem[i][rnd.IntN(savestream.PageSize)] = 1
		default:
			fill(rnd, mem[i][:])
		}
	}
	var all [][]byte
	b := savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17}.AppendTo(nil)
	b = savestream.AppendRecord(b, savestream.X86CPUIDPolicy, make([]byte, 24))
	b = savestream.AppendRecord(b, savestream.StaticDataEnd, nil)
	for e := range n {
		var entries []savestream.PageEntry
		var data []byte
		flush := func() {
			if len(entries) == 0 {
				return
			}
			body, err := savestream.AppendPageData(nil, entries, data)
			if err != nil {
				panic(err)
			}
			b = savestream.AppendRecord(b, savestream.PageDataType, body)
			entries, data = nil, nil
		}
		for i := range mem {
			if e > 0 {
				switch rnd.IntN(8) {
				case 0:
					binary.LittleEndian.PutUint64(mem[i][rnd.IntN(500)*8:], rnd.Uint64())
				case 1:
					fill(rnd, mem[i][:])
				case 2:
					mem[i] = zeroes
				case 3: // written with what it had
				default:
					continue
				}
			}
			if rnd.IntN(50) == 0 {
				entries = append(entries, savestream.PageEntry{PFN: uint64(i), Type: savestream.PageXTab})
			} else {
				entries = append(entries, savestream.PageEntry{PFN: uint64(i)})
				data = append(data, mem[i][:]...)
			}
			if rnd.IntN(20) == 0 {
				flush()
			}
		}
		flush()
		b = savestream.AppendRecord(b, savestream.HVMContext, make([]byte, 1+rnd.IntN(100)))
		b = savestream.AppendRecord(b, savestream.Checkpoint, nil)
		all = append(all, b)
		b = nil
	}
	return all
}

func fill(rnd *rand.Rand, b []byte) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rnd.Uint64())
	}
}

// pass codes streams, cut anywhere, decodes them, and returns the first difference.
func pass(rnd *rand.Rand, enc *Encoder, dec *Decoder, all [][]byte) error {
	for e, stream := range all {
		var got []byte
		for rest := stream; len(rest) > 0; {
			n := min(1+rnd.IntN(30000), len(rest))
			coded, err := enc.Encode(nil, rest[:n])
			if err != nil {
				return fmt.Errorf("epoch %d: encode: %w", e+1, err)
			}
			rest = rest[n:]
			if got, err = dec.Decode(got, coded, n+savestream.PageSize); err != nil {
				return fmt.Errorf("epoch %d: decode: %w", e+1, err)
			}
		}
		if !bytes.Equal(got, stream) {
			return fmt.Errorf("epoch %d differs", e+1)
		}
	}
	return nil
}

func TestPasses(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		all := epochs(rnd, 100, 6)
		for _, kept := range []int64{0, 1, 7, 64, 99, 100, 1000} {
			enc, dec := NewEncoder(kept*savestream.PageSize), NewDecoder(kept*savestream.PageSize)
			if err := pass(rnd, enc, dec, all); err != nil {
				t.Fatalf("seed %d, %d pages kept: %v", seed, kept, err)
			}
			if enc.Memory() != dec.Memory() || enc.Memory() > kept*savestream.PageSize {
				t.Errorf("the sides keep %d and %d bytes, of %d", enc.Memory(), dec.Memory(), kept*savestream.PageSize)
			}
		}
	}
}

// Sides that keep other pages give another stream: nothing but a checksum tells.
func TestOutOfStep(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		all := epochs(rnd, 100, 6)
		if pass(rnd, NewEncoder(80*savestream.PageSize), NewDecoder(60*savestream.PageSize), all) != nil {
			return
		}
	}
	t.Error("nobody noticed")
}

func TestWrittenAgainCostsLittle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 0))
	enc := NewEncoder(1 << 20)
	mem := make([]byte, 64*savestream.PageSize)
	fill(rnd, mem)
	if _, err := enc.Encode(nil, pagesStream(true, mem)); err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		mem[i*savestream.PageSize+100]++
	}
	coded, err := enc.Encode(nil, pagesStream(false, mem))
	if want := 64*(1+8+LineSize) + 64*8 + 100; err != nil || len(coded) > want {
		t.Errorf("%d bytes for a line in each of 64 pages, want at most %d; %v", len(coded), want, err)
	}
}

func TestBadCoded(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 0))
	stream := epochs(rnd, 20, 1)[0]
	coded, err := NewEncoder(1<<20).Encode(nil, stream)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewDecoder(1<<20).Decode(nil, coded, len(stream)-1); !errors.Is(err, ErrCoded) {
		t.Errorf("above the limit: %v", err)
	}
	for name, b := range map[string][]byte{
		"an unknown item":   {9},
		"a page too early":  {same},
		"an empty literal":  {literal, 0},
		"a short literal":   {literal, 10, 1},
		"an endless length": bytes.Repeat([]byte{0xff}, 20),
	} {
		if _, err := NewDecoder(1<<20).Decode(nil, b, 1<<20); !errors.Is(err, ErrCoded) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	rnd := rand.New(rand.NewPCG(3, 0))
	coded, _ := NewEncoder(8*savestream.PageSize).Encode(nil, epochs(rnd, 20, 1)[0])
	f.Add(coded)
	f.Add([]byte{literal, 40})
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 16
		d := NewDecoder(8 * savestream.PageSize)
		got, err := d.Decode(nil, b, limit)
		if len(got) > limit {
			t.Fatalf("%d bytes", len(got))
		}
		if err != nil {
			return
		}
		// What can be decoded can be coded again, and decodes to the same.
		again, err := NewEncoder(8*savestream.PageSize).Encode(nil, got)
		if err != nil {
			t.Fatal(err)
		}
		same, err := NewDecoder(8*savestream.PageSize).Decode(nil, again, limit)
		if err != nil || !bytes.Equal(got, same) {
			t.Fatalf("%d bytes, coded again %d; %v", len(got), len(same), err)
		}
	})
}
