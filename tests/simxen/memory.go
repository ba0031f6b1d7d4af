package simxen

import (
	"maps"
	"slices"

	"xlft/xlft"
)

// slack is how many pages a domain may have beyond those it has.
const slack = 4

// Grow is an operator's xl mem-set: the domain may have n more pages, and takes
// them.
func (d *Domain) Grow(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = len(d.pages) + n + slack
	for range n {
		d.fresh[len(d.pages)] = true
		d.pages = append(d.pages, nil)
	}
}

// GiveBack makes the domain return a page to the hypervisor. It takes a page for
// the same place as soon as it may.
func (d *Domain) GiveBack() {
	at := 1 + int(d.host.outside.Rand()%uint64(len(d.pages)-1))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone || d.suspended || d.saved || d.lacks[at] {
		return
	}
	d.lacks[at], d.pages[at] = true, nil
	delete(d.dirty, at)
	d.takePages()
}

// takePages is the domain's balloon driver.
func (d *Domain) takePages() {
	for _, i := range slices.Sorted(maps.Keys(d.lacks)) {
		if d.has() >= d.limit {
			return
		}
		delete(d.lacks, i)
		d.fresh[i] = true
	}
}

// has counts the domain's pages.
func (d *Domain) has() int { return len(d.pages) - len(d.lacks) }

// wrote notes that a page was written. As in Xen before 4.19.5, a page that has
// come since the log was cleaned is not logged.
func (d *Domain) wrote(i int) {
	if !d.fresh[i] {
		d.dirty[i] = true
	}
}

// clean begins a new log of written pages.
func (d *Domain) clean() {
	clear(d.dirty)
	clear(d.fresh)
}

func (g *guest) Memory() (m xlft.Memory, err error) {
	err = g.change(func(d *Domain) { m = xlft.Memory{Pages: uint64(d.has()), Limit: uint64(d.limit)} })
	return m, err
}

func (g *guest) HoldMemory() (m xlft.Memory, err error) {
	err = g.change(func(d *Domain) {
		g.limit = max(d.limit, len(d.pages)+slack)
		d.limit = d.has() - 1
		g.held = d.limit
		m = xlft.Memory{Pages: uint64(d.has()), Limit: uint64(d.limit)}
	})
	return m, err
}

func (g *guest) ReleaseMemory() error {
	return g.change(func(d *Domain) {
		if g.held != 0 && d.limit == g.held {
			d.limit = g.limit
		}
		g.held = 0
	})
}
