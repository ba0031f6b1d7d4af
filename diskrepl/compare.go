package diskrepl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Difference is a range in which the backup's copy is not what the primary's
// disk was at the same point of its writes. Offset and Length are in bytes.
type Difference struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	// Unreadable says whose disk could not be read there, if one could not:
	// "primary" or "backup".
	Unreadable string `json:"unreadable,omitempty"`
	// Repaired: the primary's content was written to the copy, and found there.
	Repaired bool `json:"repaired,omitempty"`
}

// Comparison are the parameters of [Link.Verify].
type Comparison struct {
	Rate   int64 // bytes per second; 0 is no limit
	Repair bool  // the primary's content is written to the copy where they differ
}

// Compared is the progress of [Link.Verify], in bytes.
type Compared struct {
	Total    int64 `json:"total"`
	Compared int64 `json:"compared"`
}

// verifyWindow is how many chunks may be compared at a time. The backup reads them
// while it commits an epoch, and the next but one waits for that.
const verifyWindow = 32

// A verification is the part of a session that compares copies. Guarded by the
// Mirror's lock.
type verification struct {
	known bool // the replica knows how to
	busy  bool
	asked []*verifyChunk // in the order in which they were asked for
}

// A verifyChunk is a chunk that the replica was asked about.
type verifyChunk struct {
	off, n int64
	want   [sha256.Size]byte
	got    []byte // nil before the answer
	again  bool   // it was repaired
}

// Errors of [Link.Verify].
var (
	ErrVerifyUnknown = errors.New("diskrepl: the backup's version of xlft can't compare copies")
	ErrVerifyShared  = errors.New("diskrepl: the storage is shared: there is one copy only")
	errVerifyBusy    = errors.New("diskrepl: the copies are being compared already")
	errVerifyEarly   = errors.New("diskrepl: the first copy is not complete yet")
)

// Verify compares the backup's copy with this host's disk, while the domain
// writes, and calls report with the progress and what differs. Each chunk is
// hashed on both hosts at one point of the order of the domain's writes: here
// while nobody writes to it, at the backup in the commit that comes to that
// point. So what differs does so on the disks; no write that is under way can
// seem to differ. This host's disk is read as the domain reads it, the backup's as
// its storage has it.
//
// With Repair this host's disk is taken for true: where the copies differ, its
// content is sent as a write of the open epoch, and compared again.
//
// Verify returns when all chunks are compared, and with an error if it is not
// known whether they are equal: the session ended, or ctx, or report returned an
// error. It needs a complete first copy, and epochs that end.
func (l *Link) Verify(ctx context.Context, c Comparison, report func(Compared, []Difference) error) error {
	s, ok := l.session.(*mirrorSession)
	if !ok {
		return ErrVerifyShared
	}
	if err := s.beginVerify(); err != nil {
		return err
	}
	defer s.endVerify()
	defer context.AfterFunc(ctx, s.m.wake)()
	v := &verifier{mirrorSession: s, ctx: ctx, Comparison: c, report: report, begun: time.Now(), chunk: make([]byte, ChunkSize)}
	return v.run()
}

func (s *mirrorSession) beginVerify() error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case !s.verify.known:
		return ErrVerifyUnknown
	case s.epoch == 1:
		return errVerifyEarly
	case s.verify.busy:
		return errVerifyBusy
	}
	s.verify.busy = true
	return nil
}

func (s *mirrorSession) endVerify() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.verify.busy = false
}

// verified takes the replica's answer about the oldest chunk.
func (s *mirrorSession) verified(off int64, hash []byte) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if len(s.verify.asked) == 0 || s.verify.asked[0].off != off || len(hash) != hashSize {
		return fmt.Errorf("diskrepl: %d bytes of hashes at %d that nobody asked for", len(hash), off)
	}
	s.verify.asked[0].got = slices.Clone(hash)
	s.verify.asked = s.verify.asked[1:]
	s.m.cond.Broadcast()
	return nil
}

// A verifier compares the copies once.
type verifier struct {
	*mirrorSession
	Comparison
	ctx    context.Context
	report func(Compared, []Difference) error
	begun  time.Time
	chunk  []byte

	out  []*verifyChunk // not judged yet, in the order of the answers
	done Compared
	diff []Difference // not reported yet
}

func (v *verifier) run() error {
	size := v.m.dev.Size()
	v.done.Total = size
	for off := int64(0); off < size; off += ChunkSize {
		if err := v.judge(verifyWindow - 1); err != nil {
			return err
		}
		if err := v.pace(off); err != nil {
			return err
		}
		if err := v.ask(&verifyChunk{off: off, n: min(ChunkSize, size-off)}); err != nil {
			return err
		}
	}
	return v.judge(0)
}

// pace waits until the rate allows to go on.
func (v *verifier) pace(off int64) error {
	if v.Rate <= 0 {
		return nil
	}
	due := v.begun.Add(time.Duration(float64(off) / float64(v.Rate) * float64(time.Second)))
	select {
	case <-time.After(time.Until(due)):
	case <-v.mirrorSession.done:
	case <-v.ctx.Done():
	}
	return nil // judge says why
}

// ask asks the replica about a chunk, and sends the chunk before if it is to be
// repaired.
func (v *verifier) ask(c *verifyChunk) error {
	b := v.chunk[:c.n]
	span := v.m.lock.Lock(c.off, c.n) // nobody writes to the chunk until it is queued
	defer v.m.lock.Unlock(span)
	if err := v.m.dev.ReadAt(b, c.off); err != nil {
		v.diff = append(v.diff, Difference{Offset: c.off, Length: c.n, Unreadable: "primary"})
		v.done.Compared += c.n
		return nil
	}
	c.want = sha256.Sum256(b)
	if c.again {
		if bytes.Equal(b, zeroes[:c.n]) {
			v.m.send(recZero, 0, c.off, c.n, nil)
		} else {
			v.m.send(recWrite, 0, c.off, c.n, b)
		}
	}
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	if v.err != nil {
		return v.err
	}
	v.append(record{typ: recVerify, n: uint32(c.n), off: uint64(c.off), epoch: v.epoch}, nil)
	v.verify.asked = append(v.verify.asked, c)
	v.out = append(v.out, c)
	return nil
}

// judge waits until at most so many chunks are not answered, and reports what the
// answers say.
func (v *verifier) judge(most int) error {
	for len(v.out) > 0 {
		v.m.mu.Lock()
		for v.err == nil && v.ctx.Err() == nil && len(v.out) > most && v.out[0].got == nil {
			v.m.cond.Wait()
		}
		err, c := v.err, v.out[0]
		answered := c.got != nil
		v.m.mu.Unlock()
		switch {
		case err != nil:
			return err
		case v.ctx.Err() != nil:
			return v.ctx.Err()
		case !answered:
			return v.tell()
		}
		v.out = v.out[1:]
		if err := v.judgeOne(c); err != nil {
			return err
		}
	}
	return v.tell()
}

func (v *verifier) judgeOne(c *verifyChunk) error {
	equal := bytes.Equal(c.got, c.want[:])
	if !equal && v.Repair && !c.again {
		return v.ask(&verifyChunk{off: c.off, n: c.n, again: true})
	}
	v.done.Compared += c.n
	switch {
	case !equal && bytes.Equal(c.got, noHash[:]):
		v.diff = append(v.diff, Difference{Offset: c.off, Length: c.n, Unreadable: "backup"})
	case !equal || c.again:
		v.diff = append(v.diff, Difference{Offset: c.off, Length: c.n, Repaired: equal})
	}
	return nil
}

// tell reports what was found since the last call.
func (v *verifier) tell() error {
	diff := v.diff
	v.diff = nil
	return v.report(v.done, diff)
}

// answerVerify sends the hash of a range, as the storage has it now: after all
// earlier records of the stream, and before all later ones.
func (r *Replica) answerVerify(rec record) {
	b := make([]byte, rec.n)
	h := noHash
	if r.dev.readStable(b, int64(rec.off)) == nil {
		h = sha256.Sum256(b)
	}
	out := append(record{typ: recVerified, n: hashSize, off: rec.off}.append(nil), h[:]...)
	r.send(out) // on an error the next read fails too
}
