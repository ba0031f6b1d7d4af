//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A cache holds what is built once: an entry is a directory KIND-KEY, whose key stands for everything that the entry
// was made from. An entry is complete or absent. Beside it lies KIND-KEY.lock, held shared by users of the entry and
// exclusively by the process that builds or removes it.
type cache struct{ dir string }

// openCache returns the cache in XLFT_LAB_CACHE, or in xlft-lab under XDG_CACHE_HOME or /var/cache.
func openCache() (cache, error) {
	dir := os.Getenv("XLFT_LAB_CACHE")
	if dir == "" {
		base := os.Getenv("XDG_CACHE_HOME")
		if base == "" {
			base = "/var/cache"
		}
		dir = filepath.Join(base, "xlft-lab")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return cache{}, fmt.Errorf("cache: %w", err)
	}
	// QEMU's options separate by commas and Xen's modules by spaces.
	if strings.ContainsAny(dir, ", ") {
		return cache{}, fmt.Errorf("cache %q: QEMU can't take a path with a comma or a space", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return cache{}, fmt.Errorf("cache: %w", err)
	}
	return cache{dir}, nil
}

// An entry is a cached directory in use.
type entry struct {
	dir  string
	lock *os.File
}

// release says that the entry is no longer used.
func (e *entry) release() {
	if e != nil && e.lock != nil {
		e.lock.Close()
	}
}

// get returns the entry of that kind and key. If there is none, build makes it in the given directory, while other
// processes that want the same entry wait.
func (c cache) get(ctx context.Context, kind, key string, build func(dir string) error) (*entry, error) {
	name := kind + "-" + key
	final := filepath.Join(c.dir, name)
	for {
		lock, err := lockFile(ctx, final+".lock", unix.LOCK_SH)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(final); err == nil {
			now := time.Now()
			os.Chtimes(final, now, now) // only prune looks at it
			return &entry{final, lock}, nil
		}
		lock.Close()
		if err := c.build(ctx, name, build); err != nil {
			return nil, err
		}
	}
}

func (c cache) build(ctx context.Context, name string, build func(dir string) error) error {
	final := filepath.Join(c.dir, name)
	lock, err := lockFile(ctx, final+".lock", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(final); err == nil {
		return nil // somebody else built it meanwhile
	}
	tmp := filepath.Join(c.dir, ".building-"+name)
	if err := os.RemoveAll(tmp); err != nil { // left by a build that was interrupted
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	if err := build(tmp); err != nil {
		return errors.Join(fmt.Errorf("build %s: %w", name, err), os.RemoveAll(tmp))
	}
	return os.Rename(tmp, final)
}

// prune removes all but the newest entries of a kind, except those in use.
func (c cache) prune(kind string, keep int) error {
	names, err := filepath.Glob(filepath.Join(c.dir, kind+"-*.lock"))
	if err != nil {
		return err
	}
	used := func(lock string) time.Time {
		info, err := os.Stat(strings.TrimSuffix(lock, ".lock"))
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	sort.Slice(names, func(i, j int) bool { return used(names[i]).After(used(names[j])) })
	for i, lock := range names {
		if i < keep {
			continue
		}
		if err := c.remove(lock); err != nil {
			return err
		}
	}
	return nil
}

func (c cache) remove(lockName string) error {
	lock, err := tryLock(lockName)
	if lock == nil {
		return err
	}
	defer lock.Close()
	dir := strings.TrimSuffix(lockName, ".lock")
	building := filepath.Join(c.dir, ".building-"+filepath.Base(dir))
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(building), os.Remove(lockName))
}

// newRun returns a directory for one process, and removes those of processes that are gone.
func (c cache) newRun() (*entry, error) {
	old, err := filepath.Glob(filepath.Join(c.dir, "run-*.lock"))
	if err != nil {
		return nil, err
	}
	for _, lock := range old {
		if err := c.remove(lock); err != nil {
			return nil, err
		}
	}
	// The lock comes first: a directory without one would be nobody's.
	name := filepath.Join(c.dir, fmt.Sprintf("run-%d-%d", os.Getpid(), time.Now().UnixNano()))
	lock, err := tryLock(name + ".lock")
	if err != nil {
		return nil, err
	}
	if lock == nil {
		return nil, fmt.Errorf("%s is taken", name)
	}
	if err := os.Mkdir(name, 0o755); err != nil {
		lock.Close()
		return nil, err
	}
	return &entry{name, lock}, nil
}

// discard removes a run's directory.
func (e *entry) discard() error {
	defer e.release()
	return errors.Join(os.RemoveAll(e.dir), os.Remove(e.dir+".lock"))
}

// lockFile waits for a lock. Since remove unlinks lock files, it makes sure that what it locked is still there.
func lockFile(ctx context.Context, name string, how int) (*os.File, error) {
	var file *os.File
	err := poll(ctx, 100*time.Millisecond, func() error {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return stop(err)
		}
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
			f.Close()
			return fmt.Errorf("lock %s: %w", name, err)
		}
		if !same(f, name) {
			f.Close()
			return fmt.Errorf("lock %s: it was removed", name)
		}
		file = f
		return nil
	})
	return file, err
}

// tryLock takes a lock exclusively, or returns nil if another process holds it.
func tryLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && same(f, name) {
		return f, nil
	}
	f.Close()
	if err == nil || errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, fmt.Errorf("lock %s: %w", name, err)
}

func same(f *os.File, name string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(name)
	return err == nil && os.SameFile(mine, there)
}
