package simxen

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"xlft/diskrepl"
)

// layers are what a host keeps of epochs that its disk does not have: in its
// memory for its disk server, or on stable storage for its receiver.
type layers struct {
	mu   sync.Mutex
	all  map[uint64]*layer
	gone []*layer // removed since the last Sync: a power cut brings the newest of them back, or more, or none
	free bool
}

func newLayers() *layers { return &layers{all: map[uint64]*layer{}} }

type layer struct {
	ramFile
	s      *layers
	epoch  uint64
	synced bool
}

func (l *layer) WriteAt(p []byte, off int64) (int, error) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.synced = false
	return l.ramFile.WriteAt(p, off)
}

func (l *layer) Truncate(size int64) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.synced = false
	l.ramFile.mu.Lock()
	defer l.ramFile.mu.Unlock()
	l.b = l.b[:size]
	return nil
}

func (l *layer) Sync() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.synced, l.s.gone = true, nil
	return nil
}

func (l *layer) Close() error { return nil }

func (l *layer) Remove() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.s.gone = append(l.s.gone, l)
	delete(l.s.all, l.epoch)
	return nil
}

func (s *layers) Create(epoch uint64) (diskrepl.Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[epoch] != nil {
		return nil, fmt.Errorf("simxen: a layer of epoch %d is there", epoch)
	}
	s.gone = nil // the directory was synced
	s.all[epoch] = &layer{s: s, epoch: epoch}
	return s.all[epoch], nil
}

func (s *layers) Left() (map[uint64]diskrepl.Layer, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := map[uint64]diskrepl.Layer{}
	for e, l := range s.all {
		left[e] = l
	}
	return left, s.free, nil
}

func (s *layers) SetFree(free bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = free
	return nil
}

func (s *layers) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.all)
	s.gone = nil
}

// interrupt is the death of a process that was writing to its newest layer: a
// part of a record is there that nobody was told of.
func (s *layers) interrupt(w *World) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var top *layer
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
	part := top.b[:w.Rand()%sectorSize] // its first record has more
	top.b = append(top.b, part...)
}

// afterPowerCut is what may be left when the power came back. It is called with
// the lock.
func (s *layers) afterPowerCut(w *World) *layers {
	left := newLayers()
	keep := func(l *layer, torn bool) {
		l.ramFile.mu.Lock()
		b := slices.Clone(l.b)
		l.ramFile.mu.Unlock()
		if torn {
			b = b[:w.Rand()%uint64(len(b)+1)]
			for at := 0; at < len(b); at += sectorSize {
				if w.Rand()%4 == 0 {
					clear(b[at:min(at+sectorSize, len(b))])
				}
			}
		}
		left.all[l.epoch] = &layer{s: left, epoch: l.epoch, ramFile: ramFile{b: b}}
	}
	for _, e := range slices.Sorted(maps.Keys(s.all)) {
		keep(s.all[e], !s.all[e].synced)
	}
	for _, l := range s.gone[w.Rand()%uint64(len(s.gone)+1):] {
		keep(l, !l.synced)
	}
	return left
}

// handLayers are layers in the hand of a process: nothing that it does after
// its death has an effect.
type handLayers struct {
	*layers
	proc *Process
}

func (s handLayers) Create(epoch uint64) (diskrepl.Layer, error) {
	if s.proc.Dead() {
		return nil, errDead
	}
	l, err := s.layers.Create(epoch)
	if err != nil {
		return nil, err
	}
	return handLayer{l.(*layer), s.proc}, nil
}

type handLayer struct {
	*layer
	proc *Process
}

func (l handLayer) WriteAt(p []byte, off int64) (int, error) {
	if l.proc.Dead() {
		return 0, errDead
	}
	return l.layer.WriteAt(p, off)
}

func (l handLayer) Sync() error {
	if l.proc.Dead() {
		return errDead
	}
	return l.layer.Sync()
}

func (l handLayer) Remove() error {
	if l.proc.Dead() {
		return errDead
	}
	return l.layer.Remove()
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
