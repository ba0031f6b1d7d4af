package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Sector is the unit of a disk.
const Sector = 512

// A Pattern is an endless sequence of writes to a disk of a known size, numbered from 1. Each one depends on the seed
// and its number alone, so the number of writes determines every byte of the disk.
type Pattern struct {
	Seed uint64
	Size int64 // of the disk
}

// LongestWrite is how many bytes one write of a [Pattern] has at most.
const LongestWrite = 128 * Sector

// The writes go to stretches, spread from the beginning of the disk to its end: near each other, so that many are on top
// of others, and far less to copy than a disk with writes all over it.
const (
	stretches    = 8
	stretchBytes = 256 << 10
)

// Write returns write k: so many whole sectors at an offset. Each sector begins with k, so that no two writes have the
// same, and each one shows.
func (p Pattern) Write(k uint64) (off int64, body []byte) {
	random := rand.New(rand.NewPCG(p.Seed, k))
	n := int64(1 + random.IntN(1<<random.IntN(8))) // more short ones than long ones
	sectors, stretch := p.Size/Sector, min(p.Size, stretchBytes)/Sector
	first := random.Int64N(stretches) * (sectors - stretch) / (stretches - 1)
	off = (first + random.Int64N(stretch-n+1)) * Sector
	body = make([]byte, n*Sector)
	for i := 0; i < len(body); i += 8 {
		word := random.Uint64()
		if i%Sector == 0 {
			word = k
		}
		binary.LittleEndian.PutUint64(body[i:], word)
	}
	return off, body
}

// A Model is what a disk has to hold after the first writes of a pattern.
type Model struct {
	pattern Pattern
	image   []byte
	made    uint64
}

// NewModel returns the model of a disk to which nothing was written yet. It keeps the image.
func NewModel(image []byte, seed uint64) *Model {
	return &Model{pattern: Pattern{seed, int64(len(image))}, image: image}
}

// Made returns how many writes the model has.
func (m *Model) Made() uint64 { return m.made }

// ErrInexact means that a disk is not what any number of writes makes of it.
var ErrInexact = errors.New("the disk is not as writes made one after the other leave it")

// Find makes writes until the model is, byte for byte, the disk that it is shown, and returns how many there are then
// in all. It makes no more than most; if none of these models is the disk, the error says where the one with the
// fewest differences is another, and the model is of no more use.
func (m *Model) Find(disk []byte, most uint64) (uint64, error) {
	if len(disk) != len(m.image) {
		return 0, fmt.Errorf("%w: it has %d bytes, not %d", ErrInexact, len(disk), len(m.image))
	}
	first, start := m.made, bytes.Clone(m.image)
	differ := differing(m.image, disk)
	best, fewest := m.made, differ
	for differ > 0 && m.made < most {
		off, body := m.pattern.Write(m.made + 1)
		there, here := disk[off:off+int64(len(body))], m.image[off:]
		differ += differing(body, there) - differing(here[:len(body)], there)
		copy(here, body)
		m.made++
		if differ < fewest {
			best, fewest = m.made, differ
		}
	}
	if differ == 0 {
		return m.made, nil
	}
	if first == most {
		return 0, fmt.Errorf("%w: after %d writes %d sectors are others: %s", ErrInexact, most, fewest, m.explain(disk, most))
	}
	nearest := &Model{m.pattern, start, first}
	for nearest.made < best {
		nearest.next()
	}
	return 0, fmt.Errorf("%w: it is nearest to that after %d of %d to %d writes, of which %d sectors are others: %s",
		ErrInexact, best, first, most, fewest, nearest.explain(disk, most))
}

func (m *Model) next() {
	m.made++
	off, body := m.pattern.Write(m.made)
	copy(m.image[off:], body)
}

// differing returns how many sectors differ.
func differing(a, b []byte) (n int) {
	for ; len(a) > 0; a, b = a[Sector:], b[Sector:] {
		if !bytes.Equal(a[:Sector], b[:Sector]) {
			n++
		}
	}
	return n
}

// explain says which write the first differing sectors are of, and which write they should be of.
func (m *Model) explain(disk []byte, most uint64) string {
	const examples = 8
	var all []string
	for at := int64(0); at < int64(len(disk)); at += Sector {
		have, want := disk[at:at+Sector], m.image[at:at+Sector]
		if bytes.Equal(have, want) {
			continue
		}
		if len(all) == examples {
			all = append(all, "…")
			break
		}
		all = append(all, fmt.Sprintf("sector %d has %s, not %s", at/Sector, m.origin(have, at, most), m.origin(want, at, most)))
	}
	return strings.Join(all, ", ")
}

// origin says where a sector's content comes from.
func (m *Model) origin(sector []byte, at int64, most uint64) string {
	k := binary.LittleEndian.Uint64(sector)
	// A few more writes than were counted may have been made.
	if k > 0 && k <= most+1000 {
		off, body := m.pattern.Write(k)
		if i := at - off; i >= 0 && i < int64(len(body)) && bytes.Equal(body[i:i+Sector], sector) {
			return fmt.Sprintf("that of write %d", k)
		}
	}
	return fmt.Sprintf("content of no write (%x…)", sector[:8])
}

// StartPattern has the guest make the writes of the pattern with that seed on its first disk, each durable before the
// next one begins, from where it was stopped, or the first one: so many a second, or as many as it can. Command: pattern
// start SEED RATE. Answer: ok.
func (c *Client) StartPattern(seed uint64, rate int) error {
	_, err := c.do("pattern start %d %d", seed, rate)
	return err
}

// PatternMade returns how many writes the guest has been told are durable. Command: pattern made. Answer: COUNT.
func (c *Client) PatternMade() (uint64, error) { return c.pattern("made") }

// StopPattern has the guest make no more writes, and returns how many it made when the last one is durable. Command:
// pattern stop. Answer: COUNT.
func (c *Client) StopPattern() (uint64, error) { return c.pattern("stop") }

func (c *Client) pattern(verb string) (n uint64, err error) {
	line, err := c.do("pattern %s", verb)
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscan(line, &n); err != nil {
		return 0, fmt.Errorf("probe: pattern %s: answer %q: %w", verb, line, err)
	}
	return n, nil
}
