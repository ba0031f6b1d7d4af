package xen

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSaver(t *testing.T) {
	proc := t.TempDir()
	for pid, line := range map[string]string{
		"1":    "/sbin/init",
		"20":   "",
		"300":  "/usr/lib/xen-4.17/bin/libxl-save-helper --restore-domain 7 8 4 0 0",
		"301":  "/usr/lib/xen-4.17/bin/libxl-save-helper --save-domain 4 -1 6 0 7 0",
		"302":  "libxl-save-helper --save-domain 6 -1 12 1 7 0",
		"303":  "less libxl-save-helper --save-domain 4 8",
		"304":  "libxl-save-helper",
		"self": "libxl-save-helper --save-domain 6 -1 40 1 7 0",
	} {
		dir := filepath.Join(proc, pid)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cmdline"), []byte(strings.ReplaceAll(line, " ", "\x00")+"\x00"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for domid, want := range map[uint32]int{4: 0, 6: 301, 12: 302, 1: 0, 8: 0, 40: 0} {
		if got := Saver(proc, domid); got != want {
			t.Errorf("domain %d: process %d, want %d", domid, got, want)
		}
	}
	if got := Saver(filepath.Join(proc, "none"), 6); got != 0 {
		t.Errorf("without /proc: process %d", got)
	}
}

// The watch finds a process that has just begun, and looks at no processes for long.
func TestSaverWatch(t *testing.T) {
	dir := t.TempDir()
	helper := filepath.Join(dir, "xen-4.17", "bin", saveHelper)
	if err := os.MkdirAll(filepath.Dir(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	sh, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(helper, sh, 0o755); err != nil {
		t.Fatal(err)
	}
	looks, found := 0, 0
	find := func() int { looks++; return found }
	w := watchSavers([]string{filepath.Join(dir, "xen*", "bin"), filepath.Join(dir, "other")}, find)
	defer w.close()
	if w.saver() != 0 || looks != 1 {
		t.Errorf("%d looks at the processes that were there", looks)
	}
	w.last = time.Now().Add(-time.Minute)
	if w.saver() != 0 || looks != 1 {
		t.Errorf("%d looks, and nothing has begun", looks)
	}

	p := exec.Command(helper, "60")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer p.Wait()         //nolint:errcheck // it was killed
	defer p.Process.Kill() //nolint:errcheck // as above
	if w.saver() != 0 || looks != 2 {
		t.Errorf("%d looks after one has begun", looks)
	}
	found = p.Process.Pid // it has its command line now
	if w.saver() != found || looks != 3 {
		t.Errorf("%d looks just after one has begun", looks)
	}
	w.last = time.Now().Add(-time.Minute)
	if w.saver() != found || looks != 4 {
		t.Errorf("%d looks while it runs", looks)
	}
	found = 0
	if w.saver() != 0 || looks != 5 || w.saver() != 0 || looks != 5 {
		t.Errorf("%d looks after its end", looks)
	}

	// An upgrade puts another file in the helper's place, while the old one runs.
	if err := os.WriteFile(helper+".new", sh, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(helper+".new", helper); err != nil {
		t.Fatal(err)
	}
	w.saver()
	w.last, looks = time.Now().Add(-time.Minute), 0
	q := exec.Command(helper, "60")
	if err := q.Start(); err != nil {
		t.Fatal(err)
	}
	defer q.Wait()         //nolint:errcheck // it was killed
	defer q.Process.Kill() //nolint:errcheck // as above
	if w.saver(); looks != 1 {
		t.Errorf("%d looks after the new file was run", looks)
	}

	none := watchSavers([]string{filepath.Join(dir, "other")}, find)
	found = 7
	none.last = time.Now().Add(-time.Minute)
	if none.saver() != 7 {
		t.Error("without a file to watch nobody looks")
	}
}
