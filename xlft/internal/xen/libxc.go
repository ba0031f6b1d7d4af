//go:build xen

package xen

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/cgo"
	"syscall"

	"golang.org/x/sys/unix"

	"xlft/xlft"
)

// pipeSize lets libxc write a batch of pages without waiting for the reader.
const pipeSize = 1 << 20

// The live pass ends after precopyRounds rounds, as libxc's own policy has it;
// when at most precopyDirty pages are dirty; or when a round cut the dirty pages
// by less than a quarter: then further rounds would not help, and each walks the
// whole p2m.
const (
	precopyRounds = 5
	precopyDirty  = 1024
)

// saving is what the callbacks of one xc_domain_save need.
type saving struct {
	g      *Guest
	ctx    context.Context
	hooks  xlft.SaveHooks
	err    error // the first one of a hook
	dirty  int64 // pages that the last live round began with
	marked bool  // a mark is in the log of written pages
}

// saveByLibxc runs xc_domain_save with a Remus stream. libxc writes to a pipe, which
// a goroutine copies to dst, so that dst needs no file descriptor.
func (g *Guest) saveByLibxc(ctx context.Context, dst io.ReaderFrom, hooks xlft.SaveHooks) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, pipeSize) // smaller is only slower

	drained := make(chan error, 1)
	go func() {
		_, err := dst.ReadFrom(r)
		// libxc must come to its end by its own steps, also when nobody
		// wants its stream any more.
		io.Copy(io.Discard, r)
		drained <- err
	}()

	s := &saving{g: g, ctx: ctx, hooks: hooks}
	handle := cgo.NewHandle(s)
	defer handle.Delete()
	rc, errno := C.xlft_save(g.h.xch, C.int(w.Fd()), g.id(), C.uintptr_t(handle))
	why := g.h.lastErrors()
	w.Close()
	derr := <-drained
	switch {
	case s.err != nil:
		return s.err
	case ctx.Err() != nil:
		return ctx.Err()
	case derr != nil:
		return derr
	case rc != 0:
		return fmt.Errorf("xc_domain_save: %w%s", errno, why)
	}
	return nil
}

// mark marks the domain's log of written pages, right after libxc has read and
// cleared it. There is one log: another program that clears it, or switches it off,
// takes the mark with the pages that would be missing from the next checkpoint.
func (s *saving) mark() error {
	rc := C.xlft_mark(s.g.h.xch, s.g.id())
	switch {
	case rc < 0:
		return fmt.Errorf("mark the log of written pages of domain %d: %w", s.g.d.ID, syscall.Errno(-rc))
	case rc == 0 && s.marked: // it was switched off since the last look
		return xlft.ErrLogTaken
	}
	s.marked = rc > 0
	return nil
}

// untouched looks for the mark, right before libxc reads and clears the log.
func (s *saving) untouched() error {
	if !s.marked {
		return nil
	}
	rc := C.xlft_marked(s.g.h.xch, s.g.id())
	switch {
	case rc < 0:
		return fmt.Errorf("look at the log of written pages of domain %d: %w", s.g.d.ID, syscall.Errno(-rc))
	case rc == 0:
		return xlft.ErrLogTaken
	}
	return nil
}

func saved(h C.uintptr_t) *saving { return cgo.Handle(h).Value().(*saving) }

func (s *saving) ok(err error) C.int {
	if err != nil {
		s.err = errors.Join(s.err, err)
		return 0
	}
	return 1
}

//export xlftSaveSuspend
func xlftSaveSuspend(h C.uintptr_t) C.int {
	s := saved(h)
	err := s.hooks.Suspend()
	if err == nil {
		err = s.untouched()
	}
	return s.ok(err)
}

//export xlftSaveCaptured
func xlftSaveCaptured(h C.uintptr_t) C.int {
	s := saved(h)
	err := s.mark()
	if err == nil {
		err = s.hooks.Captured()
	}
	return s.ok(err)
}

//export xlftSaveNext
func xlftSaveNext(h C.uintptr_t) C.int {
	if saved(h).hooks.Next() {
		return 1
	}
	return 0
}

// xlftSavePrecopy is asked before a round, with the pages it would copy, and
// after it, with -1.
//
//export xlftSavePrecopy
func xlftSavePrecopy(h C.uintptr_t, round C.uint, dirty C.long) C.int {
	s, n := saved(h), int64(dirty)
	look := s.mark
	if n < 0 {
		look = s.untouched
	}
	if s.ctx.Err() != nil || s.ok(look()) == 0 {
		return C.XGS_POLICY_ABORT
	}
	if n < 0 {
		if round >= precopyRounds {
			return C.XGS_POLICY_STOP_AND_COPY
		}
		return C.XGS_POLICY_CONTINUE_PRECOPY
	}
	before := s.dirty
	s.dirty = n
	if round > 0 && (n <= precopyDirty || n > before-before/4) {
		return C.XGS_POLICY_STOP_AND_COPY
	}
	return C.XGS_POLICY_CONTINUE_PRECOPY
}
