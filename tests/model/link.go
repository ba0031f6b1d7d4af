package main

import (
	"io"
	"net"
	"sync"
	"time"
)

// A link is the network between two hosts: bytes leave at a rate, and arrive after a delay.
// All connections over it share the rate, each direction for itself.
type link struct {
	rate  float64       // bytes a second; 0: no limit
	delay time.Duration // one way

	wg   sync.WaitGroup
	mu   sync.Mutex
	cut  bool
	ends []io.Closer
	next [2]time.Time // when a direction is free again
	sent [2]uint64
}

const (
	forth = 0
	back  = 1
)

// chunk is what is read at once. At 10 Gbit/s it takes 26 µs.
const chunk = 32 << 10

// listen returns an address from which the link leads to addr.
func (l *link) listen(addr string) (string, error) {
	in, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	l.ends = append(l.ends, in)
	l.mu.Unlock()
	l.wg.Go(func() {
		for {
			near, err := in.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", addr)
			if err != nil {
				near.Close()
				continue
			}
			l.mu.Lock()
			cut := l.cut
			l.ends = append(l.ends, near, far)
			l.mu.Unlock()
			if cut {
				near.Close()
				far.Close()
				continue
			}
			l.wg.Go(func() { l.carry(near, far, forth) })
			l.wg.Go(func() { l.carry(far, near, back) })
		}
	})
	return in.Addr().String(), nil
}

// A packet is on its way.
type packet struct {
	data []byte
	due  time.Time
}

func (l *link) carry(from, to net.Conn, direction int) {
	// As much as a second's delay at the rate may be on its way, and some that waits.
	way := make(chan packet, 64+int(l.rate*l.delay.Seconds()/chunk))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer to.Close()
		for p := range way {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				from.Close()
				for range way {
				}
				return
			}
		}
	}()
	for {
		b := make([]byte, chunk)
		n, err := from.Read(b)
		if n > 0 {
			way <- packet{b[:n], l.leaves(direction, n).Add(l.delay)}
		}
		if err != nil {
			break
		}
	}
	close(way)
	<-done
}

// leaves returns when n bytes have left.
func (l *link) leaves(direction, n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.next[direction].Before(now) {
		l.next[direction] = now
	}
	if l.rate > 0 {
		l.next[direction] = l.next[direction].Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	}
	l.sent[direction] += uint64(n)
	return l.next[direction]
}

// bytes returns how many bytes have gone forth.
func (l *link) bytes() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent[forth]
}

// fail ends all connections: the primary's host has died.
func (l *link) fail() {
	l.mu.Lock()
	l.cut = true
	ends := l.ends
	l.mu.Unlock()
	for _, c := range ends {
		c.Close()
	}
	l.wg.Wait()
}
