package diskrepl

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The names of all directories that the file of an epoch needs are on stable
// storage, also of those that are made for the first one.
func TestNewDirectoriesAreSynced(t *testing.T) {
	was := syncDir
	defer func() { syncDir = was }()
	var synced []string
	top := t.TempDir()
	syncDir = func(name string) error {
		rel, err := filepath.Rel(top, name)
		synced = append(synced, rel)
		return err
	}
	d := EpochDir(filepath.Join(top, "state", "journal", "web1,xvda"))
	for i, want := range [][]string{{".", "state", "state/journal", "state/journal/web1,xvda"}, {"state/journal/web1,xvda"}} {
		synced = nil
		f, err := d.Create(uint64(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if !slices.Equal(synced, want) {
			t.Errorf("file %d: %q were synced, want %q", i+1, synced, want)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MakeDir(filepath.Join(top, "file", "below"), 0o700); err == nil {
		t.Error("a directory below a file")
	}
}
