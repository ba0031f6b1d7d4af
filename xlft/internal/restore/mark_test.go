package restore

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"xlft/xlft/backup"
)

// The lock file of a replica says whether it came to run, in this boot of the host and
// in no other.
func TestRan(t *testing.T) {
	r := &Restorer{RunDir: t.TempDir()}
	want := func(want backup.Ran, when string) {
		t.Helper()
		if got, err := r.Ran("web1", ""); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", when, got, err, want)
		}
	}
	want(backup.RanUnknown, "before any replica")
	f, err := r.lock("web1")
	if err != nil {
		t.Fatal(err)
	}
	want(backup.RanNot, "a replica that waits")
	if err := markWorker(f, 1); err != nil {
		t.Fatal(err)
	}
	want(backup.RanNot, "its worker is noted")
	if err := markRan(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	f.Close()
	want(backup.RanOnce, "the worker is about to run it")
	this := boot
	boot = func() (string, error) { return "another", nil }
	want(backup.RanUnknown, "after a power cut")
	boot = this
	if f, err = r.lock("web1"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	want(backup.RanNot, "the next replica")
	if err := r.markRan("web1"); err != nil {
		t.Fatal(err)
	}
	want(backup.RanOnce, "the receiver is about to run it")
	if err := os.WriteFile(r.lockFile("web1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want(backup.RanUnknown, "an empty file")
}

// A worker that hangs is ended, but not while the receiver that made it may write.
func TestAbandon(t *testing.T) {
	r := &Restorer{RunDir: t.TempDir()}
	f, err := r.lock("web1")
	if err != nil {
		t.Fatal(err)
	}
	worker, receiver := exec.Command("sleep", "600"), exec.Command("sleep", "600")
	worker.ExtraFiles = append(worker.ExtraFiles, f)
	for _, c := range []*exec.Cmd{worker, receiver} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer c.Process.Kill()
	}
	if err := r.Abandon("web1"); err == nil {
		t.Error("a worker that is not noted was ended")
	}
	began, err := beginOf(receiver.Process.Pid)
	if err != nil || began == "" {
		t.Fatal(began, err)
	}
	if err := noteProcesses(f, worker.Process.Pid, receiver.Process.Pid, began); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := r.Abandon("web1"); err == nil || !strings.Contains(err.Error(), "has not ended") {
		t.Errorf("while the receiver is there: %v", err)
	}
	receiver.Process.Kill()
	receiver.Wait()
	ended := make(chan error, 1)
	go func() { ended <- worker.Wait() }()
	if err := r.Abandon("web1"); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("the worker was not killed")
	}
}
