package backup

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"sync"

	"xlft/diskrepl"
)

// crashFiles are the files of a durable journal, as diskrepl.EpochDir keeps them.
type crashFiles struct {
	m       map[uint64]*crashFile
	removed map[uint64]*crashFile // the directory's stable storage may still have them
	full    bool
}

type crashFile struct {
	data, stable []byte
	whole        bool
	rotten       bool // the storage changed it
}

// afterPowerCut returns what is left: of what was not synced any part.
func (f *crashFiles) afterPowerCut(c *chance) *crashFiles {
	left := &crashFiles{m: map[uint64]*crashFile{}}
	for e, x := range f.m {
		left.m[e] = x.afterPowerCut(c)
	}
	for e, x := range f.removed {
		if left.m[e] == nil && c.in(2) {
			left.m[e] = x.afterPowerCut(c)
		}
	}
	return left
}

func (x *crashFile) afterPowerCut(c *chance) *crashFile {
	data := bytes.Clone(x.stable)
	if len(x.data) > len(data) {
		data = append(data, make([]byte, c.n(len(x.data)-len(data)+1))...)
	}
	for at := 0; at < len(data); at += sectorSize {
		if c.in(2) {
			copy(data[at:min(at+sectorSize, len(data))], x.data[at:])
		}
	}
	return &crashFile{data: data, stable: bytes.Clone(data), whole: x.whole, rotten: x.rotten}
}

// rot flips a bit of a file, and reports whether there is one.
func (f *crashFiles) rot(c *chance) bool {
	for _, x := range f.m {
		if len(x.data) == 0 || len(x.stable) != len(x.data) {
			continue
		}
		at, bit := c.n(len(x.data)), byte(1)<<c.n(8)
		x.data[at] ^= bit
		x.stable[at] ^= bit
		x.rotten = true
		return true
	}
	return false
}

func (f *crashFiles) anyRotten() bool {
	for _, x := range f.m {
		if x.rotten {
			return true
		}
	}
	for _, x := range f.removed {
		if x.rotten {
			return true
		}
	}
	return false
}

// A crashStore is a process's diskrepl.EpochStore.
type crashStore struct{ *hand }

func (s crashStore) Create(epoch uint64) (diskrepl.EpochFile, error) {
	err := s.do(nil, func() error {
		switch {
		case s.files.m[epoch] != nil:
			return errors.New("crash matrix: there is a file of that epoch")
		case s.files.full:
			return errFull
		}
		s.files.m[epoch], s.files.removed = new(crashFile), nil
		return nil
	})
	return &crashHandle{s, epoch}, err
}

func (s crashStore) Left() (map[uint64]diskrepl.EpochFile, bool, error) {
	left := map[uint64]diskrepl.EpochFile{}
	err := s.do(nil, func() error {
		for e := range s.files.m {
			left[e] = &crashHandle{s, e}
		}
		return nil
	})
	return left, false, err
}

func (s crashStore) SetReleaseAll(bool) error { return nil }

// clear removes all files, durably.
func (s crashStore) clear() error {
	gone := func(some bool) {
		if s.files.removed == nil {
			s.files.removed = map[uint64]*crashFile{}
		}
		for e, x := range s.files.m {
			if !some || s.chance.in(2) {
				s.files.removed[e] = x
				delete(s.files.m, e)
			}
		}
	}
	return s.do(func() error { gone(true); return nil }, func() error {
		gone(false)
		s.files.removed = nil
		return nil
	})
}

type crashHandle struct {
	crashStore
	epoch uint64
}

func (h *crashHandle) file() (*crashFile, error) {
	if f := h.files.m[h.epoch]; f != nil {
		return f, nil
	}
	return nil, errors.New("crash matrix: the file is gone")
}

func (h *crashHandle) ReadAt(p []byte, off int64) (n int, err error) {
	err = h.do(nil, func() error {
		f, err := h.file()
		if err == nil && off < int64(len(f.data)) {
			n = copy(p, f.data[off:])
		}
		return err
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (h *crashHandle) WriteAt(p []byte, off int64) (int, error) {
	some := func(n int) error {
		f, err := h.file()
		if err != nil {
			return err
		}
		if h.files.full {
			return errFull
		}
		f.data = append(f.data, make([]byte, max(0, int(off)+n-len(f.data)))...)
		copy(f.data[off:], p[:n])
		return nil
	}
	return len(p), h.do(func() error { return some(h.chance.n(len(p) + 1)) }, func() error { return some(len(p)) })
}

func (h *crashHandle) Truncate(int64) error { return errors.New("crash matrix: no Replica truncates") }

func (h *crashHandle) Sync() error {
	return h.do(nil, func() error {
		f, err := h.file()
		if err == nil {
			f.stable = bytes.Clone(f.data)
		}
		return err
	})
}

func (h *crashHandle) Complete() error {
	return h.do(nil, func() error {
		f, err := h.file()
		if err == nil {
			f.whole, h.files.removed = true, nil
		}
		return err
	})
}

func (h *crashHandle) Completed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.files.m[h.epoch]
	return f != nil && f.whole
}

func (h *crashHandle) Remove() error {
	return h.do(nil, func() error {
		f, err := h.file()
		if err == nil {
			if h.files.removed == nil {
				h.files.removed = map[uint64]*crashFile{}
			}
			h.files.removed[h.epoch] = f
			delete(h.files.m, h.epoch)
		}
		return err
	})
}

func (h *crashHandle) Close() error { return nil }

// A crashSpill is a spill file in memory, which may give back something else
// than it was given.
type crashSpill struct {
	chance *chance
	rotten bool

	mu sync.Mutex
	b  []byte
}

func (f *crashSpill) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := int(off) + len(p); n > len(f.b) {
		f.b = slices.Grow(f.b, n-len(f.b))[:n]
	}
	return copy(f.b[off:], p), nil
}

func (f *crashSpill) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := copy(p, f.b[off:])
	if f.rotten && n > 0 && f.chance.in(4) {
		p[f.chance.n(n)] ^= 1
	}
	return n, nil
}
