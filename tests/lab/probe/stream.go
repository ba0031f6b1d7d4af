package probe

import (
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"
)

// A Reply is an answer that a client got: the guest's state after it took a number.
type Reply struct {
	N    uint64
	At   time.Time
	Says State
}

// A Stream sends numbers over one connection, so many of them unanswered at any time, and records every
// reply.
type Stream struct {
	client *Client
	first  uint64        // of the numbers it sends
	pace   time.Duration // between two numbers, at least
	room   chan struct{}
	halt   chan struct{} // closed: send no more
	halted sync.Once
	over   sync.WaitGroup

	mu      sync.Mutex
	sent    uint64
	replies []Reply
	err     error
}

// Stream makes the client send numbers from first on. The client is the stream's until it has stopped.
func (c *Client) Stream(first uint64, unanswered int) *Stream { return c.Paced(first, unanswered, 0) }

// Paced is Stream with a pause after each number: a guest that is answered at once would do nothing else.
func (c *Client) Paced(first uint64, unanswered int, pace time.Duration) *Stream {
	s := &Stream{client: c, first: first, pace: pace, room: make(chan struct{}, unanswered), halt: make(chan struct{})}
	s.over.Go(s.send)
	s.over.Go(s.receive)
	return s
}

func (s *Stream) send() {
	defer close(s.room)
	for n := s.first; ; n++ {
		select {
		case <-s.halt:
			return
		case s.room <- struct{}{}:
		}
		// Counted first: a reply may come before Write returns.
		s.mu.Lock()
		s.sent++
		s.mu.Unlock()
		if _, err := fmt.Fprintf(s.client.conn, "add %d\n", n); err != nil {
			s.fail(fmt.Errorf("probe: send %d: %w", n, err))
			return
		}
		if s.pace == 0 {
			continue
		}
		select {
		case <-s.halt:
			return
		case <-time.After(s.pace):
		}
	}
}

func (s *Stream) receive() {
	n := s.first
	for range s.room {
		line, err := s.client.r.ReadString('\n')
		r := Reply{N: n, At: time.Now()}
		if err == nil {
			_, err = fmt.Sscan(line, &r.Says.Count, &r.Says.Sum)
		}
		if err != nil {
			s.fail(fmt.Errorf("probe: reply to %d: %w", n, err))
			for range s.room { // the sender must see the halt
			}
			return
		}
		n++
		s.mu.Lock()
		s.replies = append(s.replies, r)
		s.mu.Unlock()
	}
}

func (s *Stream) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.halted.Do(func() { close(s.halt) })
}

// Counts returns how many requests were sent and how many replies came so far, and the error that ended the stream, if
// one did.
func (s *Stream) Counts() (sent, received uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, uint64(len(s.replies)), s.err
}

// Replies returns the replies so far.
func (s *Stream) Replies() []Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Reply(nil), s.replies...)
}

// Stop sends no more, waits until all is answered, at most for so long, and returns every reply. Its error says that
// the connection broke or that replies are missing.
func (s *Stream) Stop(within time.Duration) ([]Reply, error) {
	s.halted.Do(func() { close(s.halt) })
	s.client.SetDeadline(time.Now().Add(within))
	s.over.Wait()
	s.client.SetDeadline(time.Time{})
	_, _, err := s.Counts()
	return s.Replies(), err
}

// After returns the first reply after t.
func After(replies []Reply, t time.Time) (Reply, bool) {
	i := sort.Search(len(replies), func(i int) bool { return replies[i].At.After(t) })
	if i == len(replies) {
		return Reply{}, false
	}
	return replies[i], true
}

// LongestGap returns the longest time between two replies in a row.
func LongestGap(replies []Reply) time.Duration {
	var gap time.Duration
	for i := 1; i < len(replies); i++ {
		gap = max(gap, replies[i].At.Sub(replies[i-1].At))
	}
	return gap
}

// ErrUntrue means that a client's reply contradicts the guest's state.
var ErrUntrue = errors.New("a reply turned out untrue")

// Judge returns how many replies, of all clients that the guest had since it was in state start, are not true of its
// state end, and what is wrong with the first of them: two replies of one count, a checksum that does not follow from
// the one before, or a count that the guest has never reached.
func Judge(start, end State, replies ...[]Reply) (untrue int, err error) {
	var all []Reply
	for _, r := range replies {
		all = append(all, r...)
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Says.Count < all[j].Says.Count })
	wrong := func(r Reply, why string) {
		untrue++
		if err == nil {
			err = fmt.Errorf("%w: to %d, at %v, the guest said %d %d: %s",
				ErrUntrue, r.N, r.At.Format("15:04:05.000"), r.Says.Count, r.Says.Sum, why)
		}
	}
	last := start
	for _, r := range all {
		switch {
		case r.Says.Count <= last.Count:
			wrong(r, "the count was there before")
			continue
		case r.Says.Count > end.Count:
			wrong(r, fmt.Sprintf("the guest has counted to %d only", end.Count))
		case r.Says.Count == last.Count+1 && r.Says.Sum != Fold(last.Sum, r.N):
			wrong(r, "the checksum does not follow from the one before")
		case r.Says.Count == end.Count && r.Says != end:
			wrong(r, fmt.Sprintf("the guest's checksum at that count is %d", end.Sum))
		}
		last = r.Says
	}
	return untrue, err
}
