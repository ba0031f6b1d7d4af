package lines

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"xlft/savestream"
)

// Items of the coded form.
const (
	literal byte = iota
	same
	zero
	changed
	whole
)

// LineSize is how many bytes of a page a bit stands for.
const LineSize = savestream.PageSize / 64

var zeroes page

// sides is what an Encoder and a Decoder have in common.
type sides struct {
	walk  walker
	cache *cache
}

// base returns the page as it was sent last, and whether that is kept.
func (s *sides) base(pfn uint64) (was *page, kept bool) {
	if p := s.cache.get(pfn); p != nil {
		return p, true
	}
	return &zeroes, false
}

// room returns where to keep a page that is not kept yet; nil: it is not to be. As long as
// the domain's whole memory goes by, a full cache keeps what it has.
func (s *sides) room(pfn uint64) *page {
	if s.cache.full() && s.walk.checkpoints == 0 {
		return nil
	}
	return s.cache.add(pfn)
}

// Memory returns how many bytes the pages that are kept take.
func (s *sides) Memory() int64 { return s.cache.bytes() }

// An Encoder codes a stream.
type Encoder struct {
	sides
	part []byte // of a page that is not whole yet
}

// NewEncoder returns an Encoder that keeps so many bytes of pages.
func NewEncoder(cache int64) *Encoder {
	return &Encoder{sides: sides{newWalker(), newCache(cache)}}
}

// Encode appends the coded form of the stream's next bytes to dst. Bytes of a page that is
// not whole wait for the next call; at the end of a checkpoint none wait.
func (e *Encoder) Encode(dst, stream []byte) ([]byte, error) {
	for len(stream) > 0 {
		pfn, ok := e.walk.page()
		if !ok {
			n, err := e.walk.literal(stream)
			if err != nil {
				return dst, err
			}
			dst = append(dst, literal)
			dst = binary.AppendUvarint(dst, uint64(n))
			dst = append(dst, stream[:n]...)
			stream = stream[n:]
			continue
		}
		if len(e.part) == 0 && len(stream) >= savestream.PageSize {
			dst = e.page(dst, pfn, (*page)(stream))
			stream = stream[savestream.PageSize:]
			continue
		}
		n := min(savestream.PageSize-len(e.part), len(stream))
		e.part = append(e.part, stream[:n]...)
		stream = stream[n:]
		if len(e.part) == savestream.PageSize {
			dst = e.page(dst, pfn, (*page)(e.part))
			e.part = e.part[:0]
		}
	}
	return dst, nil
}

// page appends a page's item.
func (e *Encoder) page(dst []byte, pfn uint64, p *page) []byte {
	e.walk.pagePassed()
	was, kept := e.base(pfn)
	if *p == *was {
		return append(dst, same)
	}
	differ := diff(p, was)
	n := bits.OnesCount64(differ)
	switch {
	case *(*[LineSize]byte)(p[:]) == *(*[LineSize]byte)(zeroes[:]) && *p == zeroes:
		dst = append(dst, zero)
	case n == 64:
		dst = append(dst, whole)
		dst = append(dst, p[:]...)
	default:
		dst = append(dst, changed)
		dst = binary.LittleEndian.AppendUint64(dst, differ)
		for m := differ; m != 0; m &= m - 1 {
			at := bits.TrailingZeros64(m) * LineSize
			dst = append(dst, p[at:at+LineSize]...)
		}
	}
	if !kept {
		if keep := e.room(pfn); keep != nil {
			*keep = *p
		}
		return dst
	}
	for m := differ; m != 0; m &= m - 1 {
		at := bits.TrailingZeros64(m) * LineSize
		copy(was[at:at+LineSize], p[at:])
	}
	return dst
}

// diff returns which lines of two pages differ.
func diff(a, b *page) (lines uint64) {
	for i := range 64 {
		x, y := (*[LineSize]byte)(a[i*LineSize:]), (*[LineSize]byte)(b[i*LineSize:])
		if *x != *y {
			lines |= 1 << i
		}
	}
	return lines
}

// A Decoder gives back the stream that an Encoder has coded.
type Decoder struct{ sides }

// NewDecoder returns a Decoder that keeps so many bytes of pages, as the Encoder does.
func NewDecoder(cache int64) *Decoder { return &Decoder{sides{newWalker(), newCache(cache)}} }

// ErrCoded: the coded form is not one.
var ErrCoded = errors.New("lines: bad coded stream")

// Decode appends what one call of Encode has coded to dst, at most limit bytes.
func (d *Decoder) Decode(dst, coded []byte, limit int) ([]byte, error) {
	limit += len(dst)
	for len(coded) > 0 {
		item := coded[0]
		coded = coded[1:]
		if item == literal {
			n, k := binary.Uvarint(coded)
			if k <= 0 || n == 0 || n > uint64(len(coded)-k) {
				return dst, fmt.Errorf("%w: a literal's length", ErrCoded)
			}
			b := coded[k:][:n]
			coded = coded[k+int(n):]
			if len(dst)+len(b) > limit {
				return dst, fmt.Errorf("%w: too long", ErrCoded)
			}
			if followed, err := d.walk.literal(b); err != nil {
				return dst, err
			} else if followed != len(b) {
				return dst, fmt.Errorf("%w: a page as a literal", ErrCoded)
			}
			dst = append(dst, b...)
			continue
		}
		pfn, ok := d.walk.page()
		switch {
		case !ok:
			return dst, fmt.Errorf("%w: item %d where there is no page", ErrCoded, item)
		case len(dst)+savestream.PageSize > limit:
			return dst, fmt.Errorf("%w: too long", ErrCoded)
		}
		d.walk.pagePassed()
		was, kept := d.base(pfn)
		at := len(dst)
		switch item {
		case same:
			dst = append(dst, was[:]...)
		case zero:
			dst = append(dst, zeroes[:]...)
		case whole:
			if len(coded) < savestream.PageSize {
				return dst, fmt.Errorf("%w: a part of a page", ErrCoded)
			}
			dst = append(dst, coded[:savestream.PageSize]...)
			coded = coded[savestream.PageSize:]
		case changed:
			if len(coded) < 8 {
				return dst, fmt.Errorf("%w: a part of a bitmap", ErrCoded)
			}
			differ := binary.LittleEndian.Uint64(coded)
			coded = coded[8:]
			if len(coded) < bits.OnesCount64(differ)*LineSize {
				return dst, fmt.Errorf("%w: too few lines", ErrCoded)
			}
			dst = append(dst, was[:]...)
			p := dst[at:]
			for m := differ; m != 0; m &= m - 1 {
				copy(p[bits.TrailingZeros64(m)*LineSize:][:LineSize], coded)
				coded = coded[LineSize:]
			}
		default:
			return dst, fmt.Errorf("%w: item %d", ErrCoded, item)
		}
		switch {
		case item == same:
		case kept:
			copy(was[:], dst[at:])
		default:
			if keep := d.room(pfn); keep != nil {
				copy(keep[:], dst[at:])
			}
		}
	}
	return dst, nil
}
