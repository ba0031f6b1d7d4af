//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"

	"xlft/tests/lab"
)

// A narrator tells what happens, with the time since the beginning.
type narrator struct {
	begun time.Time
	out   io.Writer
}

func (n narrator) say(format string, args ...any) {
	fmt.Fprintf(n.out, "%7.1fs  %s\n", time.Since(n.begun).Seconds(), fmt.Sprintf(format, args...))
}

// run runs a command on a host as an operator would at a terminal, and shows what it prints when it prints it.
func (n narrator) run(ctx context.Context, h *lab.Host, argv ...string) error {
	line := strings.Join(argv, " ")
	n.say("%s# %s", h.Name(), line)
	out := &lines{each: func(s string) { n.say("   %s", s) }}
	defer out.flush()
	return h.Stream(ctx, nil, out, out, "script", "-qec", line, "/dev/null")
}

// lines gives what a terminal would show line by line. Of a line that is written over and over, such as a progress bar,
// it gives what it shows every so often.
type lines struct {
	each func(string)

	mu    sync.Mutex
	rest  []byte
	shown time.Time // when a line that was written over was last given
}

const progressEvery = 5 * time.Second

// erase is what programs send to clear a line.
var erase = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, b...)
	for {
		i := bytes.IndexAny(l.rest, "\r\n")
		if i < 0 || i == len(l.rest)-1 && l.rest[i] == '\r' {
			return len(b), nil // whether the line is written over, the next byte tells
		}
		over := l.rest[i] == '\r' && l.rest[i+1] != '\n'
		l.show(l.rest[:i], over)
		l.rest = l.rest[i+1:]
	}
}

func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.show(l.rest, false)
	l.rest = nil
}

func (l *lines) show(b []byte, over bool) {
	s := strings.TrimSpace(string(erase.ReplaceAll(b, nil)))
	if s == "" {
		return
	}
	if over {
		if time.Since(l.shown) < progressEvery {
			return
		}
		l.shown = time.Now()
	}
	l.each(s)
}
