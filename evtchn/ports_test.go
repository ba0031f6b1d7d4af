package evtchn

import (
	"encoding/binary"
	"testing"
)

// The layout is that of struct evtchn_status in public/event_channel.h.
func TestStatusLayout(t *testing.T) {
	b := make([]byte, statusLen)
	for i := range b {
		b[i] = 0xff
	}
	encodeStatus(b, 7, 300)
	if d, p := binary.NativeEndian.Uint16(b), binary.NativeEndian.Uint32(b[4:]); d != 7 || p != 300 {
		t.Errorf("asks for port %d of domain %d", p, d)
	}
	for i, c := range b[8:] {
		if c != 0 {
			t.Errorf("byte %d is %#x", 8+i, c)
		}
	}
	for _, c := range []struct {
		kind  Kind
		union []uint32
		want  State
	}{
		{Closed, nil, State{}},
		{Unbound, []uint32{2}, State{Domain: 2}},
		{Interdomain, []uint32{0xbeef0000 | 5, 12}, State{Domain: 5, RemotePort: 12}}, // what pads the domain may be anything
		{PIRQ, []uint32{9}, State{IRQ: 9}},
		{VIRQ, []uint32{13}, State{IRQ: 13}},
		{IPI, []uint32{4}, State{}},
		{Kind(9), []uint32{4, 5}, State{}},
	} {
		encodeStatus(b, 7, 300)
		binary.NativeEndian.PutUint32(b[8:], uint32(c.kind))
		binary.NativeEndian.PutUint32(b[12:], 3)
		for i, v := range c.union {
			binary.NativeEndian.PutUint32(b[16+4*i:], v)
		}
		c.want.Port, c.want.Kind, c.want.VCPU = 300, c.kind, 3
		if got := decodeStatus(b); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.kind, got, c.want)
		}
	}
}
