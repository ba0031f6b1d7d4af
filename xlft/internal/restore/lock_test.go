package restore

import (
	"os/exec"
	"testing"
)

// A worker that inherits the lock holds it for as long as it lives, whatever becomes
// of the receiver; then its replica is known to be nobody's.
func TestWorkerLock(t *testing.T) {
	r := &Restorer{RunDir: t.TempDir()}
	alive := func(want bool, when string) {
		t.Helper()
		if got, err := r.working("../web 1"); err != nil || got != want {
			t.Errorf("%s: working %v, %v; want %v", when, got, err, want)
		}
	}
	alive(false, "before any worker")
	f, err := r.lock("../web 1")
	if err != nil {
		t.Fatal(err)
	}
	worker := exec.Command("sleep", "600")
	worker.ExtraFiles = append(worker.ExtraFiles, f)
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close() // the receiver's own
	alive(true, "while it lives")
	if _, err := r.lock("../web 1"); err == nil {
		t.Error("a second worker got the lock")
	}
	worker.Process.Kill()
	worker.Wait()
	alive(false, "after its death")
}
