package primary

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"xlft/xlft/wire"
)

// A link is the primary's side of one session: a control connection, on which
// a heartbeat never queues behind pages, and a data connection.
type link struct {
	control *wire.Conn
	data    *wire.Conn

	session string // id
	spool   *spool

	pack    bool       // compress data
	wmu     sync.Mutex // one writer at a time on control
	silence time.Duration

	ctx    context.Context
	cancel context.CancelFunc
}

// openLink calls the backup and offers it the domain. It returns once the
// backup has accepted and both connections stand.
func openLink(ctx context.Context, dial wire.Dialer, software string, o wire.Offer, pack bool) (_ *link, err error) {
	var id [16]byte
	rand.Read(id[:])
	session := hex.EncodeToString(id[:])

	l := &link{silence: o.FailureTimeout, session: session}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.control, _, err = wire.Open(ctx, dial, wire.Control, session, software); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { l.control.Close() })
	defer stop()
	l.control.SetDeadline(time.Now().Add(wire.OfferTimeout))
	if err := l.control.WriteJSON(wire.TypeOffer, 0, o); err != nil {
		return nil, fmt.Errorf("offer %s: %w", o.Domain, err)
	}
	if err := l.control.Expect(wire.TypeAccept, nil); err != nil {
		return nil, fmt.Errorf("offer %s: %w", o.Domain, err)
	}
	l.control.SetDeadline(time.Time{})
	var h wire.Hello
	if l.data, h, err = wire.Open(ctx, dial, wire.Data, session, software); err != nil {
		return nil, err
	}
	l.pack = pack && slices.Contains(h.Features, wire.FeatureS2)
	// The session's life is the link's own, not that of the call that made it.
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return l, nil
}

// close hangs up.
func (l *link) close() {
	if l.cancel != nil {
		l.cancel()
	}
	l.disconnect()
}

func (l *link) disconnect() {
	if l.control != nil {
		l.control.Close()
	}
	if l.data != nil {
		l.data.Close()
	}
}

// write sends a control frame.
func (l *link) write(t wire.Type, epoch uint64) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.control.SetWriteDeadline(time.Now().Add(l.silence))
	return l.control.WriteFrame(t, epoch, nil)
}

// run carries the session until the link is closed: heartbeats out, frames in,
// epochs from sp. post gets what the backup says, and at most one BackupLost
// with the reason; sent is told of every piece sent. A link whose backup counts
// as lost stays open, with its heartbeats, until it is closed: the backup may
// live, and what the arbiter says is still to be told.
func (l *link) run(sp *spool, post func(Event), sent func(epoch uint64, last piece)) {
	defer context.AfterFunc(l.ctx, func() {
		l.disconnect() // a blocked read or write does not watch a context
		sp.fail(errSpoolClosed)
	})()
	var wg sync.WaitGroup
	var lost atomic.Bool
	for _, part := range []func() error{
		func() error { return l.beat(l.ctx) },
		func() error { return l.listen(post) },
		func() error { return l.send(l.ctx, sp, sent) },
	} {
		wg.Go(func() {
			err := part()
			if err == nil || l.ctx.Err() != nil || !lost.CompareAndSwap(false, true) {
				return
			}
			// What is still captured goes nowhere: it can't be acked any more.
			sp.fail(errSpoolClosed)
			post(BackupLost{err})
		})
	}
	wg.Wait()
	<-l.ctx.Done()
}

func (l *link) beat(ctx context.Context) error {
	t := time.NewTicker(l.silence / wire.HeartbeatsPerTimeout)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := l.write(wire.TypeHeartbeat, 0); err != nil {
				return fmt.Errorf("send heartbeat: %w", err)
			}
		}
	}
}

func (l *link) listen(post func(Event)) error {
	for {
		l.control.SetReadDeadline(time.Now().Add(l.silence))
		f, err := l.control.ReadFrame()
		if err != nil {
			return wire.Silent(err, l.silence)
		}
		switch f.Type {
		case wire.TypeHeartbeat:
		case wire.TypeAck:
			post(Acked{f.Epoch})
		case wire.TypeDropped, wire.TypeRefuse:
			err := f.Refusal()
			post(ReplicaDropped{err})
			return err
		case wire.TypeRunning:
			post(BackupRuns{})
			return ErrBackupRuns
		default:
			return fmt.Errorf("%w: %v", wire.ErrUnexpected, f.Type)
		}
	}
}

func (l *link) send(ctx context.Context, sp *spool, sent func(uint64, piece)) error {
	for e := uint64(1); ; e++ {
		var sum wire.EpochEnd
		for begun := false; ; {
			p, err := sp.next(e)
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
			sum.Length += uint64(len(p.data))
			sum.CRC = crc32.Update(sum.CRC, wire.Castagnoli, p.data)
			if err := l.data.WriteData(e, p.data, l.pack); err != nil {
				return fmt.Errorf("send epoch %d: %w", e, err)
			}
			sp.recycle(p.data)
			if p.last {
				if err := l.data.WriteFrame(wire.TypeEpochEnd, e, sum.Append(nil)); err != nil {
					return fmt.Errorf("send epoch %d: %w", e, err)
				}
			}
			sent(e, p)
			if p.last {
				break
			}
		}
	}
}
