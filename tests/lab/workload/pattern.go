package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"xlft/tests/lab/probe"
)

// A scribbler makes the writes of a pattern on the disk, one after the other.
type scribbler struct {
	starting sync.Mutex // one start or stop at a time; guards stop
	stop     chan struct{}
	over     sync.WaitGroup

	mu   sync.Mutex
	made uint64 // writes that the disk has called durable
	err  error  // why there are no more
}

func (s *scribbler) answer(line string) (string, error) {
	var verb string
	var seed uint64
	var rate int
	n, _ := fmt.Sscan(line, &verb, &seed, &rate)
	switch {
	case verb == "start" && n == 3:
		return "ok", s.start(seed, rate)
	case verb == "made":
	case verb == "stop":
		s.starting.Lock()
		defer s.starting.Unlock()
		if s.stop != nil {
			close(s.stop)
			s.over.Wait()
			s.stop = nil
		}
	default:
		return "", fmt.Errorf("no command %q", "pattern "+line)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.made), s.err
}

func (s *scribbler) start(seed uint64, rate int) error {
	if rate < 1 || rate > maxRate {
		return fmt.Errorf("pattern: %d a second is out of range", rate)
	}
	s.starting.Lock()
	defer s.starting.Unlock()
	if s.stop != nil {
		return errors.New("pattern: it is being written already")
	}
	var files [2]*os.File
	for i, flags := range []int{unix.O_DSYNC, 0} {
		f, err := os.OpenFile(disk, os.O_WRONLY|unix.O_DIRECT|flags, 0)
		if err != nil {
			files[0].Close() // or nil
			return err
		}
		files[i] = f
	}
	size, err := files[0].Seek(0, io.SeekEnd)
	if err != nil {
		return errors.Join(err, files[0].Close(), files[1].Close())
	}
	s.stop = make(chan struct{})
	stop := s.stop
	s.over.Go(func() {
		defer files[0].Close()
		defer files[1].Close()
		p, buffer := probe.Pattern{Seed: seed, Size: size}, aligned(probe.LongestWrite)
		pace(rate, stop, func(uint64) { s.next(p, files, buffer) })
	})
	return nil
}

// next makes one write, unless one has failed. Every other one is not durable by itself but by a flush that follows.
func (s *scribbler) next(p probe.Pattern, files [2]*os.File, buffer []byte) {
	s.mu.Lock()
	k, err := s.made+1, s.err
	s.mu.Unlock()
	if err != nil {
		return
	}
	off, body := p.Write(k)
	f := files[k%2]
	_, err = f.WriteAt(buffer[:copy(buffer, body)], off)
	if err == nil && f == files[1] {
		err = f.Sync()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.err = fmt.Errorf("pattern: write %d: %w", k, err)
		return
	}
	s.made = k
}
