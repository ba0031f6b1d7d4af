package primary

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"xlft/savestream"
	"xlft/xlft/wire"
)

// A spool stands between the capture and the wire, so that a suspended domain
// never waits for the network. It follows the stream and knows where a
// checkpoint ends.
//
// While the domain runs (the first, live pass) the spool holds the writer back at
// liveLimit, so that the first pass is never wholly in memory. While the domain
// is suspended the spool takes up to limit bytes. A larger checkpoint goes to
// the wire before it is whole: then the pause does contain the network, and the
// checkpoint counts as an overflow. Its end goes only when the capture is done.
type spool struct {
	limit int64
	free  wire.Buffers

	mu       sync.Mutex
	cond     *sync.Cond // broadcast on any change below
	queue    []piece
	size     int64 // bytes in queue
	peak     int64
	live     bool
	opened   uint64    // epochs up to this one may be sent, without their ends
	whole    uint64    // epochs up to this one may be sent with their ends
	epoch    uint64    // being written
	moved    time.Time // when a piece last came or went
	overflow uint64
	err      error // ends both sides
}

// A piece is some bytes of an epoch. The last one has the epoch's counts.
type piece struct {
	data  []byte
	last  bool
	stats savestream.Stats
}

// liveLimit is how many bytes wait for the wire at most while the domain runs.
const liveLimit = 8 << 20

func newSpool(limit int64) *spool {
	s := &spool{limit: limit, live: true, epoch: 1, opened: 1}
	s.cond = sync.NewCond(&s.mu)
	return s
}

// errSpoolClosed ends a spool whose reader has gone away.
var errSpoolClosed = errors.New("nobody reads the checkpoint")

// ReadFrom takes the stream from r until its end, which may come after any
// whole checkpoint. It stops at the first byte that is no valid stream.
func (s *spool) ReadFrom(r io.Reader) (int64, error) {
	var scan savestream.Scanner
	for {
		// A piece is filled as far as the epoch goes: each becomes a frame.
		buf, fill, whole := s.buffer(), 0, false
		var end error
		for fill < len(buf) && !whole && end == nil {
			var n int
			n, end = r.Read(buf[fill:])
			used, mark, err := scan.Scan(buf[fill : fill+n])
			switch {
			case err != nil:
				end = err
			case used < n:
				// libxc writes nothing more until it is asked for the next
				// checkpoint.
				end = fmt.Errorf("%d bytes follow the end of epoch %d too early", n-used, s.writing())
			}
			fill += used
			whole = mark != savestream.MarkNone
		}
		if fill > 0 {
			if err := s.push(piece{buf[:fill], whole, scan.Stats()}); err != nil {
				return scan.Offset(), err
			}
		}
		switch {
		case end == io.EOF && (whole || scan.AtBoundary()):
			return scan.Offset(), nil
		case end == io.EOF:
			end = io.ErrUnexpectedEOF
			fallthrough
		case end != nil:
			s.fail(end)
			return scan.Offset(), end
		}
	}
}

func (s *spool) writing() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// buffer returns a buffer to be filled.
func (s *spool) buffer() []byte {
	if b := s.free.Get(); b != nil {
		return b[:cap(b)]
	}
	return make([]byte, wire.DataBody)
}

// recycle takes back what next gave out.
func (s *spool) recycle(b []byte) { s.free.Put(b) }

func (s *spool) push(p piece) error {
	n := int64(len(p.data))
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && s.size > 0 {
		limit := s.limit
		if s.live {
			limit = liveLimit
		}
		if s.size+n <= limit {
			break
		}
		if s.opened < s.epoch {
			s.opened = s.epoch
			s.overflow++
			s.cond.Broadcast()
		}
		s.cond.Wait()
	}
	if s.err != nil {
		return s.err
	}
	s.queue = append(s.queue, p)
	s.size += n
	s.peak = max(s.peak, s.size)
	s.moved = time.Now()
	if p.last {
		s.epoch++
	}
	s.cond.Broadcast()
	return nil
}

// next returns the next piece of epoch e, once it may be sent. The end of an
// epoch waits for open, however early the rest may go: the backup must not hold
// a whole checkpoint before the primary knows it.
func (s *spool) next(e uint64) (piece, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && (s.opened < e || len(s.queue) == 0 || s.queue[0].last && s.whole < e) {
		s.cond.Wait()
	}
	if s.err != nil {
		return piece{}, s.err
	}
	p := s.queue[0]
	s.queue[0] = piece{}
	s.queue = s.queue[1:]
	s.size -= int64(len(p.data))
	s.moved = time.Now()
	s.cond.Broadcast()
	return p, nil
}

// open lets epoch e be sent, whole.
func (s *spool) open(e uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened, s.whole = max(s.opened, e), max(s.whole, e)
	s.cond.Broadcast()
}

// suspended says that the live pass is over: the domain waits while it is
// copied.
func (s *spool) suspended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = false
	s.cond.Broadcast()
}

// fail ends both sides with err.
func (s *spool) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.queue, s.size = nil, 0
	s.free.Clear()
	s.cond.Broadcast()
}

// lastMove returns when a piece last came or went: long ago if the capture, or
// the way to the backup, stands still.
func (s *spool) lastMove() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

func (s *spool) usage() (peak int64, overflow uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peak, s.overflow
}
