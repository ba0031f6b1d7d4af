package main

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"xlft/tests/lab/probe"
)

var errNoPeer = errors.New("chatter: no peer on the kernel command line")

// A chatter sends numbered frames of every kind past the guest's own network stack.
type chatter struct {
	count func() uint64 // the service's counter

	fd   int
	ends probe.Ends

	setting sync.Mutex    // one change of the rate at a time; guards stop
	stop    chan struct{} // ends the present goroutine; nil if there is none
	over    sync.WaitGroup

	mu      sync.Mutex
	seq     uint64 // of the last frame that the kernel took
	changes string // of the carrier, so far
	since   uint64 // first frame after the newest of them
}

func (c *chatter) open(set map[string]string) error {
	c.fd = -1
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return fmt.Errorf("chatter: %w", err)
	}
	peer, err := net.ParseMAC(set["peermac"])
	if err != nil {
		return fmt.Errorf("%w: %w", errNoPeer, err)
	}
	c.ends = probe.Ends{SrcMAC: link.HardwareAddr, DstMAC: peer}
	for key, addr := range map[string]*netip.Addr{"ip4": &c.ends.Src4, "ip6": &c.ends.Src6, "peer4": &c.ends.Dst4, "peer6": &c.ends.Dst6} {
		if *addr, err = netip.ParseAddr(set[key]); err != nil {
			return fmt.Errorf("%w: lab.%s: %w", errNoPeer, key, err)
		}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return fmt.Errorf("chatter: packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
		return fmt.Errorf("chatter: bind to eth0: %w", err)
	}
	c.fd = fd
	return nil
}

func (c *chatter) set(rate int) error {
	if rate < 0 || rate > maxRate {
		return fmt.Errorf("chatter: %d a second is out of range", rate)
	}
	c.setting.Lock()
	defer c.setting.Unlock()
	if c.stop != nil {
		close(c.stop)
		c.over.Wait()
		c.stop = nil
	}
	if rate == 0 {
		return nil
	}
	if c.fd < 0 {
		return errNoPeer
	}
	c.stop = make(chan struct{})
	c.over.Go(func() { pace(rate, c.stop, func(uint64) { c.send() }) })
	return nil
}

// sent returns the number of the last frame, and of the first since the device last got its carrier.
func (c *chatter) sent() (last, since uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seq, c.since
}

// send sends one frame of each kind, unless the device has no carrier: while it connects to a new host, the kernel
// takes frames and throws them away.
func (c *chatter) send() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if up, err := os.ReadFile("/sys/class/net/eth0/carrier"); err != nil || !bytes.HasPrefix(up, []byte("1")) {
		return
	}
	if n, err := os.ReadFile("/sys/class/net/eth0/carrier_changes"); err == nil && string(n) != c.changes {
		c.changes, c.since = string(n), c.seq+1
	}
	for _, proto := range probe.Protos {
		frame := c.ends.Frame(probe.Probe{Proto: proto, Seq: c.seq + 1, Count: c.count()})
		switch _, err := unix.Write(c.fd, frame); {
		case err == nil:
			c.seq++
		case !errors.Is(err, unix.ENOBUFS):
			log.Printf("workload: %v probe %d: %v", proto, c.seq+1, err)
		}
	}
}
