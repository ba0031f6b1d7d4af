package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// A Device is a disk that can be exported. Many goroutines call its methods at
// once, always with ranges inside its size. Offsets and lengths are in bytes.
// Requests that overlap and are in flight together may take effect in either
// order, but each as a whole.
type Device interface {
	// Size returns the length of the disk in bytes. It does not change.
	Size() int64
	// ReadAt fills p from offset off.
	ReadAt(p []byte, off int64) error
	// WriteAt writes p at offset off. With fua (force unit access) it returns
	// when p is on stable storage. It does not keep p.
	WriteAt(p []byte, off int64, fua bool) error
	// Zero makes n bytes from off read as zeroes. It may free the space, unless
	// keep is set.
	Zero(off, n int64, keep, fua bool) error
	// Trim says that n bytes from off are not needed any more.
	Trim(off, n int64, fua bool) error
	// Flush returns when stable storage has every write that completed before.
	Flush() error
}

// A QuickDevice is a Device that knows which requests it can serve without
// waiting for a disk. The connection's reader serves them itself.
type QuickDevice interface {
	// TryReadAt fills p if that needs no wait, and reports whether it did.
	TryReadAt(p []byte, off int64) bool
	// QuickWrites reports whether a WriteAt without fua does not wait.
	QuickWrites() bool
}

// An Export is a Device under a name.
type Export struct {
	Name        string // by which clients ask for it
	Description string // shown to clients that list exports
	Device      Device
	ReadOnly    bool
	// Sector is the size in bytes of a sector as clients are told it: 512, which 0
	// means too, or 4096. Requests may be of any size all the same. It must never
	// change: partition tables and file systems depend on it.
	Sector int
}

func (e *Export) sector() int { return max(e.Sector, 512) }

// leastBlock is the smallest request that clients are told to make. While sectors
// are of 512 bytes they may make any.
func (e *Export) leastBlock() uint32 {
	if e.sector() > 512 {
		return uint32(e.sector())
	}
	return 1
}

func (e *Export) flags() uint16 {
	f := uint16(flagHasFlags | flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes | flagSendDF | flagCanMultiConn)
	if e.ReadOnly {
		f |= flagReadOnly
	}
	return f
}

// negotiateTimeout bounds how long a client may take to choose an export.
const negotiateTimeout = 10 * time.Second

// A Server serves exports to NBD clients. The zero value has no exports.
type Server struct {
	// Log, if set, is called for each connection that ended with an error.
	Log func(client string, err error)

	// HangUp is how long Remove and Close wait for a client that does not take its
	// replies; 0: five seconds.
	HangUp time.Duration

	mu      sync.Mutex
	exports []*Export
	conns   map[*conn]struct{}
	closed  bool
	wg      sync.WaitGroup
}

// Add adds an export. It fails if there is one of that name.
func (s *Server) Add(e *Export) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.find(e.Name) != nil {
		return fmt.Errorf("nbd: export %q is served already", e.Name)
	}
	s.exports = append(s.exports, e)
	return nil
}

// Remove removes an export and closes its connections, each after the requests
// that it has received are answered.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	var removed []*conn
	s.exports = slices.DeleteFunc(s.exports, func(e *Export) bool {
		if e.Name != name {
			return false
		}
		for c := range s.conns {
			if c.export == e {
				removed = append(removed, c)
			}
		}
		return true
	})
	s.mu.Unlock()
	for _, c := range removed {
		c.hangUp(s.patience())
		<-c.done
	}
}

func (s *Server) patience() time.Duration {
	if s.HangUp > 0 {
		return s.HangUp
	}
	return 5 * time.Second
}

// find returns the export of that name, or nil. It is called with mu held.
func (s *Server) find(name string) *Export {
	i := slices.IndexFunc(s.exports, func(e *Export) bool { return e.Name == name })
	if i < 0 {
		return nil
	}
	return s.exports[i]
}

// Serve accepts connections until l is closed or ctx ends. It returns nil then,
// after all connections have ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer s.wg.Wait()
	defer context.AfterFunc(ctx, func() {
		l.Close()
		s.Close()
	})()
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("nbd: %w", err)
		}
		s.wg.Go(func() {
			e, structured, err := s.negotiate(nc)
			if err == nil && e != nil {
				err = s.serve(nc, e, structured)
			}
			nc.Close()
			if err != nil && s.Log != nil {
				s.Log(nc.RemoteAddr().String(), err)
			}
		})
	}
}

// ServeExport serves an export over a connection without negotiation, such as
// the kernel's, until the connection ends. It closes the connection.
func (s *Server) ServeExport(nc net.Conn, name string) error {
	s.mu.Lock()
	e := s.find(name)
	s.mu.Unlock()
	defer nc.Close()
	if e == nil {
		return fmt.Errorf("nbd: no export %q", name)
	}
	return s.serve(nc, e, false)
}

func (s *Server) serve(nc net.Conn, e *Export, structured bool) error {
	c := newConn(nc, e, structured)
	s.mu.Lock()
	if s.closed || s.find(e.Name) != e {
		s.mu.Unlock()
		return nil
	}
	if s.conns == nil {
		s.conns = map[*conn]struct{}{}
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		close(c.done)
	}()
	return c.run()
}

// Close closes all connections, each after the requests that it has received
// are answered.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.hangUp(s.patience())
	}
	for _, c := range conns {
		<-c.done
	}
}

// negotiate lets a client choose an export. It returns a nil export and no
// error if the client ended the negotiation.
func (s *Server) negotiate(nc net.Conn) (e *Export, structured bool, err error) {
	nc.SetDeadline(time.Now().Add(negotiateTimeout))
	defer nc.SetDeadline(time.Time{})
	defer func() {
		if err != nil {
			err = fmt.Errorf("negotiation: %w", err)
		}
	}()
	hello := binary.BigEndian.AppendUint64(nil, magicInit)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := nc.Write(hello); err != nil {
		return nil, false, err
	}
	var b [16]byte
	if _, err := io.ReadFull(nc, b[:4]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, false, nil // a client that only tests the connection
		}
		return nil, false, err
	}
	client := binary.BigEndian.Uint32(b[:])
	if client&^uint32(flagFixedNewstyle|flagNoZeroes) != 0 {
		return nil, false, fmt.Errorf("client flags %#x are not known", client)
	}
	for range maxOptions {
		if _, err := io.ReadFull(nc, b[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, false, nil
			}
			return nil, false, err
		}
		if m := binary.BigEndian.Uint64(b[:]); m != magicOption {
			return nil, false, fmt.Errorf("option with magic %#x", m)
		}
		opt, n := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
		if n > maxOption {
			// Skipped, because it may be an option of a later protocol.
			if _, err := io.CopyN(io.Discard, nc, int64(n)); err != nil {
				return nil, false, err
			}
			if err := optReply(nc, opt, repErrTooBig, nil); err != nil {
				return nil, false, err
			}
			continue
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(nc, data); err != nil {
			return nil, false, err
		}
		switch opt {
		case optExportName:
			e := s.byName(string(data))
			if e == nil {
				return nil, false, fmt.Errorf("client asks for export %q, which is not served", data)
			}
			out := binary.BigEndian.AppendUint64(nil, uint64(e.Device.Size()))
			out = binary.BigEndian.AppendUint16(out, e.flags()&^flagSendDF)
			if client&flagNoZeroes == 0 {
				out = append(out, make([]byte, 124)...)
			}
			_, err := nc.Write(out)
			return e, structured, err
		case optAbort:
			return nil, false, optReply(nc, opt, repAck, nil)
		case optList:
			err = s.list(nc, data)
		case optInfo, optGo:
			e, err = s.info(nc, opt, data, structured)
			if e != nil && err == nil && opt == optGo {
				return e, structured, nil
			}
		case optStructuredReply:
			if len(data) > 0 {
				err = optReply(nc, opt, repErrInvalid, []byte("this option takes no data"))
				break
			}
			structured = true
			err = optReply(nc, opt, repAck, nil)
		default:
			err = optReply(nc, opt, repErrUnsup, nil)
		}
		if err != nil {
			return nil, false, err
		}
	}
	return nil, false, fmt.Errorf("more than %d options", maxOptions)
}

// byName returns the export of that name, or nil. An empty name means the only
// export.
func (s *Server) byName(name string) *Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" && len(s.exports) == 1 {
		return s.exports[0]
	}
	return s.find(name)
}

func optReply(w io.Writer, opt, typ uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := w.Write(append(b, data...))
	return err
}

func (s *Server) list(w io.Writer, data []byte) error {
	if len(data) > 0 {
		return optReply(w, optList, repErrInvalid, []byte("this option takes no data"))
	}
	s.mu.Lock()
	exports := slices.Clone(s.exports)
	s.mu.Unlock()
	for _, e := range exports {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		b = append(append(b, e.Name...), e.Description...)
		if err := optReply(w, optList, repServer, b); err != nil {
			return err
		}
	}
	return optReply(w, optList, repAck, nil)
}

// info answers INFO and GO. It returns the export, or nil if there is none of
// that name.
func (s *Server) info(w io.Writer, opt uint32, data []byte, structured bool) (*Export, error) {
	name, ok := cutName(data)
	if !ok {
		return nil, optReply(w, opt, repErrInvalid, []byte("lengths inside the option do not add up"))
	}
	e := s.byName(name)
	if e == nil {
		return nil, optReply(w, opt, repErrUnknown, fmt.Appendf(nil, "export %q is not served", name))
	}
	flags := e.flags()
	if !structured {
		flags &^= flagSendDF
	}
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, uint64(e.Device.Size()))
	export = binary.BigEndian.AppendUint16(export, flags)
	block := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, v := range []uint32{e.leastBlock(), PreferredBlock, MaxRequest} {
		block = binary.BigEndian.AppendUint32(block, v)
	}
	infos := [][]byte{export, block, append(binary.BigEndian.AppendUint16(nil, infoName), e.Name...)}
	if e.Description != "" {
		infos = append(infos, append(binary.BigEndian.AppendUint16(nil, infoDescription), e.Description...))
	}
	for _, b := range infos {
		if err := optReply(w, opt, repInfo, b); err != nil {
			return nil, err
		}
	}
	return e, optReply(w, opt, repAck, nil)
}

// cutName parses the data of INFO and GO: the length of the name, the name, the
// number of information requests and the requests. The requests are ignored,
// because all information is sent anyway.
func cutName(b []byte) (string, bool) {
	if len(b) < 6 {
		return "", false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-6) {
		return "", false
	}
	name, rest := string(b[4:4+n]), b[4+n:]
	return name, len(rest) == 2+2*int(binary.BigEndian.Uint16(rest))
}
