//go:build linux

package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
)

// A keyer computes the key of a cache entry from everything that the entry is made from.
type keyer struct {
	h   hash.Hash
	err error // the first one
}

func newKey() *keyer { return &keyer{h: sha256.New()} }

// text adds a named value. Lengths go in too, so that no two lists of values look alike.
func (k *keyer) text(name, value string) *keyer {
	fmt.Fprintf(k.h, "%d %s %d %s\n", len(name), name, len(value), value)
	return k
}

// file adds a file's content.
func (k *keyer) file(name, path string) *keyer {
	f, err := os.Open(path)
	if err != nil {
		return k.fail(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return k.fail(err)
	}
	return k.text(name, hex.EncodeToString(sum.Sum(nil)))
}

// tree adds the names and contents of all files under root.
func (k *keyer) tree(fsys fs.FS, root string) *keyer {
	err := fs.WalkDir(fsys, root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := fs.ReadFile(fsys, path)
		if err == nil {
			k.text(path, string(body))
		}
		return err
	})
	if err != nil {
		return k.fail(err)
	}
	return k
}

func (k *keyer) fail(err error) *keyer {
	if k.err == nil {
		k.err = fmt.Errorf("cache key: %w", err)
	}
	return k
}

func (k *keyer) sum() (string, error) {
	return hex.EncodeToString(k.h.Sum(nil))[:16], k.err
}
