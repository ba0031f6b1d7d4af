package protector

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"xlft/xlft/internal/control"
)

func stoppedFile(runDir, domain string) string { return control.Socket(runDir, domain) + ".stopped" }

// MarkStopped notes that an operator ended the protection of a run of a domain, see
// [Instance]: nobody begins it again by himself. "" forgets that.
func MarkStopped(runDir, domain, instance string) error {
	if instance == "" {
		return errors.Join(remove(stoppedFile(runDir, domain)), remove(againFile(runDir, domain)))
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(stoppedFile(runDir, domain), []byte(instance+"\n"), 0o644)
}

// StoppedRun returns the run of a domain of which an operator ended the protection last, and
// until when; the zero time is for good. "" if none did, or the time is over.
func StoppedRun(runDir, domain string) (instance string, until time.Time) {
	b, err := os.ReadFile(stoppedFile(runDir, domain))
	if err != nil {
		return "", until
	}
	instance = strings.TrimSpace(string(b))
	if b, err = os.ReadFile(againFile(runDir, domain)); err != nil {
		return instance, until
	}
	run, text, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	at, err := time.Parse(time.RFC3339, text)
	switch {
	case err != nil || run != instance:
		return instance, until
	case !time.Now().Before(at):
		return "", until
	}
	return instance, at
}

// againFile is a file of its own: whoever ends a protection does not know for how long.
func againFile(runDir, domain string) string { return control.Socket(runDir, domain) + ".again" }

// MarkAgain notes that the protection of a run of a domain is to begin again at a time, if an
// operator ends it. "" forgets that.
func MarkAgain(runDir, domain, instance string, at time.Time) error {
	if instance == "" {
		return remove(againFile(runDir, domain))
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(againFile(runDir, domain), []byte(instance+" "+at.UTC().Format(time.RFC3339)+"\n"), 0o644)
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
