//go:build unix

package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"

	"xlft/xlft/wire"
)

// DATA frames over TLS on loopback, by one connection and by several at once: both ends, and with processor seconds for
// each GiB, of both ends together. Where fewer than two processors a connection are there, several are no faster.
func BenchmarkDataConnections(b *testing.B) {
	for _, n := range []int{1, 3} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchData(b, n) })
	}
}

const benchFrames = 256 // for each connection, of DataBody bytes

func benchData(b *testing.B, connections int) {
	ours, theirs := identity(b, "a"), identity(b, "b")
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer inner.Close()
	l := wire.NewListener(inner, theirs.TLSConfig(func(f wire.Fingerprint) bool { return f == ours.Fingerprint }))
	accepted := make(chan net.Conn)
	go func() {
		for range connections {
			c, err := l.Accept()
			if err != nil {
				b.Error(err)
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	var send, receive []*wire.Conn
	for range connections {
		done := make(chan error, 1)
		go func() {
			c, err := ours.Dialer([]string{inner.Addr().String()}, theirs.Fingerprint)(b.Context())
			if err == nil {
				send = append(send, wire.NewConn(c))
			}
			done <- err
		}()
		in, ok := <-accepted
		if !ok {
			b.FailNow()
		}
		defer in.Close()
		receive = append(receive, wire.NewConn(in))
		first := make(chan error, 1)
		go func() { // the handshake is a part of the first read
			_, err := receive[len(receive)-1].ReadFrame()
			first <- err
		}()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		out := send[len(send)-1]
		defer out.Close()
		if err := errors.Join(out.WriteFrame(wire.TypeEpochEnd, 0, nil), <-first); err != nil {
			b.Fatal(err)
		}
	}
	body := bytes.Repeat([]byte("a page of some guest's memory..."), wire.DataBody/32)
	total := int64(connections * benchFrames * len(body))
	b.SetBytes(total)
	before := used(b)
	rounds := 0
	for b.Loop() {
		rounds++
		var wg sync.WaitGroup
		for i := range connections {
			wg.Go(func() {
				for range benchFrames {
					if _, err := send[i].WriteData(1, body, false, false); err != nil {
						b.Error(err)
						return
					}
				}
				if err := send[i].WriteFrame(wire.TypeEpochEnd, 1, nil); err != nil {
					b.Error(err)
				}
			})
			wg.Go(func() {
				for range benchFrames + 1 {
					if _, err := receive[i].ReadFrame(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	b.ReportMetric((used(b)-before)/(float64(total)*float64(rounds)/(1<<30)), "cpu-s/GiB")
}

// used returns the processor seconds of this process.
func used(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
