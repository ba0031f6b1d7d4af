package netbuffer

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// plugMessage is what a little-endian kernel answers to RTM_GETQDISC, without
// the header of netlink.
var plugMessage = slices.Concat(
	// struct tcmsg
	[]byte{0x00, 0, 0, 0},          // family, padding
	[]byte{0x07, 0x00, 0x00, 0x00}, // ifindex 7
	[]byte{0x00, 0x00, 0x6c, 0x78}, // handle 786c:
	[]byte{0xff, 0xff, 0xff, 0xff}, // parent: root
	[]byte{0x02, 0x00, 0x00, 0x00}, // info: references
	// TCA_KIND "plug"
	[]byte{0x09, 0x00, 0x01, 0x00}, []byte("plug\x00"), []byte{0, 0, 0},
	// TCA_STATS2
	[]byte{0x30, 0x00, 0x07, 0x00},
	[]byte{0x14, 0x00, 0x01, 0x00},            // TCA_STATS_BASIC
	[]byte{0x00, 0x10, 0, 0, 0x01, 0, 0, 0},   // bytes: 1<<32 + 4096
	[]byte{0x20, 0, 0, 0}, []byte{0, 0, 0, 0}, // packets: 32, padding
	[]byte{0x18, 0x00, 0x03, 0x00}, // TCA_STATS_QUEUE
	[]byte{0x03, 0x00, 0x00, 0x00}, // qlen 3
	[]byte{0x8c, 0x0a, 0x00, 0x00}, // backlog 2700
	[]byte{0x05, 0x00, 0x00, 0x00}, // drops 5
	[]byte{0x00, 0x00, 0x00, 0x00}, // requeues
	[]byte{0x05, 0x00, 0x00, 0x00}, // overlimits
)

func littleEndian(t testing.TB) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("rtnetlink uses the host's byte order; the golden bytes are little-endian")
	}
}

func TestParsePlug(t *testing.T) {
	littleEndian(t)
	want := QueueState{Passed: 1<<32 + 4096, Packets: 3, Bytes: 2700, Drops: 5}
	if got, ok := parsePlug(plugMessage); !ok || got != want {
		t.Errorf("got %+v, %v, want %+v", got, ok, want)
	}
	other := bytes.Replace(plugMessage, []byte("plug"), []byte("fifo"), 1)
	if got, ok := parsePlug(other); ok {
		t.Errorf("another kind of qdisc: got %+v", got)
	}
}

// TestParsePlugCut: a message that ends early is refused.
func TestParsePlugCut(t *testing.T) {
	littleEndian(t)
	for n := range len(plugMessage) {
		if got, ok := parsePlug(plugMessage[:n]); ok {
			t.Errorf("%d of %d bytes: got %+v", n, len(plugMessage), got)
		}
	}
}

func TestPlugOptions(t *testing.T) {
	littleEndian(t)
	for _, tt := range []struct {
		action Action
		limit  uint32
		want   []byte
	}{
		{Hold, 0, []byte{0, 0, 0, 0, 0, 0, 0, 0}},
		{Pass, 0, []byte{2, 0, 0, 0, 0, 0, 0, 0}},
		{plugLimit, 312_500_000, []byte{3, 0, 0, 0, 0x20, 0x5f, 0xa0, 0x12}},
	} {
		if got := plugOptions(tt.action, tt.limit); !bytes.Equal(got, tt.want) {
			t.Errorf("%v: got % x, want % x", tt.action, got, tt.want)
		}
	}
}

// FuzzParsePlug: whatever arrives, parsePlug returns, and what it takes for a
// plug names one and has a queue's statistics.
func FuzzParsePlug(f *testing.F) {
	f.Add(plugMessage)
	f.Add(plugMessage[:len(plugMessage)-1])
	f.Add(plugMessage[:32]) // without statistics
	f.Fuzz(func(t *testing.T, m []byte) {
		st, ok := parsePlug(m)
		if ok && (!bytes.Contains(m, []byte("plug")) || len(m) < tcmsgLen+3*rtattrLen+len("plug")+12) {
			t.Errorf("% x: taken for a plug with %+v", m, st)
		}
	})
}
