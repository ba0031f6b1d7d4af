// Package probe is the protocol between the lab's guest and a test: the line protocol of the guest's TCP service, the
// checksum it keeps, and the numbered frames it sends on request. The guest's side of it is tests/lab/workload.
package probe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// Port is the guest's TCP port; it sends UDP probes from and to it.
const Port = 7000

// Fold returns the guest's checksum after the client sent n. The order of the numbers matters, so a number lost,
// doubled or out of place shows.
func Fold(sum, n uint64) uint64 {
	const prime = 1099511628211 // FNV's
	return (sum ^ n) * prime
}

// A Proto names the kind of a probe frame.
type Proto uint8

// The kinds of frames: what a gate that looks at IP alone would let through.
const (
	IPv4 Proto = iota + 1 // UDP over IPv4
	IPv6                  // UDP over IPv6
	ARP                   // an ARP request
	VLAN                  // UDP over IPv4 in an 802.1Q frame of VLAN 7
)

// Protos are all kinds, in the order in which the guest sends them.
var Protos = []Proto{IPv4, IPv6, ARP, VLAN}

func (p Proto) String() string {
	switch p {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	case ARP:
		return "ARP"
	case VLAN:
		return "VLAN"
	}
	return fmt.Sprintf("Proto(%d)", uint8(p))
}

// A Probe is one numbered frame.
type Probe struct {
	Proto Proto
	Seq   uint64 // counts probes of all kinds together, from 1
	Count uint64 // the service's counter when the probe was made
}

// Ends says who sends probes to whom.
type Ends struct {
	SrcMAC, DstMAC net.HardwareAddr
	Src4, Dst4     netip.Addr
	Src6, Dst6     netip.Addr
}

const (
	ethIPv4 = 0x0800
	ethARP  = 0x0806
	ethVLAN = 0x8100
	ethIPv6 = 0x86dd

	vlanID  = 7
	protUDP = 17
	minimum = 60 // shortest Ethernet frame without its checksum
)

var magic = []byte("xlftprob")

// payload is the magic, the kind, the sequence number and the counter. An ARP frame has room for 18 bytes after its
// body, so the last two numbers are cut to 48 and 32 bits there: see arpTail.
const payload = 8 + 1 + 8 + 8

// Frame returns the Ethernet frame of p.
func (e Ends) Frame(p Probe) []byte {
	body := make([]byte, 0, payload)
	body = append(body, magic...)
	body = append(body, byte(p.Proto))
	body = binary.BigEndian.AppendUint64(body, p.Seq)
	body = binary.BigEndian.AppendUint64(body, p.Count)

	f := make([]byte, 0, 128)
	f = append(f, e.DstMAC...)
	f = append(f, e.SrcMAC...)
	switch p.Proto {
	case VLAN:
		f = binary.BigEndian.AppendUint16(f, ethVLAN)
		f = binary.BigEndian.AppendUint16(f, vlanID)
		fallthrough
	case IPv4:
		f = binary.BigEndian.AppendUint16(f, ethIPv4)
		f = append(f, ipv4(e.Src4, e.Dst4, udp(e.Src4, e.Dst4, body))...)
	case IPv6:
		f = binary.BigEndian.AppendUint16(f, ethIPv6)
		f = append(f, ipv6(e.Src6, e.Dst6, udp(e.Src6, e.Dst6, body))...)
	case ARP:
		f = binary.BigEndian.AppendUint16(f, ethARP)
		f = append(f, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, lengths, request
		f = append(f, e.SrcMAC...)
		f = append(f, e.Src4.AsSlice()...)
		f = append(f, make([]byte, 6)...)
		f = append(f, e.Dst4.AsSlice()...)
		f = append(f, arpTail(p)...)
	}
	for len(f) < minimum {
		f = append(f, 0)
	}
	return f
}

// arpTail fits a probe in the padding of an ARP frame: the magic, 48 bits of sequence number, 32 of counter.
func arpTail(p Probe) []byte {
	b := append([]byte{}, magic...)
	b = append(b, binary.BigEndian.AppendUint64(nil, p.Seq)[2:]...)
	return append(b, binary.BigEndian.AppendUint64(nil, p.Count)[4:]...)
}

// Parse returns the probe in an Ethernet frame, and false if there is none.
func Parse(frame []byte) (Probe, bool) {
	i := bytes.Index(frame, magic)
	if i < 0 || len(frame) < 14 {
		return Probe{}, false
	}
	rest := frame[i+len(magic):]
	if binary.BigEndian.Uint16(frame[12:]) == ethARP {
		if len(rest) < 10 {
			return Probe{}, false
		}
		seq := binary.BigEndian.Uint64(append([]byte{0, 0}, rest[:6]...))
		return Probe{ARP, seq, uint64(binary.BigEndian.Uint32(rest[6:]))}, true
	}
	if len(rest) < payload-len(magic) {
		return Probe{}, false
	}
	return Probe{Proto(rest[0]), binary.BigEndian.Uint64(rest[1:]), binary.BigEndian.Uint64(rest[9:])}, true
}

func ipv4(src, dst netip.Addr, body []byte) []byte {
	h := make([]byte, 20, 20+len(body))
	h[0] = 0x45 // version 4, five words
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
	h[8] = 64 // hops
	h[9] = protUDP
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], ^ones(0, h))
	return append(h, body...)
}

func ipv6(src, dst netip.Addr, body []byte) []byte {
	h := make([]byte, 8, 40+len(body))
	h[0] = 0x60 // version 6
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	h[6] = protUDP
	h[7] = 64 // hops
	h = append(h, src.AsSlice()...)
	h = append(h, dst.AsSlice()...)
	return append(h, body...)
}

func udp(src, dst netip.Addr, body []byte) []byte {
	d := make([]byte, 8, 8+len(body))
	binary.BigEndian.PutUint16(d[0:], Port)
	binary.BigEndian.PutUint16(d[2:], Port)
	binary.BigEndian.PutUint16(d[4:], uint16(8+len(body)))
	d = append(d, body...)

	sum := ones(0, src.AsSlice())
	sum = ones(sum, dst.AsSlice())
	sum = ones(sum, []byte{0, protUDP, byte(len(d) >> 8), byte(len(d))})
	check := ^ones(sum, d)
	if check == 0 {
		check = 0xffff // 0 means "none"
	}
	binary.BigEndian.PutUint16(d[6:], check)
	return d
}

// ones is the Internet's one's complement sum of b, begun with sum.
func ones(sum uint16, b []byte) uint16 {
	s := uint32(sum)
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
