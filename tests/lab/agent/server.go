package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Serve runs the commands that connections of l ask for, until Accept fails.
func Serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		go func() {
			defer conn.Close()
			serveConn(conn)
		}()
	}
}

func serveConn(conn net.Conn) {
	kind, body, err := readFrame(conn)
	if err != nil || kind != Start {
		return
	}
	out := &frameWriter{w: conn}
	var req Request
	if err := json.Unmarshal(body, &req); err != nil {
		out.exit(Status{Code: -1, Err: err.Error()})
		return
	}
	out.exit(run(conn, out, req))
}

func run(conn io.Reader, out *frameWriter, req Request) Status {
	if len(req.Args) == 0 {
		return Status{Code: -1, Err: "no command"}
	}
	cmd := exec.Command(req.Args[0], req.Args[1:]...)
	cmd.Env = append(os.Environ(), req.Env...)
	cmd.Dir = req.Dir
	cmd.Stdout = out.of(Stdout)
	cmd.Stderr = out.of(Stderr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A daemon that the command leaves behind may hold the pipes open; the command has ended all the same.
	cmd.WaitDelay = time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return Status{Code: -1, Err: err.Error()}
	}
	if err := cmd.Start(); err != nil {
		return Status{Code: -1, Err: err.Error()}
	}
	ended := make(chan struct{})
	go feed(conn, stdin, cmd.Process.Pid, ended)
	err = cmd.Wait()
	close(ended)
	return status(cmd, err)
}

// feed hands the client's frames to the command. When the client goes away first, the whole process group dies.
func feed(conn io.Reader, stdin io.WriteCloser, pid int, ended <-chan struct{}) {
	defer stdin.Close()
	for {
		kind, body, err := readFrame(conn)
		select {
		case <-ended: // pid may belong to another process by now
			return
		default:
		}
		switch {
		case err != nil:
			syscall.Kill(-pid, syscall.SIGKILL)
			return
		case kind == Stdin:
			stdin.Write(body) // a command may close its input
		case kind == StdinEnd:
			stdin.Close()
		case kind == Signal && len(body) == 1:
			syscall.Kill(-pid, syscall.Signal(body[0]))
		}
	}
}

func status(cmd *exec.Cmd, err error) Status {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return Status{Code: -1, Err: err.Error()}
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return Status{Code: -1, Signal: ws.Signal().String()}
	}
	return Status{Code: cmd.ProcessState.ExitCode()}
}

// A frameWriter keeps the frames of two streams whole on one connection.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frameWriter) exit(s Status) {
	body, _ := json.Marshal(s) // a struct of an int and two strings
	f.mu.Lock()
	defer f.mu.Unlock()
	writeFrame(f.w, Exit, body) // if it fails the client is gone
}

func (f *frameWriter) of(kind Kind) io.Writer { return streamWriter{f, kind} }

type streamWriter struct {
	*frameWriter
	kind Kind
}

func (s streamWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := 0; n < len(p); {
		end := min(n+maxBody, len(p))
		if err := writeFrame(s.w, s.kind, p[n:end]); err != nil {
			return n, err
		}
		n = end
	}
	return len(p), nil
}
