package simxen

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"xlft/diskrepl"
)

// epochFiles is an EpochStore of a host: in memory for the disk server, or on stable storage for the receiver.
type epochFiles struct {
	mu         sync.Mutex
	all        map[uint64]*epochFile
	gone       []*epochFile // removed since the last Sync; a power cut may bring the newest ones back
	releaseAll bool
}

func newEpochFiles() *epochFiles { return &epochFiles{all: map[uint64]*epochFile{}} }

type epochFile struct {
	ramFile
	s      *epochFiles
	epoch  uint64
	synced bool
	whole  bool
}

func (l *epochFile) WriteAt(p []byte, off int64) (int, error) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.synced = false
	return l.ramFile.WriteAt(p, off)
}

func (l *epochFile) Truncate(size int64) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.synced = false
	l.ramFile.mu.Lock()
	defer l.ramFile.mu.Unlock()
	l.b = l.b[:size]
	return nil
}

func (l *epochFile) Sync() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.synced, l.s.gone = true, nil
	return nil
}

func (l *epochFile) Complete() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.whole, l.s.gone = true, nil
	return nil
}

func (l *epochFile) Completed() bool {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.whole
}

func (l *epochFile) Close() error { return nil }

func (l *epochFile) Remove() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.gone = append(l.s.gone, l)
	delete(l.s.all, l.epoch)
	return nil
}

func (s *epochFiles) Create(epoch uint64) (diskrepl.EpochFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[epoch] != nil {
		return nil, fmt.Errorf("simxen: the file of epoch %d is there", epoch)
	}
	s.gone = nil // the directory was synced
	s.all[epoch] = &epochFile{s: s, epoch: epoch}
	return s.all[epoch], nil
}

func (s *epochFiles) Left() (map[uint64]diskrepl.EpochFile, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := map[uint64]diskrepl.EpochFile{}
	for e, l := range s.all {
		left[e] = l
	}
	return left, s.releaseAll, nil
}

func (s *epochFiles) SetReleaseAll(releaseAll bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseAll = releaseAll
	return nil
}

func (s *epochFiles) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.all)
	s.gone = nil
}

// interrupt leaves the newest file as a process does that dies in the middle of a write: with an incomplete last
// record, whose write was not answered.
func (s *epochFiles) interrupt(o *Outside) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var top *epochFile
	for _, l := range s.all {
		if top == nil || l.epoch > top.epoch {
			top = l
		}
	}
	if top == nil {
		return
	}
	top.ramFile.mu.Lock()
	defer top.ramFile.mu.Unlock()
	if len(top.b) <= sectorSize {
		return
	}
	part := top.b[:o.Rand()%sectorSize] // shorter than the first record
	top.b = append(top.b, part...)
}

// afterPowerCut returns the files that may be left when power is back. The caller holds the lock.
func (s *epochFiles) afterPowerCut(o *Outside) *epochFiles {
	left := newEpochFiles()
	keep := func(l *epochFile, torn bool) {
		l.ramFile.mu.Lock()
		b := slices.Clone(l.b)
		l.ramFile.mu.Unlock()
		if torn {
			b = b[:o.Rand()%uint64(len(b)+1)]
			for at := 0; at < len(b); at += sectorSize {
				if o.Rand()%4 == 0 {
					clear(b[at:min(at+sectorSize, len(b))])
				}
			}
		}
		left.all[l.epoch] = &epochFile{s: left, epoch: l.epoch, whole: l.whole, ramFile: ramFile{b: b}}
	}
	for _, e := range slices.Sorted(maps.Keys(s.all)) {
		keep(s.all[e], !s.all[e].synced)
	}
	for _, l := range s.gone[o.Rand()%uint64(len(s.gone)+1):] {
		keep(l, !l.synced)
	}
	return left
}

// handFiles is a process's handle on epochFiles. After the death of the process it has no effect.
type handFiles struct {
	*epochFiles
	proc *Process
}

func (s handFiles) Create(epoch uint64) (diskrepl.EpochFile, error) {
	if s.proc.Dead() {
		return nil, errDead
	}
	l, err := s.epochFiles.Create(epoch)
	if err != nil {
		return nil, err
	}
	return handFile{l.(*epochFile), s.proc}, nil
}

type handFile struct {
	*epochFile
	proc *Process
}

func (l handFile) WriteAt(p []byte, off int64) (int, error) {
	if l.proc.Dead() {
		return 0, errDead
	}
	return l.epochFile.WriteAt(p, off)
}

func (l handFile) Sync() error {
	if l.proc.Dead() {
		return errDead
	}
	return l.epochFile.Sync()
}

func (l handFile) Complete() error {
	if l.proc.Dead() {
		return errDead
	}
	return l.epochFile.Complete()
}

func (l handFile) Remove() error {
	if l.proc.Dead() {
		return errDead
	}
	return l.epochFile.Remove()
}

// ramFile is a file in memory.
type ramFile struct {
	mu sync.Mutex
	b  []byte
}

func (f *ramFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if grow := off + int64(len(p)) - int64(len(f.b)); grow > 0 {
		f.b = append(f.b, make([]byte, grow)...)
	}
	return copy(f.b[off:], p), nil
}

func (f *ramFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := copy(p, f.b[min(off, int64(len(f.b))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
