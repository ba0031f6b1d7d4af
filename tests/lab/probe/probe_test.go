package probe_test

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"

	"xlft/tests/lab/probe"
)

var ends = probe.Ends{
	SrcMAC: net.HardwareAddr{0x00, 0x16, 0x3e, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	Src4: netip.MustParseAddr("10.20.0.10"), Dst4: netip.MustParseAddr("10.20.0.1"),
	Src6: netip.MustParseAddr("fd20::10"), Dst6: netip.MustParseAddr("fd20::1"),
}

func TestRoundTrip(t *testing.T) {
	for _, proto := range probe.Protos {
		want := probe.Probe{Proto: proto, Seq: 0x010203040506, Count: 0xfffefdfc}
		frame := ends.Frame(want)
		if len(frame) < 60 {
			t.Errorf("%v: frame of %d bytes, want 60 or more", proto, len(frame))
		}
		got, ok := probe.Parse(frame)
		if !ok || got != want {
			t.Errorf("%v: got %+v, %v, want %+v", proto, got, ok, want)
		}
		for n := range len(frame) {
			probe.Parse(frame[:n]) // must not panic
		}
	}
}

func TestARPFrame(t *testing.T) {
	got := ends.Frame(probe.Probe{Proto: probe.ARP, Seq: 1, Count: 2})
	want, err := hex.DecodeString(strings.Join([]string{
		"020000000001" + "00163e000001" + "0806", // to, from, ethertype
		"0001" + "0800" + "06" + "04" + "0001",   // Ethernet, IPv4, their lengths, request
		"00163e000001" + "0a14000a",              // sender
		"000000000000" + "0a140001",              // target
		"786c667470726f62",                       // "xlftprob"
		"000000000001" + "00000002",              // sequence number, counter
	}, ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func TestNoProbe(t *testing.T) {
	if p, ok := probe.Parse(make([]byte, 64)); ok {
		t.Errorf("a frame of zeros is %+v", p)
	}
}

func TestFoldTellsOrder(t *testing.T) {
	if probe.Fold(probe.Fold(0, 1), 2) == probe.Fold(probe.Fold(0, 2), 1) {
		t.Error("1, 2 and 2, 1 have one checksum")
	}
}
