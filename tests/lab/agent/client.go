package agent

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// A Process is a command that runs on the far side. Its output goes to the writers given to [Run].
type Process struct {
	conn net.Conn
	send sync.Mutex // whole frames only

	done   chan struct{}
	status Status // valid once done is closed, as is err
	err    error
}

// Run starts a command over conn, which then belongs to the Process. Nil writers discard.
func Run(conn net.Conn, req Request, stdout, stderr io.Writer) (*Process, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	p := &Process{conn: conn, done: make(chan struct{})}
	if err := p.frame(Start, body); err != nil {
		conn.Close()
		return nil, fmt.Errorf("agent: send request: %w", err)
	}
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	go p.receive(stdout, stderr)
	return p, nil
}

func (p *Process) receive(stdout, stderr io.Writer) {
	defer close(p.done)
	defer p.conn.Close()
	for {
		kind, body, err := readFrame(p.conn)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			p.err = fmt.Errorf("agent: connection lost: %w", err)
			return
		}
		switch kind {
		case Stdout:
			_, err = stdout.Write(body)
		case Stderr:
			_, err = stderr.Write(body)
		case Exit:
			if err := json.Unmarshal(body, &p.status); err != nil {
				p.err = fmt.Errorf("agent: exit status: %w", err)
			}
			return
		}
		if err != nil {
			p.err = fmt.Errorf("agent: take output: %w", err)
			return
		}
	}
}

// Write feeds the command's standard input.
func (p *Process) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		end := min(n+maxBody, len(b))
		if err := p.frame(Stdin, b[n:end]); err != nil {
			return n, err
		}
		n = end
	}
	return len(b), nil
}

// CloseInput ends the command's standard input.
func (p *Process) CloseInput() error { return p.frame(StdinEnd, nil) }

// Signal sends sig to the command's process group.
func (p *Process) Signal(sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("agent: signal %v", sig)
	}
	return p.frame(Signal, []byte{byte(n)})
}

// Close breaks the connection, which kills the command.
func (p *Process) Close() error { return p.conn.Close() }

// Done is closed when the command has ended or its host is lost.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits until the command has ended. An error means that the command's end is not known.
func (p *Process) Wait() (Status, error) {
	<-p.done
	return p.status, p.err
}

func (p *Process) frame(kind Kind, body []byte) error {
	p.send.Lock()
	defer p.send.Unlock()
	return writeFrame(p.conn, kind, body)
}
