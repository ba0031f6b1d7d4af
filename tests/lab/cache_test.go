//go:build linux

package lab

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestCacheBuildsOnce(t *testing.T) {
	c := cache{t.TempDir()}
	var builds atomic.Int32
	build := func(dir string) error {
		builds.Add(1)
		return os.WriteFile(filepath.Join(dir, "made"), nil, 0o644)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			e, err := c.get(t.Context(), "thing", "k1", build)
			if err != nil {
				t.Error(err)
				return
			}
			defer e.release()
			if _, err := os.Stat(filepath.Join(e.dir, "made")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := builds.Load(); n != 1 {
		t.Errorf("built %d times, want once", n)
	}
}

func TestCacheFailedBuildLeavesNothing(t *testing.T) {
	c := cache{t.TempDir()}
	errBuild := errors.New("no luck")
	_, err := c.get(t.Context(), "thing", "k1", func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o644), errBuild)
	})
	if !errors.Is(err, errBuild) {
		t.Errorf("error %v, want %v", err, errBuild)
	}
	e, err := c.get(t.Context(), "thing", "k1", func(dir string) error {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("the next build finds %v, %v", left, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	e.release()
}

func TestCachePruneKeepsNewestAndUsed(t *testing.T) {
	c := cache{t.TempDir()}
	nothing := func(string) error { return nil }
	var used *entry
	for i, key := range []string{"used", "old", "newer", "newest"} {
		e, err := c.get(t.Context(), "thing", key, nothing)
		if err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(time.Duration(i) * time.Minute)
		if err := os.Chtimes(e.dir, when, when); err != nil {
			t.Fatal(err)
		}
		if key == "used" {
			used = e
			continue
		}
		e.release()
	}
	defer used.release()
	if err := c.prune("thing", 2); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]bool{"used": true, "old": false, "newer": true, "newest": true} {
		_, err := os.Stat(filepath.Join(c.dir, "thing-"+key))
		if got := err == nil; got != want {
			t.Errorf("%s kept: %v, want %v", key, got, want)
		}
	}
}

func TestRunsOfTheDeadAreRemoved(t *testing.T) {
	c := cache{t.TempDir()}
	dead, err := c.newRun()
	if err != nil {
		t.Fatal(err)
	}
	dead.release() // as the end of its process would
	mine, err := c.newRun()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory of a dead process: %v, want none", err)
	}
	if _, err := c.newRun(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine.dir); err != nil {
		t.Errorf("directory of a live process: %v", err)
	}
}
