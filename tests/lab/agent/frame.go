// Package agent runs commands on a lab host on behalf of a test: it is what ssh would be if cryptography cost
// nothing under emulation and every restored snapshot kept its connections.
//
// A connection carries one request. The client sends a [Request] as the first frame; then both sides exchange
// frames until the server sends an Exit frame. A connection that breaks kills the command, so a test that ends
// leaves nothing running. There is no authentication: the agent listens on a network that only the test can reach.
package agent

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Port is the TCP port the agent listens on.
const Port = 5000

// A Kind says what the body of a frame is.
type Kind uint8

// The kinds of frames: client to server, then server to client.
const (
	Start    Kind = iota + 1 // a Request as JSON
	Stdin                    // bytes for the command's standard input
	StdinEnd                 // end of standard input
	Signal                   // one byte: a signal for the command's process group
	Stdout                   // bytes of standard output
	Stderr                   // bytes of standard error
	Exit                     // a Status as JSON; the last frame
)

// maxBody bounds a frame, so that a peer can't make the other allocate without end.
const maxBody = 1 << 20

// A Request asks for one command.
type Request struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"` // added to the agent's own
	Dir  string   `json:"dir,omitempty"`
}

// A Status tells how a command ended.
type Status struct {
	Code   int    `json:"code"`             // exit status; -1 when a signal ended it or it did not start
	Signal string `json:"signal,omitempty"` // name of that signal
	Err    string `json:"err,omitempty"`    // why it did not start
}

func writeFrame(w io.Writer, kind Kind, body []byte) error {
	frame := make([]byte, 5+len(body))
	frame[0] = byte(kind)
	binary.BigEndian.PutUint32(frame[1:], uint32(len(body)))
	copy(frame[5:], body)
	_, err := w.Write(frame)
	return err
}

// readFrame returns the next frame. A stream that ends between two frames is io.EOF.
func readFrame(r io.Reader) (Kind, []byte, error) {
	var hdr [5]byte
	if _, err := io.ReadFull(r, hdr[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(hdr[1:])
	if n > maxBody {
		return 0, nil, fmt.Errorf("agent: frame of %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, fmt.Errorf("agent: frame cut short: %w", err)
	}
	return Kind(hdr[0]), body, nil
}
