package diskrepl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A LayerDir keeps the Layers of one disk in a directory of their own, best on
// a file system in memory.
type LayerDir string

const (
	layerPrefix = "epoch-"
	freeMark    = "free"
)

// Create is Layers'.
func (d LayerDir) Create(epoch uint64) (Layer, error) {
	_, err := os.Stat(string(d))
	fresh := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(string(d), fmt.Sprint(layerPrefix, epoch)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	// The name too is to be there after a Sync.
	err = syncDir(string(d))
	if err == nil && fresh {
		err = syncDir(filepath.Dir(string(d)))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return layerFile{f}, nil
}

// Clear removes all layers, durably.
func (d LayerDir) Clear() error {
	if _, err := os.Stat(string(d)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.RemoveAll(string(d)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(string(d)))
}

func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Left is Layers'.
func (d LayerDir) Left() (map[uint64]Layer, bool, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	layers, free := map[uint64]Layer{}, false
	for _, e := range entries {
		var epoch uint64
		if e.Name() == freeMark {
			free = true
			continue
		}
		number, ok := strings.CutPrefix(e.Name(), layerPrefix)
		if _, err := fmt.Sscan(number, &epoch); !ok || err != nil {
			return nil, false, fmt.Errorf("%s in %s: not a layer", e.Name(), d)
		}
		f, err := os.OpenFile(filepath.Join(string(d), e.Name()), os.O_RDWR, 0)
		if err != nil {
			return nil, false, err
		}
		layers[epoch] = layerFile{f}
	}
	return layers, free, nil
}

// Any reports whether there are layers.
func (d LayerDir) Any() (bool, error) {
	found, err := filepath.Glob(filepath.Join(string(d), layerPrefix+"*"))
	return len(found) > 0, err
}

// SetFree is Layers'.
func (d LayerDir) SetFree(free bool) error {
	mark := filepath.Join(string(d), freeMark)
	if free {
		return os.WriteFile(mark, nil, 0o600)
	}
	if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Room is how many bytes the layers can have.
func (d LayerDir) Room() (int64, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return 0, err
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(string(d), &st); err != nil {
		return 0, fmt.Errorf("%s: %w", d, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

type layerFile struct{ *os.File }

func (f layerFile) Remove() error { return errors.Join(os.Remove(f.Name()), f.Close()) }
