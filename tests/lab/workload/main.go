// Workload is what the lab's guest runs as its first process: a TCP service with a state that tells whether an
// answer was ever taken back, a page dirtier, a filler of new pages, a sender of numbered frames, a sender of bulk, a
// watch on its own standstills, and on its first disk a sequence of writes that a test can replay, or real programs
// (mkfs, e2fsck, fio, SQLite) at work.
//
// It takes its settings from the kernel command line (lab.ip4=, lab.ip6=, lab.peer4=, lab.peer6=, lab.peermac=,
// lab.dirty=RATE,PAGES, lab.chatter=RATE); guest-init has set up the network by then. Package probe documents the
// protocol from the client's side.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"xlft/tests/lab/probe"
)

type guest struct {
	mu    sync.Mutex
	state probe.State

	pages   dirtier
	frames  chatter
	watcher stallWatch
	data    dataDisk
	pattern scribbler
	filler  filler
}

func main() {
	log.SetFlags(0)
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		log.Fatal(err)
	}
	g := new(guest)
	g.frames.count = func() uint64 { return g.get().Count }
	if err := g.configure(settings(string(cmdline))); err != nil {
		log.Print("workload: ", err) // serve all the same: the console and the client can both ask
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", probe.Port))
	if err != nil {
		log.Fatal(err)
	}
	log.Print("workload: ready")
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Print("workload: ", err)
			continue
		}
		go g.serve(conn)
	}
}

// settings returns the lab.KEY=VALUE words of a kernel command line.
func settings(cmdline string) map[string]string {
	set := map[string]string{}
	for _, word := range strings.Fields(cmdline) {
		if key, value, ok := strings.Cut(word, "="); ok && strings.HasPrefix(key, "lab.") {
			set[strings.TrimPrefix(key, "lab.")] = value
		}
	}
	return set
}

func (g *guest) configure(set map[string]string) error {
	err := g.frames.open(set)
	if v, ok := set["dirty"]; ok {
		_, e := g.answer("dirty " + strings.ReplaceAll(v, ",", " "))
		err = errors.Join(err, e)
	}
	if v, ok := set["chatter"]; ok {
		_, e := g.answer("chatter " + v)
		err = errors.Join(err, e)
	}
	return err
}

func (g *guest) serve(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if taken, err := take(conn, lines.Text()); taken {
			if err != nil {
				log.Print("workload: ", err)
			}
			return
		}
		answer, err := g.answer(lines.Text())
		if err != nil {
			answer = "error: " + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return
		}
	}
}

func (g *guest) answer(line string) (string, error) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "add":
		var n uint64
		if _, err := fmt.Sscan(rest, &n); err != nil {
			return "", fmt.Errorf("add: %w", err)
		}
		s := g.add(n)
		return fmt.Sprint(s.Count, " ", s.Sum), nil
	case "get":
		s := g.get()
		return fmt.Sprint(s.Count, " ", s.Sum), nil
	case "dirty":
		var rate, pages int
		if _, err := fmt.Sscan(rest, &rate, &pages); err != nil {
			return "", fmt.Errorf("dirty: %w", err)
		}
		return "ok", g.pages.set(rate, pages)
	case "chatter":
		var rate int
		if _, err := fmt.Sscan(rest, &rate); err != nil {
			return "", fmt.Errorf("chatter: %w", err)
		}
		return "ok", g.frames.set(rate)
	case "chattered":
		last, since := g.frames.sent()
		return fmt.Sprint(last, " ", since), nil
	case "stall":
		return fmt.Sprint(g.watcher.take().Microseconds()), nil
	case "sunk":
		return fmt.Sprint(sunk.Load(), " ", boottime().Microseconds()), nil
	case "spin":
		var ms int
		if _, err := fmt.Sscan(rest, &ms); err != nil {
			return "", fmt.Errorf("spin: %w", err)
		}
		return fmt.Sprint(spin(time.Duration(ms) * time.Millisecond)), nil
	case "fill":
		var pages, rate int
		if _, err := fmt.Sscan(rest, &pages, &rate); err != nil {
			return "", fmt.Errorf("fill: %w", err)
		}
		return "ok", g.filler.start(pages, rate)
	case "filled":
		filled, wrong := g.filler.check()
		return fmt.Sprint(filled, " ", wrong), nil
	case "memory":
		total, free, err := memory()
		return fmt.Sprint(total, " ", free), err
	case "write":
		var block int64
		var n uint64
		if _, err := fmt.Sscan(rest, &block, &n); err != nil {
			return "", fmt.Errorf("write: %w", err)
		}
		return "ok", writeBlock(block, n)
	case "read":
		var block int64
		if _, err := fmt.Sscan(rest, &block); err != nil {
			return "", fmt.Errorf("read: %w", err)
		}
		n, err := readBlock(block)
		return fmt.Sprint(n), err
	case "pattern":
		return g.pattern.answer(rest)
	case "fio":
		return g.data.answerFio(rest)
	case "mkfs", "mount", "unmount", "fsck", "commit", "rows", "integrity", "journal", "sql":
		return g.data.answer(verb, rest)
	}
	return "", fmt.Errorf("no command %q", verb)
}

func (g *guest) add(n uint64) probe.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state.Count++
	g.state.Sum = probe.Fold(g.state.Sum, n)
	return g.state
}

func (g *guest) get() probe.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state
}
