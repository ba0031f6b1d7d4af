package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"xlft/xlft/primary"
)

// A protector that has to decide on what an earlier one left goes on trying, ever
// more slowly, and says why once. Its end by decision is the end.
func TestPersist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		tries, begun := 0, time.Now()
		outcome, err := persist(t.Context(), zap.New(core), func(context.Context) (primary.Outcome, bool, error) {
			if tries++; tries < 10 {
				return "", true, errors.New("the disk server is not running")
			}
			return primary.Stopped, false, nil
		})
		if outcome != primary.Stopped || err != nil || tries != 10 {
			t.Errorf("%q, %v after %d tries", outcome, err, tries)
		}
		if took := time.Since(begun); took < time.Minute || took > 10*longestWait {
			t.Errorf("nine waits took %v", took)
		}
		if logs.Len() != 1 {
			t.Errorf("%d lines of log", logs.Len())
		}
	})
}

func TestPersistStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		want := errors.New("why")
		begun := time.Now()
		if _, err := persist(ctx, zap.NewNop(), func(context.Context) (primary.Outcome, bool, error) { return "", true, want }); err != want || time.Since(begun) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		if _, err := persist(t.Context(), zap.NewNop(), func(context.Context) (primary.Outcome, bool, error) { return "", false, want }); err != want {
			t.Errorf("an end that was decided: %v", err)
		}
	})
}

func TestExitStatus(t *testing.T) {
	if got := exitStatus(errors.New("x")); got != 1 {
		t.Errorf("an error has the status %d", got)
	}
	if got := exitStatus(decidedError{errors.New("x")}); got != exitDecided {
		t.Errorf("a decided end has the status %d", got)
	}
}
