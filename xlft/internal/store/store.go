// Package store keeps, in one small file a domain, who owns it.
//
// The one rule a caller must know: when Save has returned, the record is on
// the disk, whole; before, the earlier one is.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"xlft/xlft"
)

// Dir is an xlft.Store in a directory.
type Dir string

const suffix = ".json"

func (d Dir) path(domain string) string {
	return filepath.Join(string(d), url.PathEscape(domain)+suffix)
}

// Load returns the zero Record if nothing is known of the domain.
func (d Dir) Load(domain string) (r xlft.Record, err error) {
	b, err := os.ReadFile(d.path(domain))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("read what is known of %s: %w", domain, err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read what is known of %s: %s: %w", domain, d.path(domain), err)
	}
	return r, nil
}

// Save replaces the record.
func (d Dir) Save(domain string, r xlft.Record) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("record who owns %s: %w", domain, err)
		}
	}()
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(string(d), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), d.path(domain)); err != nil {
		return err
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// All returns every record, by domain.
func (d Dir) All() (map[string]xlft.Record, error) {
	es, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list known domains: %w", err)
	}
	all := map[string]xlft.Record{}
	for _, e := range es {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		domain, err := url.PathUnescape(name)
		if err != nil {
			continue
		}
		if all[domain], err = d.Load(domain); err != nil {
			return nil, err
		}
	}
	return all, nil
}
