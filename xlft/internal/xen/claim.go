package xen

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// A claim says whose a suspend of a domain is: this project's from the request until the
// domain runs again, or another program's, such as xl's. It is kept in a file, since a
// protector may be killed between the two, and its successor is to resume what that left.
// The zero claim is kept nowhere.
type claim struct {
	mu   sync.Mutex
	file *os.File
	own  bool
	// The suspend that is claimed was seen. Until then it may never come, and another
	// program's come in its place.
	seen bool
}

// keep takes up the claim in a file that is of the same run of the domain, and keeps the
// claim there. If that is not possible an earlier claim counts as made: a domain that
// nobody resumes is worse than one that is resumed too early.
func (c *claim) keep(path, instance string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		c.own = true
		return fmt.Errorf("note whose a suspend of the domain is: %w", err)
	}
	was, err := io.ReadAll(f)
	if err == nil {
		c.own = strings.TrimSpace(string(was)) == "1 "+instance
		now := "0 " + instance + "\n"
		if c.own {
			now = "1" + now[1:]
		}
		// In place: a process that dies meanwhile leaves the old claim or the new one.
		if _, err = f.WriteAt([]byte(now), 0); err == nil {
			err = f.Truncate(int64(len(now)))
		}
	}
	if err != nil {
		c.own = true
		f.Close()
		return fmt.Errorf("note whose a suspend of the domain is: %w", err)
	}
	c.file = f
	return nil
}

// set makes the claim, or gives it up. It comes before a request, and after the domain runs.
func (c *claim) set(own bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own, c.seen = own, false
	if c.file == nil {
		return
	}
	b := []byte{'0'}
	if own {
		b[0] = '1'
	}
	// A byte that the file has room for: this fails if the file system does, and then the
	// claim is good in this process only.
	c.file.WriteAt(b, 0) //nolint:errcheck // as above
}

// saw says that the suspend which is claimed was seen.
func (c *claim) saw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = c.own
}

// made reports whether there is a claim.
func (c *claim) made() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.own
}

// holds reports whether a suspend that is seen now is this project's. A claimed one that was
// not seen before is not, if another program is at work that suspends.
func (c *claim) holds(another func() bool) bool {
	c.mu.Lock()
	own, seen := c.own, c.seen
	c.mu.Unlock()
	return own && (seen || !another())
}
