package protector

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"xlft/xlft/internal/control"
)

func stoppedFile(runDir, domain string) string { return control.Socket(runDir, domain) + ".stopped" }

// MarkStopped notes that an operator ended the protection of a run of a domain, see
// [Instance]: nobody begins it again by himself. "" forgets that.
func MarkStopped(runDir, domain, instance string) error {
	if instance == "" {
		if err := os.Remove(stoppedFile(runDir, domain)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(stoppedFile(runDir, domain), []byte(instance+"\n"), 0o644)
}

// StoppedRun returns the run of a domain of which an operator ended the protection last; ""
// if none did.
func StoppedRun(runDir, domain string) string {
	b, err := os.ReadFile(stoppedFile(runDir, domain))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
