//go:build linux

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"xlft/tests/lab/probe"
)

// A Frame is an Ethernet frame on the LAN cable of one host.
type Frame struct {
	Time time.Time // by the kernel's clock, when the frame passed the cable
	Host *Host
	Sent bool   // sent by the host or a guest on it, and not sent to them
	Data []byte // from the destination's address on, VLAN tag included; its first 2 KiB
}

// Src is the address the frame comes from.
func (f Frame) Src() net.HardwareAddr { return net.HardwareAddr(f.Data[6:12]) }

// Dst is the address the frame goes to.
func (f Frame) Dst() net.HardwareAddr { return net.HardwareAddr(f.Data[:6]) }

// Announces reports whether the frame is a reverse-ARP request: so a host announces a domain that it takes over, before
// the domain runs there.
func (f Frame) Announces() bool { return len(f.Data) > 14 && f.Data[12] == 0x80 && f.Data[13] == 0x35 }

// Probe returns the guest's probe in the frame, if it is one.
func (f Frame) Probe() (probe.Probe, bool) { return probe.Parse(f.Data) }

// Probes selects the guests' probes that a host sent.
func Probes(f Frame) bool {
	_, ok := f.Probe()
	return ok && f.Sent
}

// SentBy selects the frames that the guest sent, by its hardware address, from either host.
func SentBy(g Guest) func(Frame) bool {
	return func(f Frame) bool { return f.Sent && f.Src().String() == g.MAC }
}

// A Capture collects frames from the cables of both hosts. A frame from host to host is seen twice: sent by one and
// going to the other.
type Capture struct {
	taps []*tapReader
	wg   sync.WaitGroup
	over chan struct{} // closed before the sockets are

	mu     sync.Mutex
	frames []Frame
	err    error
}

// Capture starts to collect the frames that want selects; a nil want selects all. The caller must Stop it.
func (l *Lab) Capture(want func(Frame) bool) (*Capture, error) {
	c := &Capture{over: make(chan struct{})}
	for _, h := range l.Hosts() {
		tap, err := openTap(l.net.ns, h)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("lab: capture on %s: %w", h.lanTap, err)
		}
		c.taps = append(c.taps, tap)
	}
	for _, tap := range c.taps {
		c.wg.Go(func() { c.collect(tap, want) })
	}
	return c, nil
}

// Frames returns the frames collected so far, in the order of time.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	frames := append([]Frame(nil), c.frames...)
	sort.SliceStable(frames, func(i, j int) bool { return frames[i].Time.Before(frames[j].Time) })
	return frames
}

// Stop ends the capture and returns all frames. An error means that frames are missing.
func (c *Capture) Stop() ([]Frame, error) {
	for _, tap := range c.taps {
		dropped, err := tap.dropped()
		if err == nil && dropped > 0 {
			err = fmt.Errorf("%d frames lost", dropped)
		}
		if err != nil {
			c.fail(fmt.Errorf("lab: capture on %s: %w", tap.host.lanTap, err))
		}
	}
	c.close()
	c.wg.Wait()
	c.mu.Lock()
	err := c.err
	c.mu.Unlock()
	return c.Frames(), err
}

func (c *Capture) close() {
	close(c.over)
	for _, tap := range c.taps {
		tap.file.Close()
	}
}

func (c *Capture) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

func (c *Capture) collect(tap *tapReader, want func(Frame) bool) {
	for {
		frame, err := tap.next()
		select {
		case <-c.over:
			return
		default:
		}
		switch {
		case errors.Is(err, unix.ENETDOWN):
			continue // the cable was cut; the socket works again when it is back
		case err != nil:
			c.fail(fmt.Errorf("lab: capture on %s: %w", tap.host.lanTap, err))
			return
		}
		if len(frame.Data) >= 14 && (want == nil || want(frame)) {
			c.mu.Lock()
			c.frames = append(c.frames, frame)
			c.mu.Unlock()
		}
	}
}

// A tapReader is a packet socket on one host's tap. What QEMU writes there comes in, what it reads goes out.
type tapReader struct {
	host *Host
	file *os.File
	raw  syscall.RawConn
	buf  [2048]byte
	oob  [256]byte
}

func openTap(ns *namespace, h *Host) (*tapReader, error) {
	tap := &tapReader{host: h}
	err := ns.do(func() error {
		link, err := net.InterfaceByName(h.lanTap)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		tap.file = os.NewFile(uintptr(fd), h.lanTap)
		for _, set := range []struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64 << 20},
			{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
			{unix.SOL_PACKET, unix.PACKET_AUXDATA, 1}, // the kernel takes VLAN tags out of frames and tells here
		} {
			if err := unix.SetsockoptInt(fd, set.level, set.name, set.value); err != nil {
				return fmt.Errorf("packet socket option %d: %w", set.name, err)
			}
		}
		all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	})
	if err == nil {
		tap.raw, err = tap.file.SyscallConn()
	}
	if err != nil && tap.file != nil {
		tap.file.Close()
	}
	return tap, err
}

// next waits for a frame.
func (t *tapReader) next() (Frame, error) {
	var n, oobn int
	var from unix.Sockaddr
	var err error
	wait := t.raw.Read(func(fd uintptr) bool {
		n, oobn, _, from, err = unix.Recvmsg(int(fd), t.buf[:], t.oob[:], 0)
		return !errors.Is(err, unix.EAGAIN)
	})
	if wait != nil {
		return Frame{}, wait
	}
	if err != nil {
		return Frame{}, err
	}
	frame := Frame{Time: time.Now(), Host: t.host, Data: append([]byte(nil), t.buf[:n]...)}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		frame.Sent = ll.Pkttype != unix.PACKET_OUTGOING
	}
	return frame, t.annotate(&frame, t.oob[:oobn])
}

// annotate takes the time and the VLAN tag from the control messages of a frame.
func (t *tapReader) annotate(frame *Frame, oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("control message: %w", err)
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16:
			sec := int64(binary.NativeEndian.Uint64(m.Data))
			nsec := int64(binary.NativeEndian.Uint64(m.Data[8:]))
			frame.Time = time.Unix(sec, nsec)
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA:
			frame.Data = tagged(frame.Data, m.Data)
		}
	}
	return nil
}

// tagged puts the VLAN tag back that a struct tpacket_auxdata tells of.
func tagged(data, aux []byte) []byte {
	const (
		vlanValid = 1 << 4 // TP_STATUS_VLAN_VALID
		tpidValid = 1 << 6 // TP_STATUS_VLAN_TPID_VALID
		size      = 20     // status, len, snaplen, 32 bits each; mac, net, vlan_tci, vlan_tpid, 16 bits each
	)
	if len(aux) < size || len(data) < 12 {
		return data
	}
	status := binary.NativeEndian.Uint32(aux)
	if status&vlanValid == 0 {
		return data
	}
	tpid := uint16(unix.ETH_P_8021Q)
	if status&tpidValid != 0 {
		tpid = binary.NativeEndian.Uint16(aux[18:])
	}
	out := append([]byte(nil), data[:12]...)
	out = binary.BigEndian.AppendUint16(out, tpid)
	out = binary.BigEndian.AppendUint16(out, binary.NativeEndian.Uint16(aux[16:]))
	return append(out, data[12:]...)
}

// dropped returns how many frames the kernel had no room for.
func (t *tapReader) dropped() (int, error) {
	var stats *unix.TpacketStats
	var err error
	if control := t.raw.Control(func(fd uintptr) {
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); control != nil {
		return 0, control
	}
	if err != nil {
		return 0, fmt.Errorf("statistics: %w", err)
	}
	return int(stats.Drops), nil
}
