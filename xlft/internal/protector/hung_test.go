package protector

import (
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"xlft/xlft/internal/control"
	"xlft/xlft/primary"
)

// hungEnv makes the test's binary a process that listens as a protector does, on the
// socket of web1 in that directory.
const hungEnv = "XLFT_TEST_PROTECTOR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(hungEnv); dir != "" {
		l, err := control.Listen(control.Socket(dir, "web1"))
		if err != nil {
			os.Exit(1)
		}
		mux := http.NewServeMux()
		control.Handle(mux, "GET /status", func(*http.Request) (any, error) { return primary.Status{}, nil })
		http.Serve(l, mux)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A protector that answers is left alone, one that was stopped is ended, and where there
// is none nothing is done.
func TestEndHung(t *testing.T) {
	dir := t.TempDir()
	if pid, err := EndHung(t.Context(), dir, "web1"); pid != 0 || err != nil {
		t.Errorf("no protector: %d, %v", pid, err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), hungEnv+"="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	client := NewClient(dir, "web1")
	for until := time.Now().Add(20 * time.Second); ; {
		if _, err := client.Status(t.Context()); err == nil {
			break
		} else if time.Now().After(until) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if pid, err := EndHung(t.Context(), dir, "web1"); pid != 0 || err != nil {
		t.Errorf("one that answers: %d, %v", pid, err)
	}
	select {
	case err := <-ended:
		t.Fatalf("it has ended: %v", err)
	default:
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Where the test itself is kept from running, the protector is left alone at first.
	pid := 0
	for tries := 0; pid == 0 && err == nil && tries < 20; tries++ {
		pid, err = EndHung(t.Context(), dir, "web1")
	}
	if pid != cmd.Process.Pid || err != nil {
		t.Fatalf("one that was stopped: %d, %v, want %d", pid, err, cmd.Process.Pid)
	}
	<-ended
}

// Another program's socket is nobody's protector.
func TestEndHungOther(t *testing.T) {
	dir := t.TempDir()
	l, err := control.Listen(control.Socket(dir, "web1")) // of this process, which answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pid := 0
	for tries := 0; pid == 0 && err == nil && tries < 20; tries++ {
		pid, err = EndHung(t.Context(), dir, "web1")
	}
	if pid != 0 || err == nil {
		t.Errorf("%d, %v", pid, err)
	}
}
