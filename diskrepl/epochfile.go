package diskrepl

import (
	"errors"
	"fmt"
	"io"
)

// An EpochStore keeps the writes of epochs outside of this process's memory,
// one file per epoch. Each file has the records of its epoch in the format of
// the stream to a Replica (see record.go).
//
// A [Shared] uses one for the writes that it holds back: a process that is
// killed leaves them to its successor. They need not outlive the host, because
// the backup has what counts then. A [Replica] uses one for its journal, which
// has to outlive the host.
type EpochStore interface {
	// Create creates the file of an epoch. It fails if there is one.
	Create(epoch uint64) (EpochFile, error)
	// Left opens the files that an earlier process left, and returns what
	// SetReleaseAll recorded.
	Left() (files map[uint64]EpochFile, releaseAll bool, err error)
	// SetReleaseAll records whether all files that there are may go to the
	// storage.
	SetReleaseAll(releaseAll bool) error
}

// An EpochFile is the file of one epoch.
type EpochFile interface {
	io.ReaderAt
	io.WriterAt
	// Truncate cuts the file to so many bytes.
	Truncate(size int64) error
	// Sync returns when stable storage has the file and its name.
	Sync() error
	// Complete records that the file is complete, and returns when stable
	// storage has that. Sync comes before it, and no write after it.
	Complete() error
	// Completed reports whether Complete recorded that, in this process or in an
	// earlier one. What is wrong with such a file its storage did.
	Completed() bool
	// Remove closes and deletes the file.
	Remove() error
	// Close closes the file.
	Close() error
}

// readEpochFile calls f with each record of a file and with its body, which is
// in memory that get returns, until f returns false or the file ends. size is
// that of the disk. It returns [ErrLost] if the file ends inside a record.
func readEpochFile(file EpochFile, epoch uint64, size int64, get func(int) []byte, f func(d *reader, rec record, body []byte) (more bool, err error)) error {
	d := newReader(io.NewSectionReader(file, 0, 1<<62), 64<<10)
	for {
		rec, body, err := d.next(get)
		if errors.Is(err, io.EOF) { // inside a record it is io.ErrUnexpectedEOF
			return nil
		}
		if err == nil && (rec.epoch != epoch || rec.typ != recSeal && !rec.fits(size)) {
			err = fmt.Errorf("%v of epoch %d, range %d+%d of %d bytes", rec.typ, rec.epoch, rec.off, rec.n, size)
		}
		if err != nil {
			return err
		}
		if more, err := f(d, rec, body); err != nil || !more {
			return err
		}
	}
}
