package netbuffer

import (
	"slices"
	"sync"
)

// A Way is how a gate notices that the domain sends.
type Way string

// The ways, the best first.
const (
	EBPF         Way = "eBPF"          // a program at the queue sees each packet that the queue gets
	PacketSocket Way = "packet socket" // a socket at the vif sees each packet that comes
	Polling      Way = "polling"       // whoever reads the queues sees that packets wait
)

// A Watcher is a Path that says by itself when a packet arrives.
type Watcher interface {
	Path
	// Watch has first called, from any goroutine, soon after a packet arrives in
	// queue that is steered there after Watch returned. It may be called more
	// often, and for earlier packets. It doesn't wait for anything. An earlier
	// Watch of the queue ends.
	Watch(queue int, first func())
	// Watching returns the way in use, and why it is not a better one.
	Watching() (Way, error)
}

// Events is ready to receive when the domain has sent a packet into the running
// epoch. There is one event for each epoch at most, for the first packet; Seal
// takes back an event that nobody received. A gate that does not hold has none.
//
// Polling, only Release, Stats and Held look for packets. They do with the other
// ways too, should a packet have been missed.
func (g *Gate) Events() <-chan struct{} { return g.events.c }

// Watching returns the way in which the gate notices that the domain sends, and
// why it is not a better one. With several vifs it is the worst of theirs,
// without any it is empty.
func (g *Gate) Watching() (way Way, why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, v := range g.vifs {
		if v.gone {
			continue
		}
		vifWay, vifWhy := Polling, error(nil)
		if w, ok := v.Path.(Watcher); ok {
			vifWay, vifWhy = w.Watching()
		}
		if way == "" || vifWay.rank() > way.rank() {
			way, why = vifWay, vifWhy
		}
	}
	return way, why
}

func (w Way) rank() int { return slices.Index([]Way{EBPF, PacketSocket, Polling}, w) }

// watch has first called when a packet arrives in a queue, if the path can.
func (v *vif) watch(queue int, first func()) {
	if w, ok := v.Path.(Watcher); ok {
		w.Watch(queue, first)
	}
}

// look gives the running epoch's event if packets wait and there was none.
func (g *Gate) look() {
	if !g.holding || g.adopted || g.events.given() {
		return
	}
	for _, v := range g.vifs {
		if st, err := v.Path.State(v.Current); err == nil && st.Packets > 0 {
			g.events.first()()
			return
		}
	}
}

// A signal is what Events receives from. A watch is the time from a seal to the
// next.
type signal struct {
	c chan struct{}

	mu    sync.Mutex // held over nothing that waits
	watch uint64     // the present one
	told  bool       // it has had its event
}

func newSignal() *signal { return &signal{c: make(chan struct{}, 1), told: true} }

// next begins a watch and forgets the event of the one before. It returns what
// is to be called for the first packet.
func (s *signal) next() (first func()) {
	s.begin(false)
	return s.first()
}

// end is for a gate that doesn't hold any more.
func (s *signal) end() { s.begin(true) }

func (s *signal) begin(told bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch++
	s.told = told
	select {
	case <-s.c:
	default:
	}
}

// first returns what gives the event of the present watch, unless the watch has
// had one or is over.
func (s *signal) first() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	watch := s.watch
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if watch == s.watch && !s.told {
			s.told = true
			select {
			case s.c <- struct{}{}:
			default: // never: begin made room
			}
		}
	}
}

// given reports whether the present watch has had its event.
func (s *signal) given() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}
