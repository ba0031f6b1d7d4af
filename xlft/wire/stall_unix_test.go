//go:build unix

package wire_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"xlft/xlft/wire"
)

const (
	stallEnv     = "XLFT_TEST_STALL" // the address that the child process calls
	stallAtAck   = "XLFT_TEST_STALL_AT_ACK"
	stallSilence = 200 * time.Millisecond
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(stallEnv); addr != "" {
		stallChild(addr)
		return
	}
	os.Exit(m.Run())
}

// stallChild prints what a Control receives.
func stallChild(addr string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	control := wire.NewControl(wire.NewConn(c), stallSilence)
	go control.Beat(context.Background())
	for {
		f, err := control.Receive()
		if err != nil {
			fmt.Println("suspects:", err)
			return
		}
		if f.Type == wire.TypeAck {
			if os.Getenv(stallAtAck) != "" {
				at := time.Now()
				syscall.Kill(os.Getpid(), syscall.SIGSTOP)
				// Not at once: another thread may be the one that takes the signal.
				for time.Since(at) < stallSilence {
					time.Sleep(time.Millisecond)
				}
			}
			if !control.Latest() {
				continue
			}
		}
		fmt.Println(f.Type)
	}
}

// A process that stood still reads what came meanwhile before it suspects
// anybody: a real process, stopped and continued.
func TestControlAfterStall(t *testing.T) {
	for _, c := range []struct {
		name string
		says func(*wire.Control)
		want string
	}{
		{"the peer beats on", func(c *wire.Control) { c.Send(wire.TypeAck, 1) }, "ACK"},
		{"the peer says so and hangs up", func(c *wire.Control) { c.Send(wire.TypeDestroy, 0); c.Close() }, "DESTROY"},
		{"the peer acknowledges and then takes over", func(c *wire.Control) { c.Send(wire.TypeAck, 1); c.Send(wire.TypeRunning, 1) }, "RUNNING"},
		{"the peer acknowledges and beats on", func(c *wire.Control) { c.Send(wire.TypeAck, 1); c.Send(wire.TypeHeartbeat, 0) }, "ACK"},
		{"the peer acknowledges and hangs up", func(c *wire.Control) { c.Send(wire.TypeAck, 1); c.Close() }, "suspects: connection broke: EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for range 5 {
				if got := stall(t, c.says); got != c.want {
					t.Errorf("the first that the process says is %q, want %s", got, c.want)
				}
			}
		})
	}
}

// The process stands still between the ACK and what it lets out.
func TestStallAfterAck(t *testing.T) {
	for _, c := range []struct {
		name string
		says func(*wire.Control)
		want string
	}{
		{"the peer beats on", func(c *wire.Control) { c.Send(wire.TypeHeartbeat, 0) }, "ACK"},
		{"the peer takes over", func(c *wire.Control) { c.Send(wire.TypeHeartbeat, 0); c.Send(wire.TypeRunning, 1) }, "RUNNING"},
		{"the peer hangs up", func(c *wire.Control) { c.Close() }, "suspects: connection broke: EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			child, control, out := stalling(t, stallAtAck+"=1")
			control.Send(wire.TypeAck, 1)
			var st syscall.WaitStatus
			if _, err := syscall.Wait4(child.Pid, &st, syscall.WUNTRACED, nil); err != nil || !st.Stopped() {
				t.Fatal(st, err)
			}
			time.Sleep(2 * stallSilence)
			c.says(control)
			if got := goesOn(t, child, out); got != c.want {
				t.Errorf("the first that the process says is %q, want %s", got, c.want)
			}
		})
	}
}

// stall stops a process for several times the failure timeout, and returns what
// it says first when it goes on.
func stall(t *testing.T, says func(*wire.Control)) string {
	child, control, out := stalling(t)
	child.Signal(syscall.SIGSTOP)
	for range 4 * 5 {
		if err := control.Send(wire.TypeHeartbeat, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(stallSilence / 5)
	}
	says(control)
	return goesOn(t, child, out)
}

// stalling starts a process that receives from the Control.
func stalling(t *testing.T, env ...string) (*os.Process, *wire.Control, *bufio.Reader) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	child := exec.Command(os.Args[0])
	child.Env = append(append(os.Environ(), stallEnv+"="+l.Addr().String()), env...)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Process.Kill(); child.Wait() })
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	control := wire.NewControl(wire.NewConn(raw), time.Minute)
	if _, err := wire.NewConn(raw).ReadFrame(); err != nil { // the child is at its loop
		t.Fatal(err)
	}
	return child.Process, control, bufio.NewReader(out)
}

// goesOn lets a process go on, and returns what it says first.
func goesOn(t *testing.T, child *os.Process, out *bufio.Reader) string {
	child.Signal(syscall.SIGCONT)
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
