// Package announce tells a network that an Ethernet address has moved to this
// host.
//
// The one rule a caller must know: the frames leave through the bridge, so that
// switches outside learn the new way. The domain's own gratuitous ARP, which it
// sends when it resumes, tells its neighbours.
package announce

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// etherTypeRARP is ETH_P_RARP (linux/if_ether.h).
const etherTypeRARP = 0x8035

// Frame returns a reverse-ARP request (RFC 903) from mac to everybody: 60
// bytes, as other hypervisors send after a migration.
func Frame(mac net.HardwareAddr) []byte {
	b := make([]byte, 60)
	copy(b[0:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(b[6:], mac)
	binary.BigEndian.PutUint16(b[12:], etherTypeRARP)
	binary.BigEndian.PutUint16(b[14:], 1)      // hardware: Ethernet
	binary.BigEndian.PutUint16(b[16:], 0x0800) // protocol: IPv4
	b[18], b[19] = 6, 4
	binary.BigEndian.PutUint16(b[20:], 3) // request reverse
	copy(b[22:], mac)                     // sender
	copy(b[32:], mac)                     // target
	return b
}

// Send sends Frame(mac) on the interface.
func Send(ifname string, mac net.HardwareAddr) error {
	if len(mac) != 6 {
		return fmt.Errorf("announce %v: no Ethernet address", mac)
	}
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return fmt.Errorf("announce %v: %w", mac, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announce %v: %w", mac, err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	if err := unix.Sendto(fd, Frame(mac), 0, to); err != nil {
		return fmt.Errorf("announce %v on %s: %w", mac, ifname, err)
	}
	return nil
}
