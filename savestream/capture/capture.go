package capture

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"xlft/savestream"
)

// Batch is how many pages a Source is asked for at once at most. It is Xen's limit for
// XEN_DOMCTL_getpageframeinfo3.
const Batch = 1024

// LiveRounds is how many times a live pass writes pages at most, all of them the first time.
const LiveRounds = 5

// Settled reports whether a live pass ends with a round of so many dirty pages, when the
// round before had so many: there are few, or fewer by less than a quarter, and further
// rounds would not help.
func Settled(dirty, before uint64) bool {
	const few = 1024
	return dirty <= few || dirty > before-before/4
}

// keptMapped is how many pages stay mapped until the domain runs again. The pages of a
// larger checkpoint are unmapped as it goes on.
const keptMapped = 64 << 10

// ErrLogTaken: another program emptied the log of written pages, or switched it off, as xl
// save does; or the domain is being destroyed. Pages would be missing from the checkpoint.
var ErrLogTaken = errors.New("another program took the domain's log of written pages, or the domain is being destroyed")

// ErrGrown: the domain's memory map has grown as no guest's does.
var ErrGrown = errors.New("the domain's memory map has grown")

// A Source is a domain whose stream is written. One goroutine calls its methods.
type Source interface {
	// Head returns the stream's header and the records before STATIC_DATA_END.
	Head() (savestream.Header, []savestream.Record, error)
	// Span is one more than the highest number (gfn) of a page that the domain has.
	Span() (uint64, error)
	// StartLog has the hypervisor log which pages are written; the log begins empty.
	StartLog() error
	StopLog() error
	// TakeLog returns the log and empties it: page n is bit n%64 of word n/64, and words
	// cover span pages. They are valid until the next call. Suspended: the domain writes
	// nothing, and pages that others hold for writing count as written.
	TakeLog(span uint64, suspended bool) ([]uint64, error)
	// Mark logs n pages from pfn on as written. Marked reports whether a page is in the log:
	// not if the hypervisor has begun to take the domain down, or if another program emptied
	// the log or switched it off.
	Mark(pfn, n uint64) error
	Marked(pfn uint64) (bool, error)
	// Types sets types[i] to the type of page pfns[i].
	Types(pfns []uint64, types []savestream.PageType) error
	// Map makes pages readable, in this order. Unmap undoes it.
	Map(pfns []uint64) ([]byte, error)
	Unmap(pages []byte)
	// State returns the records of a suspended domain besides its pages: registers and
	// parameters. They are valid until the next call.
	State() ([]savestream.Record, error)
}

// Hooks are called in this order for each checkpoint, on Save's goroutine.
type Hooks struct {
	// Suspend suspends the domain.
	Suspend func() error
	// Captured is called when the checkpoint is written. The domain may be resumed.
	Captured func() error
	// Next waits until the next checkpoint is due; false ends the save.
	Next func() bool
}

// Save gives dst the stream of a domain, on a goroutine of its own, whose Reads end with
// each checkpoint's CHECKPOINT record. It returns nil when Next returned false, and leaves
// the domain as the hooks left it. ctx ends the live pass.
func Save(ctx context.Context, dst io.ReaderFrom, src Source, h Hooks) error {
	r, w := io.Pipe()
	read := make(chan error, 1)
	go func() {
		_, err := dst.ReadFrom(r)
		r.CloseWithError(cmp.Or(err, io.ErrClosedPipe)) // nobody reads on
		read <- err
	}()
	err := save(ctx, w, src, h)
	w.Close()
	if rerr := <-read; rerr != nil && (err == nil || errors.Is(err, rerr)) {
		return rerr
	}
	return err
}

func save(ctx context.Context, w io.Writer, src Source, h Hooks) (err error) {
	s := &saver{w: w, src: src}
	defer s.unmap()
	if err := s.begin(); err != nil {
		return err
	}
	if err := src.StartLog(); err != nil {
		return err
	}
	if err := s.findMark(); err != nil {
		return errors.Join(err, src.StopLog())
	}
	defer func() {
		// A log without the mark is another program's, which would miss pages.
		if mine, merr := src.Marked(s.mark); merr == nil && mine {
			err = errors.Join(err, src.StopLog())
		}
	}()
	if err := s.live(ctx); err != nil {
		return err
	}
	for {
		if err := h.Suspend(); err != nil {
			return err
		}
		if err := s.checkpoint(); err != nil {
			return err
		}
		if err := h.Captured(); err != nil {
			return err
		}
		s.unmap()
		if !h.Next() {
			return nil
		}
	}
}

type saver struct {
	w    io.Writer
	src  Source
	span uint64
	most uint64 // that span may grow to
	mark uint64 // a page that no running domain writes

	pfns    []uint64 // collected, not written
	types   []savestream.PageType
	full    []uint64 // those of pfns whose pages have content
	buf     []byte   // headers and tables
	first   bool     // nothing was sent before
	running bool     // the domain runs: this is the live pass
	mapped  [][]byte
	kept    int // pages in mapped
}

// begin writes what comes before memory.
func (s *saver) begin() error {
	head, static, err := s.src.Head()
	if err != nil {
		return err
	}
	if s.span, err = s.src.Span(); err != nil {
		return err
	}
	s.most = 4*s.span + 1<<20
	s.pfns = make([]uint64, 0, Batch)
	s.full = make([]uint64, 0, Batch)
	s.types = make([]savestream.PageType, Batch)
	s.buf = head.AppendTo(nil)
	for _, r := range static {
		s.buf = savestream.AppendRecord(s.buf, r.Type, r.Body)
	}
	s.buf = savestream.AppendRecord(s.buf, savestream.StaticDataEnd, nil)
	_, err = s.w.Write(s.buf)
	return err
}

// live writes all pages, and then some times those that were written meanwhile.
func (s *saver) live(ctx context.Context) error {
	s.running = true
	defer func() { s.running = false }()
	s.first = true
	for pfn := range s.span {
		if err := s.add(pfn); err != nil {
			return err
		}
		if pfn%Batch == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := s.flush(); err != nil {
		return err
	}
	s.first = false
	sent := s.span
	for range LiveRounds - 1 {
		log, n, err := s.take(false)
		if err != nil {
			return err
		}
		if err := s.pages(ctx, log); err != nil {
			return err
		}
		if Settled(n, sent) {
			break
		}
		sent = n
	}
	return nil
}

// checkpoint writes what a suspended domain has that the stream has not.
func (s *saver) checkpoint() error {
	log, _, err := s.take(true)
	if err != nil {
		return err
	}
	if err := s.pages(context.Background(), log); err != nil {
		return err
	}
	state, err := s.src.State()
	if err != nil {
		return err
	}
	s.buf = s.buf[:0]
	for _, r := range state {
		s.buf = savestream.AppendRecord(s.buf, r.Type, r.Body)
	}
	s.buf = savestream.AppendRecord(s.buf, savestream.Checkpoint, nil)
	// A domain that is being destroyed answers all questions, with less and less in it.
	switch ok, err := s.src.Marked(s.mark); {
	case err != nil:
		return err
	case !ok:
		return ErrLogTaken
	}
	_, err = s.w.Write(s.buf)
	return err
}

// findMark finds the lowest page that the log shows: firmware's, which a running domain
// does not write.
func (s *saver) findMark() error {
	for at := uint64(0); at < s.span; at += Batch {
		s.pfns = s.pfns[:0]
		for pfn := at; pfn < min(at+Batch, s.span); pfn++ {
			s.pfns = append(s.pfns, pfn)
		}
		types := s.types[:len(s.pfns)]
		if err := s.src.Types(s.pfns, types); err != nil {
			return err
		}
		for i, t := range types {
			if t.HasData() {
				s.mark, s.pfns = s.pfns[i], s.pfns[:0]
				return s.src.Mark(s.mark, 1)
			}
		}
	}
	return errors.New("the domain has no memory")
}

// take takes the log, sees whether anybody else has, and counts its pages.
func (s *saver) take(suspended bool) ([]uint64, uint64, error) {
	span, err := s.src.Span()
	if err != nil {
		return nil, 0, err
	}
	if span > s.most {
		return nil, 0, fmt.Errorf("%w to %d pages, it had %d", ErrGrown, span, s.span)
	}
	// Looked for before the log is emptied: it may be another program's by now.
	switch mine, err := s.src.Marked(s.mark); {
	case err != nil:
		return nil, 0, err
	case !mine:
		return nil, 0, ErrLogTaken
	}
	had := s.span
	s.span = max(s.span, span)
	log, err := s.src.TakeLog(s.span, suspended)
	if err != nil {
		return nil, 0, err
	}
	if rest := s.span % 64; rest != 0 {
		log[s.span/64] &= 1<<rest - 1 // Xen writes whole bytes
	}
	if log[s.mark/64]>>(s.mark%64)&1 == 0 {
		return nil, 0, errors.Join(ErrLogTaken, s.putBack(log))
	}
	if err := s.src.Mark(s.mark, 1); err != nil {
		return nil, 0, err
	}
	// Pages above those that the domain had are new to the backup, whatever the log says.
	for p := had; p < s.span; p++ {
		log[p/64] |= 1 << (p % 64)
	}
	n := 0
	for _, word := range log {
		n += bits.OnesCount64(word)
	}
	return log, uint64(n), nil
}

// putBack has the log of another program as it was before it was taken.
func (s *saver) putBack(log []uint64) error {
	for p := uint64(0); p < s.span; {
		word := log[p/64] >> (p % 64)
		if word == 0 {
			p = (p/64 + 1) * 64
			continue
		}
		p += uint64(bits.TrailingZeros64(word))
		n := uint64(1)
		for p+n < s.span && log[(p+n)/64]>>((p+n)%64)&1 == 1 {
			n++
		}
		if err := s.src.Mark(p, n); err != nil {
			return err
		}
		p += n
	}
	return nil
}

// pages writes the pages of a log.
func (s *saver) pages(ctx context.Context, log []uint64) error {
	for i, word := range log {
		for ; word != 0; word &= word - 1 {
			if err := s.add(uint64(i)*64 + uint64(bits.TrailingZeros64(word))); err != nil {
				return err
			}
		}
		if i%Batch == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return s.flush()
}

func (s *saver) add(pfn uint64) error {
	s.pfns = append(s.pfns, pfn)
	if len(s.pfns) < Batch {
		return nil
	}
	return s.flush()
}

// recordHead is the length of a record's header, and of that of PAGE_DATA's body.
const recordHead, pageDataHead = 8, 8

// flush writes the pages that were collected as one PAGE_DATA record.
func (s *saver) flush() error {
	if len(s.pfns) == 0 {
		return nil
	}
	types := s.types[:len(s.pfns)]
	if err := s.src.Types(s.pfns, types); err != nil {
		return err
	}
	b := append(s.buf[:0], make([]byte, recordHead+pageDataHead)...)
	s.full = s.full[:0]
	n := 0
	for i, pfn := range s.pfns {
		t := types[i]
		if t == savestream.PageXTab && s.first {
			continue // the domain has no such page, and the backup none either
		}
		b = binary.LittleEndian.AppendUint64(b, savestream.PageEntry{PFN: pfn, Type: t}.Encode())
		n++
		if t.HasData() {
			s.full = append(s.full, pfn)
		}
	}
	s.buf, s.pfns = b, s.pfns[:0]
	if n == 0 {
		return nil
	}
	binary.LittleEndian.PutUint32(b, uint32(savestream.PageDataType))
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-recordHead+len(s.full)*savestream.PageSize))
	binary.LittleEndian.PutUint32(b[recordHead:], uint32(n))
	var pages []byte
	if len(s.full) > 0 {
		var err error
		if pages, err = s.src.Map(s.full); err != nil {
			return err
		}
		s.mapped = append(s.mapped, pages)
		s.kept += len(s.full)
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	if pages == nil {
		return nil
	}
	if _, err := s.w.Write(pages); err != nil {
		return err
	}
	if s.running || s.kept >= keptMapped {
		s.unmap()
	}
	return nil
}

func (s *saver) unmap() {
	for _, m := range s.mapped {
		s.src.Unmap(m)
	}
	s.mapped, s.kept = s.mapped[:0], 0
}
