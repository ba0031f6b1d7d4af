package diskrepl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// An EpochDir is an EpochStore in a directory of its own, which Create makes.
// It is the name of that directory. The file of epoch N is epoch-N, and whole-N
// once it is complete; the file free, which is empty, exists while all epochs
// are to be released.
type EpochDir string

const (
	epochPrefix    = "epoch-"
	wholePrefix    = "whole-"
	releaseAllFile = "free"
)

// Create creates the file of an epoch, whose name is on stable storage then.
func (d EpochDir) Create(epoch uint64) (EpochFile, error) {
	if err := MakeDir(string(d), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(string(d), fmt.Sprint(epochPrefix, epoch)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	// Sync of the file does not sync its name.
	if err := syncDir(string(d)); err != nil {
		f.Close()
		return nil, err
	}
	return &dirFile{File: f}, nil
}

// Clear removes the directory with all files, durably.
func (d EpochDir) Clear() error {
	if _, err := os.Stat(string(d)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.RemoveAll(string(d)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(string(d)))
}

// MakeDir makes a directory and the parents that it lacks, and returns when stable
// storage has the names of those that it made.
func MakeDir(name string, perm os.FileMode) error {
	if st, err := os.Stat(name); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(name)
	if parent != name {
		if err := MakeDir(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

// syncDir returns when stable storage has the names in a directory. Tests replace
// it.
var syncDir = func(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Left opens the files that there are. It fails if the directory has a file of
// another kind.
func (d EpochDir) Left() (files map[uint64]EpochFile, releaseAll bool, err error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	files = map[uint64]EpochFile{}
	for _, e := range entries {
		var epoch uint64
		if e.Name() == releaseAllFile {
			releaseAll = true
			continue
		}
		number, ok := strings.CutPrefix(e.Name(), epochPrefix)
		whole := false
		if !ok {
			number, whole = strings.CutPrefix(e.Name(), wholePrefix)
			ok = whole
		}
		if _, err := fmt.Sscan(number, &epoch); !ok || err != nil {
			return nil, false, fmt.Errorf("%s in %s: not the file of an epoch", e.Name(), d)
		}
		f, err := os.OpenFile(filepath.Join(string(d), e.Name()), os.O_RDWR, 0)
		if err != nil {
			return nil, false, err
		}
		if files[epoch] != nil {
			f.Close()
			return nil, false, fmt.Errorf("%s has two files of epoch %d", d, epoch)
		}
		files[epoch] = &dirFile{f, whole}
	}
	return files, releaseAll, nil
}

// Any reports whether there are files of epochs.
func (d EpochDir) Any() (bool, error) {
	for _, prefix := range []string{epochPrefix, wholePrefix} {
		if found, err := filepath.Glob(filepath.Join(string(d), prefix+"*")); len(found) > 0 || err != nil {
			return err == nil, err
		}
	}
	return false, nil
}

// SetReleaseAll records whether all epochs are to be released.
func (d EpochDir) SetReleaseAll(releaseAll bool) error {
	name := filepath.Join(string(d), releaseAllFile)
	if releaseAll {
		return os.WriteFile(name, nil, 0o600)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Room returns how many bytes the file system has free for files of epochs.
func (d EpochDir) Room() (int64, error) {
	if err := MakeDir(string(d), 0o700); err != nil {
		return 0, err
	}
	return freeBytes(string(d))
}

type dirFile struct {
	*os.File
	whole bool
}

func (f *dirFile) path() string {
	if dir, number := filepath.Split(f.Name()); f.whole {
		return dir + wholePrefix + strings.TrimPrefix(strings.TrimPrefix(number, epochPrefix), wholePrefix)
	}
	return f.Name()
}

func (f *dirFile) Complete() error {
	was := f.path()
	f.whole = true
	if err := os.Rename(was, f.path()); err != nil {
		f.whole = false
		return err
	}
	return syncDir(filepath.Dir(was))
}

func (f *dirFile) Completed() bool { return f.whole }

func (f *dirFile) Remove() error { return errors.Join(os.Remove(f.path()), f.Close()) }
