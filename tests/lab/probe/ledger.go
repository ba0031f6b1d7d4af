package probe

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// A Ledger makes commits one after the other, 1, 2, 3 …, and knows which of them the guest's disk has to hold. Its
// zero value belongs to a new file system.
//
//	go func() { ended <- l.Run(ctx, client) }()
//	... // the host dies, the other one takes over, and Held grows again
//	cancel()
//	err = <-ended
//	rows, err := client.Rows()
//	err = l.Judge(rows)
type Ledger struct {
	mu    sync.Mutex
	held  uint64 // rows that were acknowledged, or seen since
	asked uint64 // held, or one more if there was no answer to the last commit
}

// Held returns how many rows the disk has to hold.
func (l *Ledger) Held() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held
}

// Commit makes the next commit. After an error nobody knows whether the guest made it: ask Rows and Judge before the
// next one.
func (l *Ledger) Commit(c *Client) error {
	l.mu.Lock()
	l.asked = l.held + 1
	n := l.asked
	l.mu.Unlock()
	if err := c.Commit(n); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = n
	return nil
}

// Run makes commits until ctx ends. It returns when the last one is answered, with an error if one was not.
func (l *Ledger) Run(ctx context.Context, c *Client) error {
	for ctx.Err() == nil {
		if err := l.Commit(c); err != nil {
			return err
		}
	}
	return nil
}

// ErrLedger means that the guest's disk does not hold what was committed.
var ErrLedger = errors.New("the guest's disk does not hold the rows that were committed")

// Judge says whether the guest's rows are those acknowledged and none else, except that the one commit without an
// answer may be there, whole. From then on the disk has to hold that one too: it has been seen.
func (l *Ledger) Judge(r Rows) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s (%d acknowledged, %d asked for, guest says %+v)", ErrLedger, fmt.Sprintf(format, args...), l.held, l.asked, r)
	}
	switch {
	case r.Max < l.held:
		return wrong("rows %d to %d are missing", r.Max+1, l.held)
	case r.Max > l.asked:
		return wrong("row %d was never asked for", r.Max)
	case r.Count != r.Max:
		return wrong("%d rows are missing before row %d", r.Max-r.Count, r.Max)
	case r.Total != r.Count:
		return wrong("a transaction is there by half: its two tables disagree")
	}
	var sum uint64
	for n := uint64(1); n <= r.Max; n++ {
		sum = FoldRow(sum, n, RowBody(n))
	}
	if r.Sum != sum {
		return wrong("a row does not hold what was committed: the checksum of all should be %d", sum)
	}
	l.held, l.asked = r.Max, r.Max
	return nil
}
