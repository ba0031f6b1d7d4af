package wire_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"xlft/xlft/wire"
)

// pipe is a connection whose two ends are buffers.
type pipe struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (p *pipe) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *pipe) Write(b []byte) (int, error) { return p.out.Write(b) }

func reader(b []byte) *wire.Conn { return wire.NewConn(&pipe{in: bytes.NewReader(b)}) }

func hexOf(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// The bytes are the protocol.
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name  string
		bytes string
		typ   wire.Type
		epoch uint64
		body  []byte
	}{
		{"heartbeat", "05 00 0000 00000000 0000000000000000", wire.TypeHeartbeat, 0, nil},
		{"ack of epoch 258", "06 00 0000 00000000 0201000000000000", wire.TypeAck, 258, nil},
		{"data", "15 00 0000 03000000 0100000000000000 616263", wire.TypeData, 1, []byte("abc")},
		{"epoch end: 5 bytes, CRC 04030201", "16 00 0000 10000000 0700000000000000 0500000000000000 01020304 00000000", wire.TypeEpochEnd, 7,
			wire.EpochEnd{Length: 5, CRC: 0x04030201}.Append(nil)},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := new(pipe)
			if err := wire.NewConn(p).WriteFrame(c.typ, c.epoch, c.body); err != nil {
				t.Fatal(err)
			}
			if got, want := p.out.Bytes(), hexOf(c.bytes); !bytes.Equal(got, want) {
				t.Errorf("wrote % x, want % x", got, want)
			}
			f, err := reader(hexOf(c.bytes)).ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if f.Type != c.typ || f.Epoch != c.epoch || !bytes.Equal(f.Body, c.body) {
				t.Errorf("read %+v", f)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, bytes string
		want        error
		text        string
	}{
		{"unknown type", "63 00 0000 00000000 0000000000000000", wire.ErrType, "wire: type 99 frame at offset 0: unknown frame type"},
		{"flags", "05 01 0000 00000000 0000000000000000", wire.ErrReserved, ""},
		{"reserved", "05 00 0100 00000000 0000000000000000", wire.ErrReserved, ""},
		{"heartbeat with a body", "05 00 0000 01000000 0000000000000000 00", wire.ErrTooLong, "wire: HEARTBEAT frame at offset 0: body longer than the protocol allows"},
		{"hello of 1 MiB", "01 00 0000 00001000 0000000000000000", wire.ErrTooLong, ""},
		{"data of 4 GiB", "15 00 0000 ffffffff 0000000000000000", wire.ErrTooLong, ""},
		{"compressed nonsense", "15 01 0000 04000000 0000000000000000 ffffffff", wire.ErrPacked, ""},
		{"compressed to over 256 KiB", "15 01 0000 04000000 0000000000000000 808080 01", wire.ErrTooLong, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := reader(hexOf(c.bytes)).ReadFrame()
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if c.text != "" && err.Error() != c.text {
				t.Errorf("error %q, want %q", err, c.text)
			}
		})
	}
}

func TestCutAtEveryByte(t *testing.T) {
	p := new(pipe)
	c := wire.NewConn(p)
	if _, err := c.WriteData(3, bytes.Repeat([]byte("xlft"), 100), false, true); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteFrame(wire.TypeAck, 3, nil); err != nil {
		t.Fatal(err)
	}
	full := p.out.Bytes()
	whole := map[int]bool{0: true, len(full) - 16: true}
	for n := range len(full) {
		r := reader(full[:n])
		var err error
		for err == nil {
			_, err = r.ReadFrame()
		}
		if want := map[bool]error{true: io.EOF, false: io.ErrUnexpectedEOF}[whole[n]]; !errors.Is(err, want) {
			t.Errorf("cut at %d: %v, want %v", n, err, want)
		}
	}
}

func TestDataCompressed(t *testing.T) {
	for _, size := range []int{0, 1, 4096, wire.DataBody} {
		for _, pack := range []bool{false, true} {
			body := bytes.Repeat([]byte{7}, size)
			p := new(pipe)
			if _, err := wire.NewConn(p).WriteData(1, body, false, pack); err != nil {
				t.Fatal(err)
			}
			if pack && size >= 4096 && p.out.Len() > size/4 {
				t.Errorf("%d equal bytes became %d", size, p.out.Len())
			}
			f, err := reader(p.out.Bytes()).ReadFrame()
			if err != nil || !bytes.Equal(f.Body, body) {
				t.Errorf("%d bytes, packed %v: %d came back, %v", size, pack, len(f.Body), err)
			}
		}
	}
}

// A peer that claims a large body and sends nothing must not get the memory.
func TestClaimCostsNothing(t *testing.T) {
	r := reader(hexOf("15 00 0000 00004000 0000000000000000"))
	cost := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			reader(hexOf("15 00 0000 00004000 0000000000000000")).ReadFrame()
		}
	})
	if _, err := r.ReadFrame(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if got := cost.AllocedBytesPerOp(); got > 128<<10 {
		t.Errorf("a claim of 4 MiB cost %d bytes", got)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(hexOf("05 00 0000 00000000 0000000000000000"))
	f.Add(hexOf("15 01 0000 04000000 0000000000000000 808080 01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := reader(b)
		for {
			f, err := r.ReadFrame()
			if err != nil {
				return
			}
			if len(f.Body) > wire.MaxBody {
				t.Fatal("body over the limit")
			}
			f.EpochEnd()
			f.Refusal()
		}
	})
}

func identity(t testing.TB, name string) *wire.Identity {
	t.Helper()
	dir := t.TempDir()
	fp, err := wire.GenerateIdentity(dir, name, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.GenerateIdentity(dir, name, false); !errors.Is(err, wire.ErrExists) {
		t.Errorf("a second identity: %v, want %v", err, wire.ErrExists)
	}
	id, err := wire.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id.Fingerprint != fp {
		t.Errorf("loaded %v, made %v", id.Fingerprint, fp)
	}
	back, err := wire.ParseFingerprint(strings.ToUpper(fp.String()))
	if err != nil || back != fp {
		t.Errorf("parsed %v, %v", back, err)
	}
	return id
}

// meet lets two peers greet over TLS, each knowing the fingerprint it is given.
func meet(t *testing.T, client, server *wire.Identity, clientKnows, serverKnows wire.Fingerprint) (clientErr, serverErr error) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := wire.NewListener(inner, server.TLSConfig(func(f wire.Fingerprint) bool { return f == serverKnows }))
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		_, err = wire.Welcome(wire.NewConn(c), "server", 0, 5*time.Second)
		done <- err
	}()
	c, err := client.Dialer([]string{l.Addr().String()}, clientKnows)(t.Context())
	if err == nil {
		defer c.Close()
		_, err = wire.Greet(wire.NewConn(c), wire.KindQuery, "", "client", 5*time.Second)
	}
	return err, <-done
}

func TestPinning(t *testing.T) {
	a, b, stranger := identity(t, "a"), identity(t, "b"), identity(t, "a")
	if c, s := meet(t, a, b, b.Fingerprint, a.Fingerprint); c != nil || s != nil {
		t.Errorf("friends: %v, %v", c, s)
	}
	var unknown *wire.UnknownPeerError
	// Same name, other key: the fingerprint is the whole trust.
	if c, s := meet(t, stranger, b, b.Fingerprint, a.Fingerprint); c == nil || !errors.As(s, &unknown) || unknown.Fingerprint != stranger.Fingerprint {
		t.Errorf("a stranger calls: %v, %v", c, s)
	}
	if c, _ := meet(t, a, stranger, b.Fingerprint, a.Fingerprint); !errors.As(c, &unknown) {
		t.Errorf("a stranger answers: %v", c)
	}
}

func TestVersionRefused(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		c := wire.NewConn(theirs)
		c.WriteJSON(wire.TypeHello, 0, wire.Hello{Magic: "xlft", VersionMin: 7, VersionMax: 9, Software: "xlft 9", Kind: wire.KindQuery})
		var r *wire.Refusal
		if err := c.Expect(wire.TypeHello, nil); !errors.As(err, &r) || r.Code != wire.CodeVersion {
			t.Errorf("the peer heard %v", err)
		}
		theirs.Close()
	}()
	_, err := wire.Welcome(wire.NewConn(ours), "xlft 1", 0, time.Second)
	if want := `welcome peer: peer ("xlft 9") speaks protocol 7 to 9, this host 3 to 3: update the older one`; err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

// A peer that says nothing costs a greeting's timeout and no more.
func TestSilentPeer(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	begun := time.Now()
	if _, err := wire.Welcome(wire.NewConn(ours), "x", 0, 50*time.Millisecond); err == nil {
		t.Error("a silent peer was welcome")
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A body that is coded by what changed is told apart, compressed or not, and may be longer.
func TestDataCoded(t *testing.T) {
	for _, pack := range []bool{false, true} {
		body := bytes.Repeat([]byte{7}, wire.CodedBody)
		p := new(pipe)
		n, err := wire.NewConn(p).WriteData(1, body, true, pack)
		if err != nil || pack == (n == len(body)) {
			t.Fatalf("packed %v: %d bytes, %v", pack, n, err)
		}
		f, err := reader(p.out.Bytes()).ReadFrame()
		if err != nil || !f.Coded || !bytes.Equal(f.Body, body) {
			t.Errorf("packed %v: coded %v, %d bytes, %v", pack, f.Coded, len(f.Body), err)
		}
	}
	if _, err := wire.NewConn(new(pipe)).WriteData(1, make([]byte, wire.CodedBody), false, false); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("not coded: %v", err)
	}
	// More than a coded body may have, compressed to little.
	p := new(pipe)
	if _, err := wire.NewConn(p).WriteData(1, make([]byte, wire.CodedBody), true, true); err != nil {
		t.Fatal(err)
	}
	b := p.out.Bytes()
	b[1] = 1 // as if it were not coded
	if _, err := reader(b).ReadFrame(); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("too long for a body that is not coded: %v", err)
	}
}

// How many pages both sides keep is the smaller number.
func TestGreetPageCache(t *testing.T) {
	for _, c := range []struct{ primary, backup, want int64 }{{100, 40, 40}, {40, 100, 40}, {0, 100, 0}, {100, 0, 0}, {100, -1, 0}} {
		theirs, ours := net.Pipe()
		go func() {
			h, err := wire.Welcome(wire.NewConn(theirs), "backup", c.backup, time.Second)
			if err != nil || h.PageCache != c.want {
				t.Errorf("the backup keeps %d, want %d; %v", h.PageCache, c.want, err)
			}
		}()
		dial := func(context.Context) (net.Conn, error) { return ours, nil }
		_, h, err := wire.OpenData(t.Context(), dial, strings.Repeat("0", 32), "primary", c.primary)
		if err != nil || h.PageCache != c.want {
			t.Errorf("the primary keeps %d, want %d; %v", h.PageCache, c.want, err)
		}
		ours.Close()
	}
}

func BenchmarkReadData(b *testing.B) {
	p := new(pipe)
	c := wire.NewConn(p)
	body := make([]byte, wire.DataBody)
	for range 16 {
		c.WriteData(1, body, false, false)
	}
	b.SetBytes(16 * wire.DataBody)
	b.ReportAllocs()
	in := bytes.NewReader(p.out.Bytes())
	r := wire.NewConn(&pipe{in: in})
	for b.Loop() {
		in.Reset(p.out.Bytes())
		for range 16 {
			if _, err := r.ReadFrame(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// What one side writes the other reads, both ways at once, in pieces of every size, and the end of one is the end of
// the other.
func TestTLSConn(t *testing.T) {
	a, b := identity(t, "a"), identity(t, "b")
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := wire.NewListener(inner, b.TLSConfig(func(f wire.Fingerprint) bool { return f == a.Fingerprint }))
	echoed := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			c.Close()
		}
		echoed <- err
	}()
	c, err := a.Dialer([]string{inner.Addr().String()}, b.Fingerprint)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	sizes := []int{1, 100, 16 << 10, 16<<10 + 1, 256 << 10, 1<<20 + 7, 3}
	go func() {
		for i, n := range sizes {
			c.Write(bytes.Repeat([]byte{byte(i + 1)}, n))
		}
	}()
	for i, n := range sizes {
		got := make([]byte, n)
		if _, err := io.ReadFull(c, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, bytes.Repeat([]byte{byte(i + 1)}, n)) {
			t.Errorf("piece %d of %d bytes came back as something else", i, n)
		}
	}
	c.Close()
	if err := <-echoed; err != nil {
		t.Errorf("the other side: %v", err)
	}
}
