package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"xlft/diskrepl"
	"xlft/savestream"
	"xlft/xlft/wire"
)

// arrived is a whole epoch on its way to the loop.
type arrived struct {
	Whole
	epoch *epoch
}

// receive takes epochs from the data connection, once the primary has opened
// it. It returns the event that ends the receiving; nil if the connection broke,
// which only the control connection can judge.
func (s *session) receive(ctx context.Context) Event {
	var c *input
	select {
	case c = <-s.data:
	case <-time.After(joinTimeout):
		return PrimaryLost{errors.New("no data connection came")}
	case <-ctx.Done():
		return nil
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	var scan savestream.Scanner
	for number := uint64(1); ; number++ {
		e, ev := s.receiveEpoch(c, &scan, number)
		if lost, ok := ev.(PrimaryLost); ok {
			// The control connection says whether the primary lives; what the
			// primary decided may still be on its way there.
			s.log.Info("no more checkpoints arrive", zap.Error(lost.Err))
			return nil
		}
		if ev != nil {
			return ev
		}
		// The ack waits until the restore has taken the epoch before, so that
		// at most two epochs are in memory here.
		if err := s.feeder.await(ctx, number-1); err != nil {
			return nil
		}
		if err := s.awaitDisks(ctx, number); err != nil {
			return s.diskEnded(err)
		}
		s.post(ctx, arrived{Whole{number}, e})
	}
}

// diskEnded turns the end of a disk's connection into an event. A broken disk
// connection is not evidence that the primary is lost; only the control
// connection is.
func (s *session) diskEnded(err error) Event {
	if err == nil || errors.Is(err, diskrepl.ErrLost) || errors.Is(err, diskrepl.ErrDetached) || errors.Is(err, context.Canceled) {
		s.log.Info("no more writes to a disk arrive", zap.Error(err))
		return nil
	}
	return ReplicaFailed{err}
}

// receiveEpoch returns epoch number, whole and verified. The first epoch goes to
// the restore as it arrives.
func (s *session) receiveEpoch(c *input, scan *savestream.Scanner, number uint64) (*epoch, Event) {
	bad := func(format string, args ...any) (*epoch, Event) {
		return nil, ReplicaFailed{fmt.Errorf("epoch %d: "+format, append([]any{number}, args...)...)}
	}
	lost := func(err error) (*epoch, Event) {
		var fe *wire.FrameError
		if errors.As(err, &fe) && protocolError(fe.Err) {
			return bad("%w", err)
		}
		return nil, PrimaryLost{fmt.Errorf("data connection broke: %w", err)}
	}
	f, err := c.ReadFrame()
	if err != nil {
		return lost(err)
	}
	if f.Type != wire.TypeEpochBegin || f.Epoch != number {
		return bad("%v of epoch %d instead of its begin", f.Type, f.Epoch)
	}
	e := &epoch{number: number}
	var sum wire.EpochEnd
	ended := false
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return lost(err)
		}
		if f.Epoch != number {
			return bad("%v of epoch %d inside", f.Type, f.Epoch)
		}
		switch f.Type {
		case wire.TypeData:
			piece, err := c.stream(f)
			if err != nil {
				return bad("%w", err)
			}
			sum.Add(piece)
			s.mu.Lock()
			s.bytes += uint64(len(piece))
			s.pageCache = c.memory()
			s.mu.Unlock()
			if ended && len(piece) > 0 {
				return bad("data after its checkpoint")
			}
			n, mark, err := scan.Scan(piece)
			if err != nil {
				return bad("%w", err)
			}
			if n < len(piece) {
				return bad("data after its checkpoint")
			}
			ended = mark == savestream.MarkCheckpoint
			if mark == savestream.MarkEnd {
				return bad("the stream ended")
			}
			if number == 1 {
				if err := s.feeder.stream(piece); err != nil {
					return bad("%w", err)
				}
				break
			}
			if sum.Length > s.r.EpochLimit {
				return bad("larger than %d bytes: see checkpoint_memory in the config", s.r.EpochLimit)
			}
			if e.add(piece, &s.feeder.free) {
				c.take(s.feeder.free.Get())
			}
		case wire.TypeEpochEnd:
			want, err := f.EpochEnd()
			if err != nil {
				return bad("%w", err)
			}
			if want != sum {
				return bad("%d bytes with CRC-32C %08x arrived, %d with %08x were sent", sum.Length, sum.CRC, want.Length, want.CRC)
			}
			if !ended {
				return bad("it does not end in a checkpoint")
			}
			if number == 1 {
				if err := s.feeder.mark(1); err != nil {
					return bad("%w", err)
				}
			}
			return e, nil
		default:
			return bad("%v inside", f.Type)
		}
	}
}

func protocolError(err error) bool {
	return errors.Is(err, wire.ErrTooLong) || errors.Is(err, wire.ErrType) || errors.Is(err, wire.ErrReserved)
}
