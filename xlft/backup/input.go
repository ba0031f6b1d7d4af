package backup

import (
	"errors"

	"xlft/savestream/lines"
	"xlft/xlft/wire"
)

// An input is a data connection, and undoes how its stream is coded.
type input struct {
	*wire.Conn
	lines *lines.Decoder // nil: not agreed
	buf   []byte
}

func newInput(c *wire.Conn, h wire.Hello) *input {
	in := &input{Conn: c}
	if h.PageCache > 0 {
		in.lines = lines.NewDecoder(h.PageCache)
	}
	return in
}

var errNotAgreed = errors.New("a frame is coded in a way that was not agreed")

// stream returns a DATA frame's part of the stream, valid until the next call.
func (in *input) stream(f wire.Frame) (_ []byte, err error) {
	switch {
	case !f.Coded && in.lines == nil:
		return f.Body, nil
	case !f.Coded || in.lines == nil:
		return nil, errNotAgreed
	}
	if in.buf == nil {
		in.buf = make([]byte, 0, wire.LinesBody)
	}
	in.buf, err = in.lines.Decode(in.buf[:0], f.Body, wire.LinesBody)
	return in.buf, err
}

// take hands what stream returned last to the caller. The next part is read into next,
// which may be nil.
func (in *input) take(next []byte) {
	if in.lines != nil {
		in.buf = next
		return
	}
	in.TakeBody(next)
}

// memory is how many bytes the pages that are kept take.
func (in *input) memory() int64 {
	if in.lines == nil {
		return 0
	}
	return in.lines.Memory()
}
