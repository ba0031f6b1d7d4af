package lines

import "xlft/savestream"

type page = [savestream.PageSize]byte

// A cache has the content of some pages, at most max. When it is full the page that was
// used least recently makes room.
type cache struct {
	max   int
	at    map[uint64]int32 // by pfn: index into slots
	slots []slot
	spare []page // made, and not in a slot yet
	// The ends of the list by use; -1: none.
	newest, oldest int32
}

type slot struct {
	pfn          uint64
	newer, older int32
	page         *page
}

// chunk is how many pages are made at once.
const chunk = 64

func newCache(bytes int64) *cache {
	return &cache{max: int(bytes / savestream.PageSize), at: map[uint64]int32{}, newest: -1, oldest: -1}
}

func (c *cache) full() bool { return len(c.slots) >= c.max }

// get returns a page, and counts that as a use; nil: the cache does not have it.
func (c *cache) get(pfn uint64) *page {
	i, ok := c.at[pfn]
	if !ok {
		return nil
	}
	if i != c.newest {
		c.unlink(i)
		c.link(i)
	}
	return c.slots[i].page
}

// add makes room for a page that the cache does not have; its content is undefined. nil: it
// takes none.
func (c *cache) add(pfn uint64) *page {
	var i int32
	switch {
	case c.max == 0:
		return nil
	case c.full():
		i = c.oldest
		c.unlink(i)
		delete(c.at, c.slots[i].pfn)
	default:
		if len(c.spare) == 0 {
			c.spare = make([]page, min(chunk, c.max-len(c.slots)))
		}
		i = int32(len(c.slots))
		c.slots = append(c.slots, slot{page: &c.spare[0]})
		c.spare = c.spare[1:]
	}
	c.slots[i].pfn = pfn
	c.at[pfn] = i
	c.link(i)
	return c.slots[i].page
}

func (c *cache) unlink(i int32) {
	s := &c.slots[i]
	if s.newer >= 0 {
		c.slots[s.newer].older = s.older
	} else {
		c.newest = s.older
	}
	if s.older >= 0 {
		c.slots[s.older].newer = s.newer
	} else {
		c.oldest = s.newer
	}
}

func (c *cache) link(i int32) {
	s := &c.slots[i]
	s.newer, s.older = -1, c.newest
	if c.newest >= 0 {
		c.slots[c.newest].newer = i
	} else {
		c.oldest = i
	}
	c.newest = i
}

// bytes is how much memory the pages take.
func (c *cache) bytes() int64 { return int64(len(c.slots)+len(c.spare)) * savestream.PageSize }
