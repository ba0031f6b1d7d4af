package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"xlft/diskrepl/blockfile"
)

// open returns a file of n bytes as a device.
func open(t testing.TB, n int64, direct bool) *blockfile.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, n); err != nil {
		t.Fatal(err)
	}
	f, err := blockfile.Open(name, direct)
	if errors.Is(err, blockfile.ErrNeedsLinux) || direct && err != nil && strings.Contains(err.Error(), "direct I/O") {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// serve serves a device as export "disk" on a socket, and a read-only one as
// "ro".
func serve(t testing.TB, d Device) (socket string) {
	t.Helper()
	// The name of a socket has at most 108 bytes, which t.TempDir can be over.
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{}
	for _, e := range []*Export{{Name: "disk", Description: "a test", Device: d}, {Name: "ro", Device: d, ReadOnly: true}} {
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return socket
}

// A client speaks the protocol byte by byte.
type client struct {
	t testing.TB
	net.Conn
}

func dial(t testing.TB, socket string) *client {
	t.Helper()
	nc, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { nc.Close() })
	c := &client{t, nc}
	hello := c.read(18)
	if want := "NBDMAGICIHAVEOPT\x00\x03"; string(hello) != want {
		t.Fatalf("greeting %q, want %q", hello, want)
	}
	c.write(uint32(flagFixedNewstyle | flagNoZeroes))
	return c
}

func (c *client) write(vs ...any) {
	c.t.Helper()
	var b bytes.Buffer
	for _, v := range vs {
		if s, ok := v.(string); ok {
			v = []byte(s)
		}
		if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatal(err)
	}
	return b
}

func (c *client) option(opt uint32, data string) {
	c.t.Helper()
	c.write(uint64(magicOption), opt, uint32(len(data)), data)
}

func (c *client) optReply(opt uint32) (typ uint32, data []byte) {
	c.t.Helper()
	b := c.read(20)
	if m := binary.BigEndian.Uint64(b); m != magicOptReply || binary.BigEndian.Uint32(b[8:]) != opt {
		c.t.Fatalf("reply % x to option %d", b, opt)
	}
	return binary.BigEndian.Uint32(b[12:]), c.read(int(binary.BigEndian.Uint32(b[16:])))
}

// enter opens an export by the oldest way.
func (c *client) enter(name string) (size uint64, flags uint16) {
	c.t.Helper()
	c.option(optExportName, name)
	b := c.read(10)
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:])
}

func (c *client) request(flags, cmd uint16, cookie, off uint64, n uint32, payload string) {
	c.t.Helper()
	c.write(uint32(magicRequest), flags, cmd, cookie, off, n, payload)
}

// reply reads a simple reply.
func (c *client) reply(n int) (cookie uint64, errno uint32, data []byte) {
	c.t.Helper()
	b := c.read(16)
	if m := binary.BigEndian.Uint32(b); m != magicSimple {
		c.t.Fatalf("reply with magic %#x", m)
	}
	if errno = binary.BigEndian.Uint32(b[4:]); errno == 0 {
		data = c.read(n)
	}
	return binary.BigEndian.Uint64(b[8:]), errno, data
}

// Clients are told of sectors of 4096 bytes, and else that any request will do. A
// smaller request is served all the same.
func TestSectorsAreTold(t *testing.T) {
	for sector, want := range map[int]uint32{0: 1, 512: 1, 4096: 4096} {
		dir, err := os.MkdirTemp("", "nbd")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{}
		s.Add(&Export{Name: "disk", Device: open(t, 1<<20, false), Sector: sector})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, l) }()
		c := dial(t, filepath.Join(dir, "s"))
		c.option(optGo, "\x00\x00\x00\x04disk\x00\x00")
		told := false
		for typ := uint32(repInfo); typ == repInfo; {
			var data []byte
			if typ, data = c.optReply(optGo); typ == repInfo && binary.BigEndian.Uint16(data) == infoBlockSize {
				told = true
				if got := binary.BigEndian.Uint32(data[2:]); got != want {
					t.Errorf("sectors of %d: requests of %d bytes at least, want %d", sector, got, want)
				}
			}
		}
		c.request(0, cmdRead, 1, 5, 10, "")
		if _, errno, _ := c.reply(10); errno != 0 || !told {
			t.Errorf("sectors of %d: told %v, a read of 10 bytes gives %d", sector, told, errno)
		}
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestNegotiation(t *testing.T) {
	socket := serve(t, open(t, 1<<20, false))
	goDisk := "\x00\x00\x00\x04disk\x00\x00"
	for _, c := range []struct {
		name string
		opt  uint32
		data string
		want uint32 // type of the last reply
		text string // in its data
	}{
		{"unknown option", 99, "", repErrUnsup, ""},
		{"TLS", 5, "", repErrUnsup, ""},
		{"go to an unknown export", optGo, "\x00\x00\x00\x03foo\x00\x00", repErrUnknown, `"foo" is not served`},
		{"info", optInfo, goDisk, repAck, ""},
		{"info with requests", optInfo, "\x00\x00\x00\x04disk\x00\x01\x00\x03", repAck, ""},
		{"info cut short", optInfo, "\x00\x00\x00\x04di", repErrInvalid, ""},
		{"info with a wild length", optInfo, "\xff\xff\xff\xffdisk\x00\x00", repErrInvalid, ""},
		{"info with fewer requests than it says", optInfo, "\x00\x00\x00\x04disk\x00\x02\x00\x03", repErrInvalid, ""},
		{"list", optList, "", repAck, ""},
		{"list with data", optList, "x", repErrInvalid, "no data"},
		{"structured replies with data", optStructuredReply, "x", repErrInvalid, "no data"},
		{"far too long", optList, strings.Repeat("x", 100000), repErrTooBig, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := dial(t, socket)
			cl.option(c.opt, c.data)
			typ, data := cl.optReply(c.opt)
			for typ == repInfo || typ == repServer {
				typ, data = cl.optReply(c.opt)
			}
			if typ != c.want || !strings.Contains(string(data), c.text) {
				t.Errorf("answered %#x %q, want %#x with %q", typ, data, c.want, c.text)
			}
			// The connection is still in step.
			if size, _ := cl.enter("disk"); size != 1<<20 {
				t.Errorf("size %d afterwards", size)
			}
		})
	}
}

// Requests that must not reach the disk get the protocol's error, and leave the
// connection in step.
func TestBadRequests(t *testing.T) {
	socket := serve(t, open(t, 1<<20, false))
	for _, c := range []struct {
		name       string
		export     string
		flags, cmd uint16
		off        uint64
		n          uint32
		payload    string
		want       uint32
	}{
		{"read beyond the end", "disk", 0, cmdRead, 1<<20 - 1, 2, "", eInval},
		{"read at a wild offset", "disk", 0, cmdRead, 1<<64 - 1, 2, "", eInval},
		{"read of too much", "disk", 0, cmdRead, 0, 1 << 30, "", eOverflow},
		{"write beyond the end", "disk", 0, cmdWrite, 1 << 20, 3, "abc", eNoSpc},
		{"write to a read-only export", "ro", 0, cmdWrite, 0, 3, "abc", ePerm},
		{"trim of a read-only export", "ro", 0, cmdTrim, 0, 3, "", ePerm},
		{"zero beyond the end", "disk", 0, cmdWriteZeroes, 0, 1<<20 + 1, "", eNoSpc},
		{"unknown command", "disk", 0, 77, 0, 0, "", eInval},
		{"unknown flag", "disk", 1 << 9, cmdRead, 0, 1, "", eInval},
		{"DF without structured replies", "disk", cmdFlagDF, cmdRead, 0, 1, "", eInval},
		{"flush of a range", "disk", 0, cmdFlush, 0, 512, "", eInval},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := dial(t, socket)
			cl.enter(c.export)
			cl.request(c.flags, c.cmd, 77, c.off, c.n, c.payload)
			if cookie, errno, _ := cl.reply(0); cookie != 77 || errno != c.want {
				t.Errorf("cookie %d, error %d, want 77 and %d", cookie, errno, c.want)
			}
			cl.request(0, cmdRead, 78, 0, 4, "")
			if cookie, errno, data := cl.reply(4); cookie != 78 || errno != 0 || string(data) != "\x00\x00\x00\x00" {
				t.Errorf("then: cookie %d, error %d, data %q", cookie, errno, data)
			}
		})
	}
}

// failing is a device that fails.
type failing struct {
	*blockfile.File
	err error
}

func (f *failing) ReadAt([]byte, int64) error        { return f.err }
func (f *failing) TryReadAt([]byte, int64) bool      { return false }
func (f *failing) WriteAt([]byte, int64, bool) error { return f.err }
func (f *failing) Flush() error                      { return f.err }
func (f *failing) Zero(_, _ int64, _, _ bool) error  { return f.err }
func (f *failing) Trim(_, _ int64, _ bool) error     { return f.err }

// A disk's error reaches the client as its own kernel would have told it.
func TestDiskErrors(t *testing.T) {
	d := &failing{File: open(t, 1<<20, false)}
	socket := serve(t, d)
	for err, want := range map[error]uint32{
		syscall.EIO: eIO, syscall.ENOSPC: eNoSpc, syscall.EDQUOT: eNoSpc, syscall.EROFS: ePerm, errors.New("anything"): eIO,
		fmt.Errorf("wrapped: %w", syscall.ENOMEM): eNoMem, ErrShutdown: eShutdown,
	} {
		d.err = err
		cl := dial(t, socket)
		cl.enter("disk")
		for _, cmd := range []uint16{cmdRead, cmdWrite, cmdFlush, cmdTrim, cmdWriteZeroes} {
			n, payload := uint32(4), ""
			switch cmd {
			case cmdWrite:
				payload = "abcd"
			case cmdFlush:
				n = 0
			}
			cl.request(0, cmd, 5, 0, n, payload)
			if _, errno, _ := cl.reply(0); errno != want {
				t.Errorf("%v, command %d: error %d, want %d", err, cmd, errno, want)
			}
		}
	}
}

// Many connections write and read at once, with every size and alignment, to
// ranges of their own; then the whole disk is looked at.
func TestConnections(t *testing.T) {
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprint("direct ", direct), func(t *testing.T) {
			const users, share = 4, 3<<20 + 1000
			d := open(t, users*share/blockfile.Align*blockfile.Align, direct)
			socket := serve(t, d)
			model := make([]byte, d.Size())
			seed := rand.Uint64()
			t.Log("seed", seed)
			var wg sync.WaitGroup
			for u := range users {
				mine := model[u*share : min((u+1)*share, len(model))]
				wg.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(u)))
					cl := dial(t, socket)
					cl.enter("disk")
					base := uint64(u * share)
					for i := range uint64(300) {
						n := 1 + r.IntN(1<<r.IntN(21))
						off := r.IntN(len(mine) - n)
						p := mine[off : off+n]
						var flags uint16
						if r.IntN(10) == 0 {
							flags = cmdFlagFUA
						}
						switch r.IntN(5) {
						case 0, 1:
							for j := range p {
								p[j] = byte(r.Uint32())
							}
							cl.request(flags, cmdWrite, i, base+uint64(off), uint32(n), string(p))
							n = 0
						case 2:
							clear(p)
							cl.request(flags|uint16(r.IntN(2)*cmdFlagNoHole), cmdWriteZeroes, i, base+uint64(off), uint32(n), "")
							n = 0
						case 3:
							cl.request(0, cmdFlush, i, 0, 0, "")
							n = 0
						case 4:
							cl.request(0, cmdRead, i, base+uint64(off), uint32(n), "")
						}
						cookie, errno, data := cl.reply(n)
						if cookie != i || errno != 0 || n > 0 && !bytes.Equal(data, p) {
							t.Errorf("user %d, request %d: cookie %d, error %d, data right: %v", u, i, cookie, errno, bytes.Equal(data, p))
							return
						}
					}
					cl.request(0, cmdDisc, 0, 0, 0, "")
				})
			}
			wg.Wait()
			got := make([]byte, d.Size())
			if err := d.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, model) {
				t.Error("the disk is not what was written")
			}
		})
	}
}

// A client that goes away in the middle, or says nonsense, leaves the server
// and its other clients alone.
func FuzzServer(f *testing.F) {
	var whole bytes.Buffer
	for _, v := range []any{uint32(3), uint64(magicOption), uint32(optExportName), uint32(4), []byte("disk"),
		uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(1), uint64(0), uint32(4), []byte("abcd"),
		uint32(magicRequest), uint16(0), uint16(cmdRead), uint64(2), uint64(0), uint32(4)} {
		binary.Write(&whole, binary.BigEndian, v)
	}
	f.Add(whole.Bytes())
	f.Add(whole.Bytes()[:whole.Len()-5])
	d := open(f, 1<<16, false)
	s := &Server{}
	s.Add(&Export{Name: "disk", Device: d})
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			if e, structured, err := s.negotiate(theirs); e != nil && err == nil {
				s.serve(theirs, e, structured)
			}
			theirs.Close()
		}()
		go io.Copy(io.Discard, ours)
		ours.Write(b)
		ours.Close()
		<-done
	})
}
