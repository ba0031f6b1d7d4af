package processes

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// A World is what the processes run in: two hosts, and the clients outside.
type World struct {
	o     Options
	dir   string
	begun time.Time
	rng   *rand.Rand
	out   io.Writer
	hosts [2]*host
	net   *network

	forces forces

	power sync.Mutex // one change of power at a time

	operator sync.WaitGroup // what an operator does

	groups   map[string]bool // cgroups to remove
	noGroups bool            // there are none here

	mu      sync.Mutex // guards hosts' domains and what is in them
	lastID  uint32
	stopped bool // an operator ended the protection

	// What leaves the hosts; the lock is taken inside of mu and of a path's.
	outmu      sync.Mutex
	lives      []*life
	waiting    map[uint64]chan reply
	violations []string
	events     []string
	faults     []*fault // since all was well

	// How many copies of the domain were taken since all was well: one is no reason
	// to lose the domain.
	losses int

	history history
	Counts  Counts
}

// A life is a run of the domain, from its boot or a takeover on.
type life struct {
	id     uint64
	where  string
	parent *life
	start  uint64 // the step that it began after
	out    uint64 // newest step of which a reply left
	forks  []*life

	sent, got uint64 // replies

	// safe is what was last said of it: that it is protected. A protector that
	// stands still or was killed has said so, if it did. From a takeover on until
	// somebody says it anew there is one copy.
	safe bool
}

// Counts are what a run did.
type Counts struct {
	Operations, Unanswered, Takeovers, Fences, Lost, Checked int
	Faults                                                   map[string]int
}

func (w *World) now() time.Duration { return time.Since(w.begun) }

// say adds a line to the run's story.
func (w *World) say(format string, args ...any) {
	w.outmu.Lock()
	defer w.outmu.Unlock()
	w.tell(fmt.Sprintf(format, args...))
}

func (w *World) tell(line string) {
	line = fmt.Sprintf("%7.2f  %s", w.now().Seconds(), line)
	w.events = append(w.events, line)
	if w.out != nil {
		fmt.Fprintln(w.out, line)
	}
}

// violate notes a broken promise.
func (w *World) violate(promise, format string, args ...any) {
	w.outmu.Lock()
	defer w.outmu.Unlock()
	w.violateLocked(promise, format, args...)
}

func (w *World) violateLocked(promise, format string, args ...any) {
	line := promise + ": " + fmt.Sprintf(format, args...)
	w.tell("VIOLATION " + line)
	if len(w.violations) < 20 {
		w.violations = append(w.violations, fmt.Sprintf("after %.1f s: %s", w.now().Seconds(), line))
	}
}

func (w *World) broken() bool {
	w.outmu.Lock()
	defer w.outmu.Unlock()
	return len(w.violations) > 0
}

// birth begins a life of a domain that comes to run. The caller has w.mu.
func (w *World) birth(d *domain) {
	w.outmu.Lock()
	defer w.outmu.Unlock()
	l := &life{id: uint64(len(w.lives)) + 1, where: d.host.name, start: d.count()}
	if id := d.lifeID(); id > 0 {
		l.parent = w.lives[id-1]
		l.parent.forks = append(l.parent.forks, l)
		w.Counts.Takeovers++
		w.tell(fmt.Sprintf("the domain runs on %s from step %d on", l.where, l.start))
		w.judgeTakeover(l.where, l.parent.where)
		if l.parent.out > l.start {
			w.violateLocked("P1", "replies up to step %d have left %s, and %s runs on from step %d", l.parent.out, l.parent.where, l.where, l.start)
		}
	}
	w.lives = append(w.lives, l)
	d.life = l
	d.put(0, 8, l.id)
}

// lifeOn returns the domain's present life, if it is on that host.
func (w *World) lifeOn(h *host) *life {
	w.outmu.Lock()
	defer w.outmu.Unlock()
	if n := len(w.lives); n > 0 && w.lives[n-1].where == h.name {
		return w.lives[n-1]
	}
	return nil
}

// heard notes whether a life is said to be protected.
func (w *World) heard(l *life, safe bool) {
	w.outmu.Lock()
	defer w.outmu.Unlock()
	if l != nil {
		l.safe = safe
	}
}

func (w *World) isSafe(l *life) bool {
	w.outmu.Lock()
	defer w.outmu.Unlock()
	return l.safe
}

// deliver is a packet that leaves a host.
func (w *World) deliver(a reply) {
	w.outmu.Lock()
	defer w.outmu.Unlock()
	l := w.lives[a.life-1]
	l.out = max(l.out, a.count)
	l.got++
	for _, f := range l.forks {
		if a.count > f.start && !w.history.closed {
			w.violateLocked("P1, P3", "a reply of step %d leaves %s, and %s has run on from step %d", a.count, l.where, f.where, f.start)
			l.forks = nil // once is enough
			break
		}
	}
	if ch := w.waiting[a.id]; ch != nil {
		select {
		case ch <- a:
		default: // answered already, by another life
		}
	}
}

// send lets a request reach every domain that is there.
func (w *World) send(r request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		for _, d := range h.domains {
			d.take(r)
		}
	}
}

// running returns the hosts on which a domain has come to run and still is, and
// whether it takes steps there.
func (w *World) running() (hosts []*host, steps int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.hosts {
		for _, d := range h.domains {
			if d.life != nil {
				hosts = append(hosts, h)
				if d.runs() {
					steps++
				}
				break
			}
		}
	}
	return hosts, steps
}
