package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"xlft/savestream"
	"xlft/xlft/backup"
	"xlft/xlft/wire"
)

// A restorer builds a domain's memory, as libxc does: the pages of a checkpoint are kept
// until it is whole.
type restorer struct {
	pages int
	runs  chan []byte // the memory of a domain that was taken over
	torn  bool        // broken on purpose: each checkpoint lacks a page
}

func (r *restorer) Check(context.Context, wire.Offer) []wire.Problem { return nil }
func (r *restorer) Find(string, string) (backup.Found, error)        { return backup.FoundNothing, nil }
func (r *restorer) Ran(string, string) (backup.Ran, error)           { return backup.RanNot, nil }
func (r *restorer) Abandon(string) error                             { return nil }

func (r *restorer) Restore(context.Context, wire.Offer) (backup.Replica, error) {
	pr, pw := io.Pipe()
	v := &replica{
		r: r, pr: pr, pw: pw, mem: make([]byte, r.pages*savestream.PageSize),
		failed: make(chan error, 1), applied: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	go v.restore()
	return v, nil
}

type replica struct {
	r       *restorer
	pr      *io.PipeReader
	pw      *io.PipeWriter
	mem     []byte
	failed  chan error
	applied chan struct{}
	ended   chan struct{}
}

var errRestoreEnded = errors.New("the restore has ended")

func (v *replica) restore() {
	defer close(v.ended)
	err := v.read()
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		v.failed <- err
	}
	v.pr.CloseWithError(err)
}

func (v *replica) read() error {
	dec := savestream.NewDecoder(v.pr)
	var pending [][]byte
	live := true
	for {
		r, err := dec.Next()
		if err != nil {
			return err
		}
		switch {
		case r.Type == savestream.PageDataType && live:
			if err := v.apply(r.Body, 0); err != nil {
				return err
			}
		case r.Type == savestream.PageDataType:
			pending = append(pending, bytes.Clone(r.Body))
		case r.Type == savestream.Checkpoint:
			for i, body := range pending {
				skip := 0
				if v.r.torn && i == len(pending)-1 {
					skip = 1
				}
				if err := v.apply(body, skip); err != nil {
					return err
				}
			}
			pending, live = pending[:0], false
			v.applied <- struct{}{}
		}
	}
}

// apply writes a record's pages, but for the last skip.
func (v *replica) apply(body []byte, skip int) error {
	pd, err := savestream.ParsePageData(body)
	if err != nil {
		return err
	}
	left := 0
	for range pd.All() {
		left++
	}
	for e, data := range pd.All() {
		if left--; left < skip {
			break
		}
		at := e.PFN * savestream.PageSize
		if at+savestream.PageSize > uint64(len(v.mem)) {
			return fmt.Errorf("page %#x is not the domain's", e.PFN)
		}
		copy(v.mem[at:], data)
	}
	return nil
}

func (v *replica) Write(b []byte) (int, error) { return v.pw.Write(b) }

func (v *replica) Checkpoint() error {
	select {
	case <-v.applied:
		return nil
	case <-v.ended:
		return errRestoreEnded
	}
}

func (v *replica) Activate(context.Context) error {
	v.pw.Close()
	<-v.ended
	v.r.runs <- v.mem
	return nil
}

func (v *replica) Destroy() error {
	v.pw.Close()
	v.pr.Close()
	return nil
}

func (v *replica) Failed() <-chan error { return v.failed }
