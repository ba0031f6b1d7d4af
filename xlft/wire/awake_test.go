package wire

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Without a stall the timer is a timer.
func TestAwakeTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		at := NewAwakeTimer(time.Second)
		<-at.C
		if d := time.Since(begun); d != time.Second {
			t.Errorf("fired after %v", d)
		}
		if s := at.Stop(); s != 0 {
			t.Errorf("slept %v", s)
		}
		at.Reset(3 * time.Second)
		<-at.C
		if d := time.Since(begun); d != 4*time.Second {
			t.Errorf("fired again after %v", d)
		}
		at.Reset(time.Second)
		time.Sleep(500 * time.Millisecond)
		at.Reset(time.Second)
		time.Sleep(900 * time.Millisecond)
		select {
		case <-at.C:
			t.Error("fired as before the Reset")
		default:
		}
		at.Stop()
		time.Sleep(time.Second)
		select {
		case <-at.C:
			t.Error("fired after Stop")
		default:
		}
	})
}

// A process that stood still has most of the time in front of it when it goes on.
func TestAwakeTimerStall(t *testing.T) {
	for _, stall := range []time.Duration{300 * time.Millisecond, time.Second, time.Hour} {
		at := &AwakeTimer{fired: make(chan struct{}, 1), step: 100 * time.Millisecond, left: time.Second}
		at.since = time.Now().Add(-stall) // what a callback finds that was due long ago
		at.count()
		if at.left < 750*time.Millisecond || at.left > 850*time.Millisecond || at.slept < stall-250*time.Millisecond {
			t.Errorf("stall of %v: %v left, %v slept", stall, at.left, at.slept)
		}
	}
}

func TestAwakeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		ctx, cancel := AwakeTimeout(t.Context(), time.Second)
		<-ctx.Done()
		if d := time.Since(begun); d != time.Second || !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			t.Errorf("%v after %v", context.Cause(ctx), d)
		}
		if s := cancel(); s != 0 {
			t.Errorf("slept %v", s)
		}
	})
}
