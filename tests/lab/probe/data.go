package probe

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
)

// The guest works on its first disk with real programs, which it has from the lab's tools disk: ext4 at /data, fio,
// and SQLite. The answers, one line each, are on the methods. Formatting, checking and waiting take seconds: give
// the client a deadline that leaves them time.

// DataDir is where the guest mounts its first disk.
const DataDir = "/data"

// Mkfs makes an ext4 file system on the guest's first disk and mounts it. Command: mkfs. Answer: ok.
func (c *Client) Mkfs() error {
	_, err := c.do("mkfs")
	return err
}

// Mount mounts the disk, which must hold a file system. Command: mount. Answer: ok.
func (c *Client) Mount() error {
	_, err := c.do("mount")
	return err
}

// Unmount unmounts the disk, after which the guest has none of it in memory. Command: unmount. Answer: ok.
func (c *Client) Unmount() error {
	_, err := c.do("unmount")
	return err
}

// ErrUnsound means that a program found damage on the guest's disk.
var ErrUnsound = errors.New("the guest's disk is damaged")

// A Fsck is how e2fsck ended.
type Fsck struct {
	Status int    // of its exit: 0 for a clean file system
	Last   string // line that it printed
}

// Err is nil if the file system is clean.
func (f Fsck) Err() error {
	if f.Status == 0 {
		return nil
	}
	return fmt.Errorf("%w: e2fsck: exit status %d: %s", ErrUnsound, f.Status, f.Last)
}

// Fsck has e2fsck look at all of the file system on the unmounted disk, changing nothing. Command: fsck. Answer:
// STATUS LINE.
func (c *Client) Fsck() (Fsck, error) {
	line, err := c.do("fsck")
	if err != nil {
		return Fsck{}, err
	}
	var f Fsck
	status, last, _ := strings.Cut(line, " ")
	f.Last = last
	if _, err := fmt.Sscan(status, &f.Status); err != nil {
		return Fsck{}, fmt.Errorf("probe: fsck: answer %q: %w", line, err)
	}
	return f, nil
}

// FioVerify returns the arguments of a fio that writes to a file in [DataDir], or to a device, in random order, with
// blocks of 4 KiB, four at a time, past the guest's cache, flushing after every 32, and then reads all of it back and
// verifies it: so many MiB, so many passes over. More arguments may follow, such as --rate_iops=,100 to stretch it.
//
// A pass ends by itself rather than after a time, and all blocks are of one size: only then does fio verify that a
// block holds the write it was last told is done, and not one of an earlier pass. It counts what is wrong and goes on.
func FioVerify(file string, mib, passes int, more ...string) []string {
	return append([]string{
		"--name=verify", "--filename=" + file, fmt.Sprintf("--size=%dM", mib), fmt.Sprintf("--loops=%d", passes),
		"--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=4", "--direct=1", "--fsync=32",
		"--verify=crc32c", "--verify_fatal=0", "--continue_on_error=verify",
	}, more...)
}

// FioStart starts fio in the guest, one at a time, with arguments without spaces. Command: fio start ARGS. Answer: ok.
func (c *Client) FioStart(args ...string) error {
	_, err := c.do("fio start %s", strings.Join(args, " "))
	return err
}

// A FioProgress is how far fio has come.
type FioProgress struct {
	Running       bool
	Read, Written uint64 // bytes from and to disks; while it runs, what of fio itself was read counts too
}

// FioStatus tells how far the fio that was started last has come. Command: fio status. Answer: running READ WRITTEN, or
// ended READ WRITTEN.
func (c *Client) FioStatus() (FioProgress, error) {
	line, err := c.do("fio status")
	if err != nil {
		return FioProgress{}, err
	}
	var word string
	var p FioProgress
	if _, err := fmt.Sscan(line, &word, &p.Read, &p.Written); err != nil {
		return FioProgress{}, fmt.Errorf("probe: fio status: answer %q: %w", line, err)
	}
	p.Running = word == "running"
	return p, nil
}

// A FioResult is how fio ended.
type FioResult struct {
	Status        int // of its exit; -1 if a signal ended it
	Code          int // the first error of a job, as errno has it
	Errors        int // that it counted, which is 0 for one that made it stop
	Read, Written uint64
	Complaint     string // its first
}

// Err is nil if fio found nothing wrong. Read says whether fio verified anything.
func (r FioResult) Err() error {
	if r.Status == 0 && r.Code == 0 && r.Errors == 0 {
		return nil
	}
	return fmt.Errorf("%w: fio: exit status %d, error %d, %d errors: %s", ErrUnsound, r.Status, r.Code, r.Errors, r.Complaint)
}

// FioWait waits until fio has ended. Command: fio wait. Answer: STATUS CODE ERRORS READ WRITTEN COMPLAINT.
func (c *Client) FioWait() (FioResult, error) {
	line, err := c.do("fio wait")
	if err != nil {
		return FioResult{}, err
	}
	var r FioResult
	words := strings.SplitN(line, " ", 6)
	if len(words) == 6 {
		r.Complaint = words[5]
		words = words[:5]
	}
	if _, err := fmt.Sscan(strings.Join(words, " "), &r.Status, &r.Code, &r.Errors, &r.Read, &r.Written); err != nil {
		return FioResult{}, fmt.Errorf("probe: fio wait: answer %q: %w", line, err)
	}
	return r, nil
}

// Commit has SQLite insert row n on the disk, one transaction with synchronous=FULL. It returns when SQLite has said
// that it is committed. Command: commit N. Answer: N.
func (c *Client) Commit(n uint64) error {
	line, err := c.do("commit %d", n)
	if err != nil {
		return err
	}
	if line != fmt.Sprint(n) {
		return fmt.Errorf("probe: commit %d: answer %q", n, line)
	}
	return nil
}

// Rows is what SQLite finds on the disk.
type Rows struct {
	Count, Max uint64 // how many rows, and the greatest number of one
	Sum        uint64 // FoldRow over all, in the order of their numbers
	Total      uint64 // the count that each transaction raises in another table
}

// Rows has the guest forget what it knows and read all rows from the disk. Command: rows. Answer: COUNT MAX SUM TOTAL.
func (c *Client) Rows() (Rows, error) {
	line, err := c.do("rows")
	if err != nil {
		return Rows{}, err
	}
	var r Rows
	if _, err := fmt.Sscan(line, &r.Count, &r.Max, &r.Sum, &r.Total); err != nil {
		return Rows{}, fmt.Errorf("probe: rows: answer %q: %w", line, err)
	}
	return r, nil
}

// RowBody returns what row n holds besides its number: enough that half of it shows.
func RowBody(n uint64) string {
	var b strings.Builder
	word := Fold(14695981039346656037, n)
	for i := range uint64(16) {
		word = Fold(word, i)
		fmt.Fprintf(&b, "%016x", word)
	}
	return b.String()
}

// FoldRow adds a row to a checksum of rows.
func FoldRow(sum, n uint64, body string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(body))
	return Fold(Fold(sum, n), h.Sum64())
}

// Integrity has SQLite check what is on the disk. It wraps [ErrUnsound] if SQLite finds anything. Command: integrity.
// Answer: ok, or what is wrong.
func (c *Client) Integrity() error {
	line, err := c.do("integrity")
	if err == nil && line != "ok" {
		err = fmt.Errorf("%w: SQLite: %s", ErrUnsound, line)
	}
	return err
}

// Journal sets how SQLite keeps transactions whole: delete, as at first, or wal. Command: journal MODE. Answer: MODE.
func (c *Client) Journal(mode string) error {
	line, err := c.do("journal %s", mode)
	if err == nil && line != mode {
		err = fmt.Errorf("probe: journal %s: answer %q", mode, line)
	}
	return err
}

// SQL has SQLite carry out a statement on the tables rows(n, body) and total(rows) and returns what it prints, in one
// line. Command: sql STATEMENT.
func (c *Client) SQL(statement string) (string, error) { return c.do("sql %s", statement) }
