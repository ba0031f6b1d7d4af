package simxen

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// A Packet is what a domain sends to the outside: its count, and a checksum of the inputs that led to that count.
type Packet struct {
	Count uint64
	Sum   uint64
}

// A life is one run of a domain on one host. A takeover starts a new life from a state of an earlier life.
type life struct {
	id       int
	host     string
	from     *life
	forked   uint64               // count of its first state
	sums     map[uint64]uint64    // checksum at each count, back to the first life
	captured map[uint64]bool      // hashes of the states that checkpoints took
	sent     uint64               // packets sent into the gate
	got      uint64               // packets delivered
	last     uint64               // count of the newest packet delivered
	held     uint64               // count of the newest state that a backup was given
	unheard  map[uint64]time.Time // when packets were sent that have to be heard in time
	domain   *Domain
}

// Outside is everything outside of the hosts: it sees each packet that leaves them and checks the promises.
type Outside struct {
	// NoDisks: domains have no disk. NoFlushes: they write to their disk and never flush it. Set both before the first
	// domain boots.
	NoDisks, NoFlushes bool

	mu         sync.Mutex
	rng        *rand.Rand
	lives      []*life
	living     []*life // those whose domain is not gone
	violations []string
	seen       map[string]bool
	began      time.Time
	disks      []*diskHistory         // one for each session, oldest first
	protected  map[string]func() bool // what a host's protector says of a domain
	destroyed  map[string]time.Time   // when a replica of a domain was destroyed last
	prompt     time.Duration          // in which packets have to be heard; 0: none
	Takeovers  int
	Promoted   int // power cuts tried on a copy that a domain could be run from
	Delivered  int
}

// NewOutside returns an outside whose random numbers come from seed.
func NewOutside(seed uint64) *Outside {
	return &Outside{
		rng: rand.New(rand.NewPCG(seed, 1)), seen: map[string]bool{}, began: time.Now(),
		protected: map[string]func() bool{}, destroyed: map[string]time.Time{},
	}
}

// Rand returns a random number. A domain takes its inputs from here, so that a domain that resumes from a checkpoint
// does not repeat what its lost epoch did.
func (o *Outside) Rand() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rng.Uint64()
}

// Violations returns the promises that were broken so far.
func (o *Outside) Violations() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.violations
}

// Violate records a broken promise; each promise is recorded once.
func (o *Outside) Violate(promise, format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.violate(promise, format, args...)
}

func (o *Outside) violate(promise, format string, args ...any) {
	if o.seen[promise] {
		return
	}
	o.seen[promise] = true
	o.violations = append(o.violations, fmt.Sprintf("%s at %v: %s", promise, time.Since(o.began), fmt.Sprintf(format, args...)))
}

// birth starts a life; from is nil for a domain that boots.
func (o *Outside) birth(d *Domain, from *life, count, sum uint64) *life {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := &life{id: len(o.lives) + 1, host: d.host.Name, from: from, forked: count, captured: map[uint64]bool{}, domain: d}
	if from == nil {
		l.sums = map[uint64]uint64{0: 0}
	} else {
		o.Takeovers++
		if from.sums[count] != sum {
			o.violate("P4", "life %d begins at count %d with a checksum that life %d never had there", l.id, count, from.id)
		}
		l.sums = make(map[uint64]uint64, len(from.sums))
		for c, s := range from.sums {
			if c <= count {
				l.sums[c] = s
			}
		}
		for f := from; f != nil; f = f.from {
			if f.last > count {
				o.violate("P1", "life %d begins at count %d, but the outside has heard %d from life %d", l.id, count, f.last, f.id)
			}
		}
	}
	o.lives, o.living = append(o.lives, l), append(o.living, l)
	o.checkRunners()
	return l
}

// lived records a step of a domain.
func (o *Outside) lived(l *life, count, sum uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.sums[count] = sum
	o.checkRunners()
}

// checkRunners checks P3: at most one life of a domain runs and can send.
func (o *Outside) checkRunners() {
	o.living = slices.DeleteFunc(o.living, func(l *life) bool { return l.domain.Gone() })
	for i, l := range o.living {
		if !l.domain.speaks() {
			continue
		}
		for _, other := range o.living[:i] {
			if other.domain.Name == l.domain.Name && other.domain.speaks() {
				o.violate("P3", "lives %d (%s) and %d (%s) both run and can speak", other.id, other.host, l.id, l.host)
			}
		}
	}
}

func (o *Outside) took(l *life, hash uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.captured[hash] = true
}

// restored checks that the state that is about to run was captured by a checkpoint.
func (o *Outside) restored(hash uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.lives {
		if l.captured[hash] {
			return
		}
	}
	o.violate("P4", "a state that no checkpoint took is about to run")
}

// Protector has what a domain says on a host judged while protected reports true: then a backup has to have been given
// the state that says it. Protected is called by whatever sends or lets out a packet, and may wait for none of that.
func (o *Outside) Protector(host, domain string, protected func() bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.protected[host+"/"+domain] = protected
}

// given records the state of a whole checkpoint that a backup's restore has.
func (o *Outside) given(name string, count, sum uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.parent(name, count, sum); l != nil && l.sums[count] == sum {
		l.held = max(l.held, count)
	}
}

// lostReplica records that a domain's replica is destroyed: an epoch that it had acknowledged, and had not been given yet,
// goes with it.
func (o *Outside) lostReplica(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.destroyed[name] = time.Now()
}

// hearsay is how long a primary may go by an ack of a replica that has failed since.
const hearsay = time.Second

// protector returns what Protector was given for a life, or nil.
func (o *Outside) protector(id int) func() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.lives[id-1]
	return o.protected[l.host+"/"+l.domain.Name]
}

// deliver takes a packet that left a host, and checks that it is in order and true.
func (o *Outside) deliver(id int, p Packet) {
	says := o.protector(id)
	protected := says != nil && says()
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.lives[id-1]
	if protected && p.Count > l.held && time.Since(o.destroyed[l.domain.Name]) > hearsay {
		o.violate("P1", "life %d is heard at count %d while it is protected, and the backup has %d", l.id, p.Count, l.held)
	}
	o.heard(l, p)
	o.Delivered++
	l.got++
	if p.Count <= l.last {
		o.violate("P5", "life %d: count %d heard after %d: out of order or doubled", l.id, p.Count, l.last)
	}
	l.last = p.Count
	if l.sums[p.Count] != p.Sum {
		o.violate("P4", "life %d says a checksum at %d that it never had", l.id, p.Count)
	}
	for _, n := range o.lives {
		// A packet of an older life is true only up to the state that the newer life began with.
		if n.descends(l) && p.Count > n.forked {
			o.violate("P1", "life %d is heard at count %d after life %d began at %d", l.id, p.Count, n.id, n.forked)
		}
		if n.got > 0 && n.descends(l) {
			o.violate("P3", "life %d (%s) is heard at count %d after life %d (%s) was heard", l.id, l.host, p.Count, n.id, n.host)
		}
	}
}

func (l *life) descends(from *life) bool {
	for f := l.from; f != nil; f = f.from {
		if f == from {
			return true
		}
	}
	return false
}
