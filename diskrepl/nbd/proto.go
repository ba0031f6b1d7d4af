package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

// Magic numbers of proto.md.
const (
	magicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, of both sides.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options of a client.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
)

// Answers to options.
const (
	repAck        = 1
	repServer     = 2
	repInfo       = 3
	repErrUnsup   = 1<<31 | 1
	repErrInvalid = 1<<31 | 3
	repErrUnknown = 1<<31 | 6
	repErrTooBig  = 1<<31 | 9
)

// Information types of an INFO reply.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags of an export.
const (
	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagCanMultiConn    = 1 << 8
)

// Requests.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
)

// Flags of a request.
const (
	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
)

// Structured replies.
const (
	chunkFlagDone   = 1 << 0
	chunkNone       = 0
	chunkOffsetData = 1
	chunkError      = 1<<15 | 1
)

const (
	// MaxRequest is the length in bytes of the longest READ or WRITE: the limit
	// that proto.md lets clients assume.
	MaxRequest = 32 << 20
	// PreferredBlock is the alignment in bytes at which requests are fastest.
	PreferredBlock = 4096

	maxOption    = 4096 + 64 // bytes of the longest option: a name has at most 4096
	maxOptions   = 256       // of one client, at most
	requestSize  = 28
	simpleSize   = 16
	chunkSize    = 20
	maxErrorText = 200
)

// A request is the header of a request.
type request struct {
	flags  uint16
	cmd    uint16
	cookie uint64
	off    uint64
	n      uint32
}

// parseRequest parses a header of requestSize bytes.
func parseRequest(b []byte) (request, error) {
	if m := binary.BigEndian.Uint32(b); m != magicRequest {
		return request{}, fmt.Errorf("request with magic %#08x, want %#08x", m, magicRequest)
	}
	return request{
		flags: binary.BigEndian.Uint16(b[4:]), cmd: binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]), off: binary.BigEndian.Uint64(b[16:]), n: binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// putSimple encodes the header of a simple reply into b.
func putSimple(b []byte, errno uint32, cookie uint64) {
	binary.BigEndian.PutUint32(b, magicSimple)
	binary.BigEndian.PutUint32(b[4:], errno)
	binary.BigEndian.PutUint64(b[8:], cookie)
}

// putChunk encodes the header of a structured reply into b.
func putChunk(b []byte, flags, typ uint16, cookie uint64, n uint32) {
	binary.BigEndian.PutUint32(b, magicStructured)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], typ)
	binary.BigEndian.PutUint64(b[8:], cookie)
	binary.BigEndian.PutUint32(b[16:], n)
}

// Error numbers of the protocol.
const (
	ePerm     = 1
	eIO       = 5
	eNoMem    = 12
	eInval    = 22
	eNoSpc    = 28
	eOverflow = 75
	eNotSup   = 95
	eShutdown = 108
)

// ErrShutdown is returned by a Device for a request that is to fail with
// NBD_ESHUTDOWN.
var ErrShutdown = errors.New("the server is shutting down")

// errno returns the number on the wire of an error, so that a guest sees the
// error of the disk itself.
func errno(err error) uint32 {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrShutdown):
		return eShutdown
	case !errors.As(err, &e):
		return eIO
	}
	switch e {
	case syscall.EPERM, syscall.EROFS:
		return ePerm
	case syscall.ENOMEM:
		return eNoMem
	case syscall.EINVAL:
		return eInval
	case syscall.ENOSPC, syscall.EFBIG, syscall.EDQUOT:
		return eNoSpc
	case syscall.EOPNOTSUPP:
		return eNotSup
	}
	return eIO
}
