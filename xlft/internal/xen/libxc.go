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

	"golang.org/x/sys/unix"

	"xlft/savestream/capture"
	"xlft/xlft"
)

// pipeSize lets libxc write a batch of pages without waiting for the reader.
const pipeSize = 1 << 20

// saving is what the callbacks of one xc_domain_save need.
type saving struct {
	ctx   context.Context
	hooks xlft.SaveHooks
	err   error  // the first one of a hook
	dirty uint64 // pages that the last live round began with
}

// saveByLibxc runs xc_domain_save with a Remus stream, for a PV domain: Xen lets nobody mark
// its log of written pages, as capture does. Whether another program uses the log is seen
// by its process alone: before the save, which begins a new log, and in each checkpoint.
// libxc writes to a pipe, which a goroutine copies to dst, so that dst needs no file
// descriptor.
func (g *Guest) saveByLibxc(ctx context.Context, dst io.ReaderFrom, hooks xlft.SaveHooks) error {
	suspend := hooks.Suspend
	hooks.Suspend = func() error {
		if err := suspend(); err != nil {
			return err
		}
		return g.unsaved()
	}
	if err := g.unsaved(); err != nil {
		return err
	}
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

	s := &saving{ctx: ctx, hooks: hooks}
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
	return s.ok(s.hooks.Suspend())
}

//export xlftSaveCaptured
func xlftSaveCaptured(h C.uintptr_t) C.int {
	s := saved(h)
	return s.ok(s.hooks.Captured())
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
	s := saved(h)
	if s.ctx.Err() != nil {
		return C.XGS_POLICY_ABORT
	}
	enough := round >= capture.LiveRounds
	if dirty >= 0 {
		n := uint64(dirty)
		enough = round > 0 && capture.Settled(n, s.dirty)
		s.dirty = n
	}
	if enough {
		return C.XGS_POLICY_STOP_AND_COPY
	}
	return C.XGS_POLICY_CONTINUE_PRECOPY
}
