package primary

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"xlft/xlft/wire"
)

// A link is the primary's side of one session: a control connection, on which
// a heartbeat never queues behind pages, and a data connection, which takes its
// epochs from a spool.
type link struct {
	control *wire.Control
	data    *wire.Conn
	spool   *spool

	session string // id
	silence time.Duration
	offer   wire.Offer // as the backup accepted it
	pages   uint64     // that the backup was told the domain has; 0: not told
	out     *output
	acted   chan struct{} // gets a value when the loop is done with an ack

	ctx    context.Context
	cancel context.CancelFunc
}

// errHungUp is a link that its own side closed.
var errHungUp = errors.New("hung up")

// openLink calls the backup and offers it the domain. It returns once the
// backup has accepted and both connections stand.
func openLink(ctx context.Context, dial wire.Dialer, software string, o wire.Offer, set Settings) (_ *link, err error) {
	var id [16]byte
	rand.Read(id[:])
	l := &link{session: hex.EncodeToString(id[:]), silence: set.FailureTimeout, offer: o, spool: newSpool(set.SpoolLimit), pages: o.Pages,
		acted: make(chan struct{}, 1)}
	if l.control, err = wire.OpenControl(ctx, dial, software, l.session, o); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { l.control.Close() })
	defer stop()
	ctx = wire.By(ctx, l.control.Address()) // the disks' connections too
	var h wire.Hello
	if l.data, h, err = wire.OpenData(ctx, dial, l.session, software, set.PageCache); err != nil {
		l.control.Close()
		return nil, err
	}
	l.out = newOutput(set.Compress && slices.Contains(h.Features, wire.FeatureS2), h.PageCache)
	// The session's life is the link's own, not that of the call that made it.
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return l, nil
}

// close hangs up.
func (l *link) close() {
	l.cancel()
	l.disconnect()
}

func (l *link) disconnect() {
	l.control.Close()
	l.data.Close()
}

// A sentFunc is told of every piece sent: how many bytes of its epoch, up to its end, went
// over the wire, and how many bytes of pages are kept.
type sentFunc func(epoch uint64, p piece, wired uint64, kept int64)

// run carries the session until the link is closed: heartbeats out, frames in,
// epochs from the spool. post gets what the backup sends, and at most one
// BackupLost with the reason; sent is called for every piece sent. A link whose
// backup counts as lost stays open, with its heartbeats, until it is closed: the
// backup may still be alive and must be told what the arbiter decides.
func (l *link) run(post func(Event), sent sentFunc) {
	defer context.AfterFunc(l.ctx, func() {
		l.disconnect() // a blocked read or write does not watch a context
		l.spool.fail(errSpoolClosed)
	})()
	var wg sync.WaitGroup
	var said atomic.Bool
	lost := func(err error) {
		if l.ctx.Err() != nil || !said.CompareAndSwap(false, true) {
			return
		}
		// What is still captured can't be acked any more.
		l.spool.fail(errSpoolClosed)
		post(BackupLost{err})
	}
	heard := make(chan struct{}) // closed when nothing more comes from the backup
	wg.Go(func() {
		defer close(heard)
		lost(l.listen(post))
	})
	for _, part := range []func() error{
		func() error { return l.control.Beat(l.ctx) },
		func() error { return l.send(l.ctx, sent) },
	} {
		wg.Go(func() {
			if err := part(); err != nil {
				l.spool.fail(errSpoolClosed)
				l.lastWords(heard)
				lost(err)
			}
		})
	}
	wg.Wait()
	<-l.ctx.Done()
}

// lastWords waits, after sending failed, for what the backup may have said
// before: that it runs the domain, or has destroyed its replica.
func (l *link) lastWords(heard <-chan struct{}) {
	t := wire.NewAwakeTimer(l.silence)
	defer t.Stop()
	select {
	case <-heard:
	case <-t.C:
	case <-l.ctx.Done():
	}
}

func (l *link) listen(post func(Event)) error {
	for {
		f, err := l.control.Receive()
		if err != nil {
			return err
		}
		switch f.Type {
		case wire.TypeAck:
			l.out.acked(f.Epoch)
			post(Acked{f.Epoch})
			// Until the loop is done with it, the loop may read: see latest.
			select {
			case <-l.acted:
			case <-l.ctx.Done():
				return errHungUp
			}
		case wire.TypeDestroyed, wire.TypeRefuse:
			err := f.Refusal()
			post(ReplicaDestroyed{err})
			return err
		case wire.TypeRunning:
			post(BackupRuns{})
			return ErrBackupRuns
		default:
			return fmt.Errorf("%w: %v", wire.ErrUnexpected, f.Type)
		}
	}
}

// latest reports whether the ack that the loop is about to act on is the backup's last
// word. The loop, or the listener, may have stood still since the ack was read.
func (l *link) latest() bool { return l.control.Latest() }

func (l *link) send(ctx context.Context, sent sentFunc) error {
	for e := uint64(1); ; e++ {
		var sum wire.EpochEnd
		var wired uint64
		for begun := false; ; {
			p, err := l.spool.next(e)
			if err != nil {
				// The save has its own way to say why.
				<-ctx.Done()
				return nil
			}
			if !begun {
				begun = true
				if err := l.data.WriteFrame(wire.TypeEpochBegin, e, nil); err != nil {
					return fmt.Errorf("send epoch %d: %w", e, err)
				}
			}
			sum.Add(p.data)
			n, err := l.out.write(l.data, e, p.data)
			if err != nil {
				return fmt.Errorf("send epoch %d: %w", e, err)
			}
			wired += uint64(n)
			l.spool.recycle(p.data)
			if p.last {
				if err := l.data.WriteFrame(wire.TypeEpochEnd, e, sum.Append(nil)); err != nil {
					return fmt.Errorf("send epoch %d: %w", e, err)
				}
			}
			sent(e, p, wired, l.out.memory())
			if p.last {
				break
			}
		}
	}
}

// linked marks an event of a link, so that a late event of an earlier link is
// told apart.
type linked struct {
	Event
	from *link
}

// opened is the link that Connect made.
type opened struct {
	Event
	link *link
}
