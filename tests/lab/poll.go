//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Await calls f until it returns nil or ctx ends, in which case the error holds f's last one. It is how tests wait:
// for a state, with a deadline.
func Await(ctx context.Context, f func() error) error { return poll(ctx, 20*time.Millisecond, f) }

func poll(ctx context.Context, every time.Duration, f func() error) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		err := f()
		var final stopError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &final):
			return final.err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// stop makes poll give up with err.
func stop(err error) error { return stopError{err} }

type stopError struct{ err error }

func (e stopError) Error() string { return e.err.Error() }
