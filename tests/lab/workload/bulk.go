package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"xlft/tests/lab/probe"
)

// take answers the commands after which the connection carries a stream, of which there are no answers. It reports whether
// the line was one.
func take(conn net.Conn, line string) (bool, error) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "bulk":
		return true, bulk(conn)
	case "sink":
		return true, sink(conn)
	case "moving":
		var n, every int
		if _, err := fmt.Sscan(rest, &n, &every); err != nil {
			return true, fmt.Errorf("moving: %w", err)
		}
		return true, moving(conn, n, time.Duration(every)*time.Millisecond)
	}
	return false, nil
}

// bulk sends as much as the connection takes, until the client closes it.
func bulk(conn net.Conn) error {
	b := make([]byte, 64<<10)
	for {
		if _, err := conn.Write(b); err != nil {
			return nil // the client has seen enough
		}
	}
}

// sunk is how many bytes sinks took.
var sunk atomic.Int64

// sink takes as much as the client sends.
func sink(conn net.Conn) error {
	b := make([]byte, 64<<10)
	for {
		n, err := conn.Read(b)
		sunk.Add(int64(n))
		if err != nil {
			return nil // the client has sent enough
		}
	}
}

// spin asks for the time, again and again, for so long by the clock that goes on while the guest is suspended. It returns how
// often it did.
func spin(d time.Duration) (n int) {
	const look = 1000
	for end := boottime() + d; boottime() < end; n += look {
		for range look {
			_ = time.Now() // by the vDSO, as a program's gettimeofday
		}
	}
	return n
}

// moving sends so many pages of a file whose content moves on all the time, by sendfile: the packets refer to the
// file's page in the page cache, and are not copies of it. A number in the page counts milliseconds, until the client
// closes the connection. Before each page the guest sends the number as it is then.
func moving(conn net.Conn, n int, every time.Duration) error {
	f, err := os.CreateTemp("/tmp", "moving")
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	if err := f.Truncate(probe.MovingPage); err != nil {
		return err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, probe.MovingPage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("moving: %w", err)
	}
	defer unix.Munmap(page)

	var now atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		pace(1000, stop, func(count uint64) {
			now.Store(count)
			for at := 0; at < len(page); at += 8 {
				binary.BigEndian.PutUint64(page[at:], count)
			}
		})
	}()
	defer func() { close(stop); <-stopped }()

	for range n {
		time.Sleep(every)
		if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, now.Load())); err != nil {
			return err
		}
		if _, err := f.Seek(0, 0); err != nil {
			return err
		}
		// io.Copy of a TCP connection and a file is sendfile(2).
		if _, err := conn.(*net.TCPConn).ReadFrom(f); err != nil {
			return err
		}
	}
	io.Copy(io.Discard, conn) // the page moves on until the client has it
	return nil
}
