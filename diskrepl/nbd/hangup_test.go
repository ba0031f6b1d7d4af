package nbd

import (
	"context"
	"encoding/binary"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// A client that asks for much and takes no reply is left to itself: its export
// can be removed, and so can the others.
func TestStuckClient(t *testing.T) {
	s := &Server{HangUp: 50 * time.Millisecond}
	if err := s.Add(&Export{Name: "disk", Device: open(t, 8<<20, false)}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "nbd")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	cl := dial(t, socket)
	cl.enter("disk")
	for i := range 64 {
		cl.request(0, cmdRead, uint64(i), uint64(i%8)<<20, 1<<20, "")
	}
	cl.read(1) // the first reply is on its way, and there is no room for all of them
	removed := make(chan struct{})
	go func() {
		s.Remove("disk")
		close(removed)
	}()
	select {
	case <-removed:
	case <-time.After(20 * time.Second):
		t.Error("an export can't be removed, because a client does not read")
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A read of no bytes is answered, and the connection goes on.
func TestEmptyRead(t *testing.T) {
	for _, structured := range []bool{false, true} {
		cl := dial(t, serve(t, open(t, 1<<20, false)))
		if structured {
			cl.option(optStructuredReply, "")
			if typ, _ := cl.optReply(optStructuredReply); typ != repAck {
				t.Fatal(typ)
			}
		}
		cl.enter("disk")
		cl.request(0, cmdRead, 1, 4096, 0, "")
		cl.request(0, cmdFlush, 2, 0, 0, "")
		if structured {
			// magic, flags, type, cookie, length: NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE
			b := cl.read(chunkSize)
			if flags, typ := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]); flags != 1 || typ != 0 || binary.BigEndian.Uint32(b[16:]) != 0 {
				t.Errorf("answered %x", b)
			}
		} else if cookie, errno, _ := cl.reply(0); cookie != 1 || errno != 0 {
			t.Errorf("answered %d, %d", cookie, errno)
		}
		if cookie, errno, _ := cl.reply(0); cookie != 2 || errno != 0 {
			t.Errorf("the flush after it: %d, %d", cookie, errno)
		}
	}
}
