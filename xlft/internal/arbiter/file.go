package arbiter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"xlft/xlft/config"
)

// File is a Register in a directory that both hosts mount. A claim is a file that is
// written under a name of its own, and then linked to the claim's name: link(2) fails
// if that is there, also over NFS, where an exclusive creation is not atomic with what is
// written (open(2), O_EXCL). Whatever link says, what counts is who wrote the file that
// has the name then: over NFS an answer may be lost, and the repeated request fails.
type File struct {
	config.File

	sys   calls // nil members are the kernel's
	local bool  // a test's: the directory may be on a file system of this host alone

	mu    sync.Mutex
	late  int       // calls that nobody waits for any more
	since time.Time // when the last of them began
	names atomic.Uint64
}

// calls are those that fail in a test.
type calls struct {
	link  func(from, to string) error
	write func(f *os.File, b []byte) error
	sync  func(f *os.File) error
	read  func(path string) ([]byte, error)
}

// registerFile names the register: hosts that read different words in it have
// different directories.
const registerFile = "xlft-register"

// Where is Register's.
func (r *File) Where(k Key) (place, remove string) {
	p := r.path(k)
	return p, "rm " + p
}

// path is the claim's: a comma is in no part.
func (r *File) path(k Key) string {
	return filepath.Join(r.Directory, strings.Join(k.parts(), ",")+".claim")
}

// First is Register's.
func (r *File) First(ctx context.Context, k Key, value []byte) (there []byte, id string, err error) {
	var found []byte
	var name string
	err = r.bounded(ctx, func() error {
		var err error
		if name, err = r.register(); err != nil {
			return err
		}
		path := r.path(k)
		lerr := r.put(path, value)
		// Read in any case: the link may have been made though it is said to have
		// failed, and another's is there if it did.
		b, rerr := r.read(path)
		switch {
		case rerr != nil:
			return errors.Join(lerr, rerr)
		case lerr != nil && !errors.Is(lerr, os.ErrExist):
			// The file is there, and may not outlive the server's power, until the directory is synced.
			if serr := r.syncDir(); serr != nil {
				return errors.Join(lerr, serr)
			}
		}
		found = b
		return nil
	})
	if err != nil {
		return nil, "", err // a call that hangs may still come to set them
	}
	return found, name, nil
}

// put links a new file with a value to a name, and syncs both.
func (r *File) put(path string, value []byte) error {
	own, err := r.create(value)
	if own != "" {
		defer os.Remove(own)
	}
	if err != nil {
		return err
	}
	lerr := r.link(own, path)
	if lerr != nil && !errors.Is(lerr, os.ErrExist) {
		return lerr
	}
	// Also of what another host linked: who loses by a claim destroys its copy.
	if err := r.syncDir(); err != nil {
		return err
	}
	return lerr
}

// create writes a file with a name that no other has.
func (r *File) create(value []byte) (path string, err error) {
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	path = filepath.Join(r.Directory, fmt.Sprintf(".%s-%d-%d-%d", host, os.Getpid(), time.Now().UnixNano(), r.names.Add(1)))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	err = r.write(f, value)
	if serr := r.sync(f); err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil { // NFS may say only now that there is no room (close(2))
		err = cerr
	}
	return path, err
}

func (r *File) syncDir() error {
	d, err := os.Open(r.Directory)
	if err != nil {
		return err
	}
	defer d.Close()
	return r.sync(d)
}

// localOnly are file systems that one host alone has (statfs(2), linux/magic.h).
var localOnly = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.F2FS_SUPER_MAGIC: "f2fs", 0x2fc12fc1: "zfs",
	unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.MSDOS_SUPER_MAGIC: "vfat",
}

// register returns what the directory is called. It is never made here: an empty
// directory in whose place nothing is mounted would become one.
func (r *File) register() (string, error) {
	path := filepath.Join(r.Directory, registerFile)
	b, err := r.read(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w. If the shared directory is mounted and new, name it once, on one host: \"uuidgen > %s\"", err, path)
	}
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(b))
	if id == "" || len(id) > 128 || strings.ContainsAny(id, "\n\x00") {
		return "", fmt.Errorf("%s holds no word: \"uuidgen > %s\", once, on one host", path, path)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(r.Directory, &st); err != nil {
		return "", &os.PathError{Op: "statfs", Path: r.Directory, Err: err}
	}
	if name, ok := localOnly[int64(st.Type)]; ok && !r.local {
		return "", fmt.Errorf("%s is on %s, which the other host can't see: mount the shared directory there", r.Directory, name)
	}
	return id, nil
}

// Probe is Register's: it does what a claim does under a name that is none, and takes it
// away again.
func (r *File) Probe(ctx context.Context) (id string, err error) {
	var found string
	err = r.bounded(ctx, func() error {
		var err error
		if found, err = r.register(); err != nil {
			return err
		}
		own, err := r.create([]byte("check"))
		if own != "" {
			defer os.Remove(own)
		}
		if err != nil {
			return err
		}
		defer os.Remove(own + "-link")
		if err := r.link(own, own+"-link"); err != nil {
			return err
		}
		return r.syncDir()
	})
	if err != nil {
		return "", err
	}
	return found, nil
}

// bounded does something with the directory for as long as Timeout allows. A server that
// does not answer leaves the call in the kernel, where nothing can end it (nfs(5), hard):
// then no other is begun until it has returned.
func (r *File) bounded(ctx context.Context, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	if r.late > 0 {
		defer r.mu.Unlock()
		return fmt.Errorf("%s does not answer: a call has not returned for %v", r.Directory, time.Since(r.since).Round(time.Second))
	}
	r.mu.Unlock()
	begun := time.Now()
	done := make(chan error, 1)
	go func() { done <- do() }()
	limit := time.NewTimer(r.Timeout)
	defer limit.Stop()
	var err error
	select {
	case err := <-done:
		return err
	case <-limit.C:
		err = fmt.Errorf("%s does not answer within %v", r.Directory, r.Timeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	r.mu.Lock()
	r.late++
	r.since = begun
	r.mu.Unlock()
	go func() {
		<-done
		r.mu.Lock()
		r.late--
		r.mu.Unlock()
	}()
	return err
}

func (r *File) link(from, to string) error {
	if r.sys.link != nil {
		return r.sys.link(from, to)
	}
	return os.Link(from, to)
}

func (r *File) write(f *os.File, b []byte) error {
	if r.sys.write != nil {
		return r.sys.write(f, b)
	}
	_, err := f.Write(b)
	return err
}

func (r *File) sync(f *os.File) error {
	if r.sys.sync != nil {
		return r.sys.sync(f)
	}
	return f.Sync()
}

// maxClaim is far more than a claim has.
const maxClaim = 64 << 10

func (r *File) read(path string) ([]byte, error) {
	if r.sys.read != nil {
		return r.sys.read(path)
	}
	f, err := os.Open(path) // over NFS the server is asked anew (nfs(5), close-to-open)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxClaim))
}
