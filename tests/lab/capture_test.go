//go:build linux

package lab

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestTagged(t *testing.T) {
	frame := append(bytes.Repeat([]byte{0xaa}, 12), 0x08, 0x00, 1, 2)
	aux := make([]byte, 20)
	binary.NativeEndian.PutUint16(aux[16:], 7)      // vlan_tci
	binary.NativeEndian.PutUint16(aux[18:], 0x88a8) // vlan_tpid
	for _, c := range []struct {
		name   string
		status uint32
		want   []byte
	}{
		{"no tag", 0, frame},
		{"802.1Q", 1 << 4, append(append([]byte{}, frame[:12]...), 0x81, 0x00, 0, 7, 0x08, 0x00, 1, 2)},
		{"its own type", 1<<4 | 1<<6, append(append([]byte{}, frame[:12]...), 0x88, 0xa8, 0, 7, 0x08, 0x00, 1, 2)},
	} {
		binary.NativeEndian.PutUint32(aux, c.status)
		if got := tagged(frame, aux); !bytes.Equal(got, c.want) {
			t.Errorf("%s: got % x, want % x", c.name, got, c.want)
		}
	}
	if got := tagged(frame, aux[:10]); !bytes.Equal(got, frame) {
		t.Errorf("short control message: got % x", got)
	}
}
