package agent_test

import (
	"bytes"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"xlft/tests/lab/agent"
)

func start(t *testing.T, stdout, stderr *bytes.Buffer, args ...string) *agent.Process {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go agent.Serve(l)
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p, err := agent.Run(conn, agent.Request{Args: args}, stdout, stderr)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRun(t *testing.T) {
	var stdout, stderr bytes.Buffer
	p := start(t, &stdout, &stderr, "sh", "-c", "cat; echo oops >&2; exit 3")
	long := strings.Repeat("0123456789abcdef", 200_000) // more than three frames
	if _, err := p.Write([]byte(long)); err != nil {
		t.Fatal(err)
	}
	if err := p.CloseInput(); err != nil {
		t.Fatal(err)
	}
	got, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if want := (agent.Status{Code: 3}); got != want {
		t.Errorf("status %+v, want %+v", got, want)
	}
	if stdout.String() != long {
		t.Errorf("stdout has %d bytes, want the %d sent", stdout.Len(), len(long))
	}
	if got, want := stderr.String(), "oops\n"; got != want {
		t.Errorf("stderr %q, want %q", got, want)
	}
}

func TestNoSuchCommand(t *testing.T) {
	p := start(t, discard(), discard(), "/no/such/command")
	got, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if got.Code != -1 || !strings.Contains(got.Err, "no such file") {
		t.Errorf("status %+v does not say that the command is missing", got)
	}
}

func TestSignal(t *testing.T) {
	p := start(t, discard(), discard(), "sleep", "60")
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	got, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if want := (agent.Status{Code: -1, Signal: "terminated"}); got != want {
		t.Errorf("status %+v, want %+v", got, want)
	}
}

// A daemon that keeps the pipes open does not keep the command from ending.
func TestDaemonLeftBehind(t *testing.T) {
	var stdout bytes.Buffer
	p := start(t, &stdout, discard(), "sh", "-c", "sleep 30 & echo started")
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the command waits for its daemon")
	}
	if got, want := stdout.String(), "started\n"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
}

// When a client goes away the command is killed: the child would answer a TERM, which never comes.
func TestLostClientKills(t *testing.T) {
	pid := make(chan string, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go agent.Serve(l)
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p, err := agent.Run(conn, agent.Request{Args: []string{"sh", "-c", "echo $$; exec sleep 60"}}, chanWriter(pid), nil)
	if err != nil {
		t.Fatal(err)
	}
	child := atoi(t, strings.TrimSpace(<-pid))
	p.Close()
	deadline := time.Now().Add(10 * time.Second)
	for syscall.Kill(child, 0) == nil {
		if time.Now().After(deadline) {
			t.Fatalf("process %d outlives its client", child)
		}
		time.Sleep(time.Millisecond)
	}
}
