package simxen

import "time"

// Prompt has every packet that a domain sends from now on be heard within bound, until it is called with 0. Call it while
// nothing is faulty.
func (o *Outside) Prompt(bound time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.living {
		for count, at := range l.unheard {
			o.late(l, count, at)
		}
		l.unheard = nil
	}
	o.prompt = bound
}

// Prompting reports whether packets have to be heard in time.
func (o *Outside) Prompting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.prompt > 0
}

// late checks a packet that was sent at some time, and that is heard now or not yet.
func (o *Outside) late(l *life, count uint64, at time.Time) {
	if waited := time.Since(at); o.prompt > 0 && waited > o.prompt {
		o.violate("mode", "life %d: count %d waits for %v, and %v is the most", l.id, count, waited, o.prompt)
	}
}

// sent counts a packet that the domain sent into its gate.
func (o *Outside) sent(l *life, p Packet) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.sent++
	if o.prompt > 0 {
		if l.unheard == nil {
			l.unheard = map[uint64]time.Time{}
		}
		l.unheard[p.Count] = time.Now()
	}
}

// heard ends the wait of a packet.
func (o *Outside) heard(l *life, p Packet) {
	if at, ok := l.unheard[p.Count]; ok {
		o.late(l, p.Count, at)
		delete(l.unheard, p.Count)
	}
}

// Steps returns how many steps the domain has taken.
func (d *Domain) Steps() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	count, _ := d.state()
	return count
}

// Hush makes the domain compute on and send nothing, or send again.
func (d *Domain) Hush(silent bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent = silent
}
