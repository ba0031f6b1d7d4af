package probe_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"xlft/tests/lab/probe"
)

const patternSize = 4 << 20

// written returns the disk after write 1 to n of a pattern, on junk, without those left out.
func written(seed, n uint64, missing ...uint64) []byte {
	disk := junk()
	p := probe.Pattern{Seed: seed, Size: patternSize}
	for k := uint64(1); k <= n; k++ {
		off, body := p.Write(k)
		if len(missing) > 0 && missing[0] == k {
			missing = missing[1:]
			continue
		}
		copy(disk[off:], body)
	}
	return disk
}

func junk() []byte {
	b := make([]byte, patternSize)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestPattern(t *testing.T) {
	p := probe.Pattern{Seed: 4711, Size: patternSize}
	var short, long, begin, end int
	for k := uint64(1); k <= 5000; k++ {
		off, body := p.Write(k)
		n := int64(len(body))
		if off%probe.Sector != 0 || n%probe.Sector != 0 || n == 0 || n > probe.LongestWrite || off < 0 || off+n > patternSize {
			t.Fatalf("write %d: %d bytes at %d", k, n, off)
		}
		switch n {
		case probe.Sector:
			short++
		case probe.LongestWrite:
			long++
		}
		if off == 0 {
			begin++
		}
		if off+n == patternSize {
			end++
		}
		off2, again := p.Write(k)
		if off2 != off || !bytes.Equal(again, body) {
			t.Fatalf("write %d is not always the same", k)
		}
	}
	if short == 0 || long == 0 || begin == 0 || end == 0 {
		t.Errorf("%d writes of a sector, %d of the longest kind, %d of the disk's first sector, %d of its last", short, long, begin, end)
	}
	// A disk as long as one write has room for every write.
	tiny := probe.Pattern{Seed: 1, Size: probe.LongestWrite}
	for k := range uint64(500) {
		if off, body := tiny.Write(k); off+int64(len(body)) > tiny.Size {
			t.Fatalf("write %d ends beyond the disk", k)
		}
	}
}

// The model goes on from where it was found.
func TestModelFinds(t *testing.T) {
	m := probe.NewModel(junk(), 7)
	for _, n := range []uint64{0, 1, 2, 50, 50, 300} {
		got, err := m.Find(written(7, n), 1000)
		if err != nil || got != n || m.Made() != n {
			t.Fatalf("found %d writes (%v), want %d", got, err, n)
		}
	}
	if _, err := m.Find(written(7, 299), 1000); !errors.Is(err, probe.ErrInexact) {
		t.Errorf("the model went back: %v", err)
	}
}

func TestModelRefuses(t *testing.T) {
	const n = 295
	off, body := probe.Pattern{Seed: 7, Size: patternSize}.Write(n)
	torn := written(7, n-1)
	copy(torn[off:], body[:len(body)-probe.Sector])
	if len(body) < 2*probe.Sector {
		t.Fatal("choose an n whose write has two sectors")
	}
	bit := written(7, n)
	bit[patternSize-1] ^= 1
	early := written(7, n)
	off, body = probe.Pattern{Seed: 7, Size: patternSize}.Write(n + 3)
	copy(early[off:], body)
	for _, c := range []struct {
		name string
		disk []byte
		most uint64
		say  string
	}{
		{"the last but one is missing", written(7, n, n-1), n + 10, "not that of write 294"},
		{"one before that is missing", written(7, n, 290), n + 10, "not that of write 290"},
		{"half of the last", torn, n + 10, "that of write 295"},
		{"one from later", early, n + 10, "that of write 298"},
		{"a bit of the junk", bit, n + 10, "sector 8191 has content of no write"},
		{"one more than there may be", written(7, n+1), n, "that of write 296"},
		{"another pattern", written(8, n), n + 10, "content of no write"},
		{"a shorter disk", junk()[:patternSize-probe.Sector], n, "it has 4193792 bytes"},
		{"none made, one there", written(7, 1), 0, "after 0 writes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := probe.NewModel(junk(), 7).Find(c.disk, c.most)
			if !errors.Is(err, probe.ErrInexact) || !strings.Contains(err.Error(), c.say) {
				t.Errorf("found %d writes: %v; want %q", got, err, c.say)
			}
		})
	}
}
