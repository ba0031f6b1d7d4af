// Package store keeps a host's records: one small file for each domain, which
// says who owns the domain, and one for each disk, which says what state this
// host's copy is in.
//
// The one rule a caller must know: when Save has returned, the whole record is
// on stable storage. Until then the earlier record is.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"xlft/diskrepl"
	"xlft/xlft"
)

// Dir is an xlft.Store in a directory.
type Dir string

const suffix = ".json"

func (d Dir) path(domain string) string {
	return filepath.Join(string(d), xlft.FileName(domain)+suffix)
}

// Load returns the zero Ownership if nothing is known of the domain.
func (d Dir) Load(domain string) (r xlft.Ownership, err error) {
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
func (d Dir) Save(domain string, r xlft.Ownership) error {
	if err := d.save(d.path(domain), r); err != nil {
		return fmt.Errorf("record who owns %s: %w", domain, err)
	}
	return nil
}

// save replaces a file, and returns when the new one is on stable storage.
func (d Dir) save(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := diskrepl.MakeDir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	b = append(b, '\n')
	err = Replace(path, b)
	if full(err) {
		if ierr := overwrite(path, b); ierr == nil {
			return nil
		}
	}
	return err
}

// Replace writes a new file, which then takes the place of the old one, if there is one. It
// returns when that is on stable storage.
func Replace(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// full reports whether the file system, or a quota, has no room.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// block is what the smallest file has on most file systems.
const block = 4096

// overwrite changes a record where it stands, which needs no room: one that
// exists has its block. A record is far shorter than a disk's sector, which is
// written whole or not at all.
func overwrite(path string, b []byte) error {
	if len(b) > block {
		return syscall.ENOSPC
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	// JSON may end in white space: nothing of the old record stays behind.
	for int64(len(b)) < st.Size() {
		b = append(b, '\n')
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Sync()
}

func (d Dir) diskPath(domain, vdev string) string {
	return filepath.Join(string(d), "disks", xlft.FileName(domain)+","+xlft.FileName(vdev)+suffix)
}

// LoadDisk returns what this host's copy of a disk is; the zero record if nothing
// is known of it.
func (d Dir) LoadDisk(domain, vdev string) (r xlft.DiskRecord, err error) {
	b, err := os.ReadFile(d.diskPath(domain, vdev))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read what is known of disk %s of %s: %w", vdev, domain, err)
	}
	return r, nil
}

// SaveDisk records what this host's copy of a disk is.
func (d Dir) SaveDisk(domain, vdev string, r xlft.DiskRecord) error {
	if err := d.save(d.diskPath(domain, vdev), r); err != nil {
		return fmt.Errorf("record the state of disk %s of %s: %w", vdev, domain, err)
	}
	return nil
}

// All returns every record, by domain; and the domains whose record can't be read,
// with the reason.
func (d Dir) All() (all map[string]xlft.Ownership, unread map[string]error, err error) {
	es, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list known domains: %w", err)
	}
	all, unread = map[string]xlft.Ownership{}, map[string]error{}
	for _, e := range es {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		domain, ok := xlft.NameOf(name)
		if !ok {
			continue
		}
		o, err := d.Load(domain)
		if err != nil {
			unread[domain] = err
			continue
		}
		all[domain] = o
	}
	return all, unread, nil
}
