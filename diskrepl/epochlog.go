package diskrepl

import "sync"

// An epochLog is what an epoch wrote, in order.
type epochLog struct {
	recs    []logged
	slabs   [][]byte // memory of the bodies
	bytes   int64    // in memory
	spilled int64    // in the spill file
}

// A logged record is one of an epochLog.
type logged struct {
	record
	body []byte
	at   int64  // where the body is in the spill file, if it is not in memory
	crc  uint32 // CRC-32C of a body in the spill file
}

// spilled reports whether the record's body is in the spill file.
func (l logged) spilled() bool { return l.body == nil && l.typ.hasBody() && l.n > 0 }

// slabs give memory for the bodies of an epoch's records, and take it back
// after the commit.
type slabs struct {
	mu   sync.Mutex
	free [][]byte
	keep int // how many to keep, from the use of recent epochs: a new slab has to be zeroed
}

const slabSize = 1 << 20 // bytes

// body returns n bytes that are valid until the log is released.
func (s *slabs) body(log *epochLog, n int) []byte {
	if k := len(log.slabs); k > 0 {
		if last := log.slabs[k-1]; cap(last)-len(last) >= n {
			log.slabs[k-1] = last[:len(last)+n]
			return last[len(last) : len(last)+n : len(last)+n]
		}
	}
	var b []byte
	if n <= slabSize {
		s.mu.Lock()
		if k := len(s.free); k > 0 {
			b, s.free = s.free[k-1], s.free[:k-1]
		}
		s.mu.Unlock()
	}
	if b == nil {
		b = make([]byte, 0, max(n, slabSize))
	}
	log.slabs = append(log.slabs, b[:n])
	return b[:n:n]
}

// release takes back the memory of a log, and empties it.
func (s *slabs) release(log *epochLog) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep = max(2*len(log.slabs), s.keep-s.keep/8)
	for _, b := range log.slabs {
		if cap(b) == slabSize {
			s.free = append(s.free, b[:0])
		}
	}
	if len(s.free) > s.keep {
		clear(s.free[s.keep:])
		s.free = s.free[:s.keep]
	}
	log.slabs, log.recs = nil, nil
}
