package protector

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"xlft/xlft/internal/control"
)

// LongestDisarm is the longest time for which an operator may end a protection. A mark that
// says more is of a clock that was wrong.
const LongestDisarm = 7 * 24 * time.Hour

func stoppedFile(runDir, domain string) string { return control.Socket(runDir, domain) + ".stopped" }

// againFile is a file of its own: whoever ends a protection does not know for how long.
func againFile(runDir, domain string) string { return control.Socket(runDir, domain) + ".again" }

// MarkStopped notes that an operator ended the protection of a run of a domain, see
// [Instance]: nobody begins it again by himself. "" forgets that, and MarkAgain.
func MarkStopped(runDir, domain, instance string) error {
	if instance == "" {
		return errors.Join(remove(stoppedFile(runDir, domain)), remove(againFile(runDir, domain)))
	}
	return write(runDir, stoppedFile(runDir, domain), instance)
}

// MarkAgain notes that until then nobody is to protect a domain by himself, and that it is to
// be protected again after that if an operator ended its protection before. The zero time
// forgets that.
func MarkAgain(runDir, domain string, at time.Time) error {
	if at.IsZero() {
		return remove(againFile(runDir, domain))
	}
	return write(runDir, againFile(runDir, domain), at.UTC().Format(time.RFC3339))
}

// Again returns what MarkAgain noted last; the zero time if that is nothing.
func Again(runDir, domain string) time.Time {
	b, err := os.ReadFile(againFile(runDir, domain))
	if err != nil {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339, strings.TrimSpace(string(b)))
	if err != nil || time.Until(at) > LongestDisarm+time.Minute {
		return time.Time{}
	}
	return at
}

// Stopped reports whether an operator does not want a run of a domain to be protected, and
// until when; the zero time is for good.
func Stopped(runDir, domain, instance string) (stopped bool, until time.Time) {
	at := Again(runDir, domain)
	if time.Now().Before(at) {
		return true, at // of any run: the domain may be started again meanwhile
	}
	path := stoppedFile(runDir, domain)
	b, err := os.ReadFile(path)
	if err != nil || instance == "" || strings.TrimSpace(string(b)) != instance {
		return false, until
	}
	if st, err := os.Stat(path); err == nil && !at.IsZero() && !at.Before(st.ModTime()) {
		return false, until // it was for that time
	}
	return true, until
}

func write(dir, path, text string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text+"\n"), 0o644)
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
