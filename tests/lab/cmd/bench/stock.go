//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"xlft/tests/lab"
)

const stockName = "debian1"

// Ports of the stock guest's services.
const (
	redisPort  = 6379
	sourcePort = 7001 // sends as much as the client takes
	sinkPort   = 7002 // takes as much as the client sends
	buildPort  = 7003 // compiles for so many seconds, and says how often
)

// stockGuest is a Debian guest with systemd, Redis and PostgreSQL, whose root disk is one of xlft's.
type stockGuest struct {
	b     *bench
	g     lab.Guest
	root  string // of its tree, on this machine
	redis *redis
}

func (s *stockGuest) guest() lab.Guest { return s.g }

func (s *stockGuest) boot(ctx context.Context, b *bench) error {
	s.b, s.root = b, b.StockRoot()
	s.g = lab.NewStockGuest(stockName, 20, "script=block-xlft,vdev=xvda,access=rw,target="+stockName+"/xvda")
	s.g.Kernel = b.kernel
	begun := time.Now()
	if err := b.home.CreateGuest(ctx, s.g); err != nil {
		return err
	}
	if err := b.until(ctx, func() error {
		out, err := b.home.GuestConsole(ctx, s.g.Name)
		if err == nil && !strings.Contains(out, "stock: ready") {
			err = fmt.Errorf("%s has not booted", s.g.Name)
		}
		return err
	}); err != nil {
		out, _ := b.home.GuestConsole(ctx, s.g.Name)
		return fmt.Errorf("%w; its console: %s", err, out[max(0, len(out)-1500):])
	}
	log.Printf("%s booted in %v", s.g.Name, round(time.Since(begun)))
	var err error
	s.redis, err = s.dialRedis(ctx)
	return err
}

func (s *stockGuest) reconnect(ctx context.Context, b *bench) (err error) {
	s.redis.conn.Close()
	s.redis, err = s.dialRedis(ctx)
	return err
}

func (s *stockGuest) halt(ctx context.Context, b *bench) error {
	s.redis.conn.Close()
	_, err := b.home.Run(ctx, "xl", "destroy", s.g.Name)
	return err
}

// standstill returns the longest time that Redis took for an answer, in a moment.
func (s *stockGuest) standstill() (longest time.Duration, err error) {
	for begun := time.Now(); time.Since(begun) < 400*time.Millisecond; {
		at := time.Now()
		if err := s.redis.get(); err != nil {
			return 0, err
		}
		longest = max(longest, time.Since(at))
	}
	return longest, nil
}

func (s *stockGuest) rows(b *bench) []row {
	var all []row
	add := func(r row) {
		if b.rows.MatchString(r.name) {
			all = append(all, r)
		}
	}
	add(row{name: "Redis GET, 1 connection", unit: "answers/s", work: func(ctx context.Context, b *bench) (float64, []time.Duration, error) {
		return closedLoop(1, b.each, func(int) error { return s.redis.get() })
	}})
	add(row{name: "Redis SET, 10 connections", unit: "answers/s", work: s.sets})
	add(row{name: "pgbench, 4 clients", unit: "transactions/s", work: s.pgbench})
	add(row{name: "bulk out of Debian", unit: "Mbit/s", work: s.bulkOut})
	add(row{name: "bulk into Debian", unit: "Mbit/s", work: s.bulkIn})
	add(row{name: "like a kernel's build", unit: "files/s", work: s.build})
	return all
}

func (s *stockGuest) dial(ctx context.Context, port uint16) (net.Conn, error) {
	var conn net.Conn
	err := s.b.until(ctx, func() (err error) {
		try, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		conn, err = s.b.Dial(try, "tcp", netip.AddrPortFrom(s.g.IPv4, port).String())
		return err
	})
	return conn, err
}

// A redis is a connection to Redis, in the inline form of its protocol.
type redis struct {
	conn net.Conn
	r    *bufio.Reader
}

func (s *stockGuest) dialRedis(ctx context.Context) (*redis, error) {
	c, err := s.dial(ctx, redisPort)
	if err != nil {
		return nil, err
	}
	r := &redis{c, bufio.NewReader(c)}
	return r, r.do("SET key value\r\n", 1)
}

func (r *redis) get() error { return r.do("GET key\r\n", 2) }

func (r *redis) do(command string, lines int) error {
	if err := r.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := r.conn.Write([]byte(command)); err != nil {
		return err
	}
	for range lines {
		line, err := r.r.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, "-") {
			return fmt.Errorf("redis: %s", strings.TrimSpace(line))
		}
	}
	return nil
}

func (s *stockGuest) sets(ctx context.Context, b *bench) (float64, []time.Duration, error) {
	const n, keys = 10, 10000
	all := make([]*redis, n)
	for i := range all {
		var err error
		if all[i], err = s.dialRedis(ctx); err != nil {
			return 0, nil, err
		}
		defer all[i].conn.Close()
	}
	counts := make([]int, n)
	value := strings.Repeat("x", 100)
	return closedLoop(n, b.each, func(i int) error {
		counts[i]++
		return all[i].do(fmt.Sprintf("SET key:%d %s%d\r\n", (counts[i]*7919+i)%keys, value, counts[i]), 1)
	})
}

var (
	tps     = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)
	latency = regexp.MustCompile(`(?m)^latency average = ([0-9.]+) ms`)
)

// pgbench runs PostgreSQL's own benchmark, the guest's build of it, from outside: for longer than other rows, since a
// transaction is seven questions.
func (s *stockGuest) pgbench(ctx context.Context, b *bench) (float64, []time.Duration, error) {
	found, err := filepath.Glob(filepath.Join(s.root, "usr/lib/postgresql/*/bin/pgbench"))
	if err != nil || len(found) != 1 {
		return 0, nil, fmt.Errorf("no pgbench in %s: %v", s.root, err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "chroot", s.root, strings.TrimPrefix(found[0], s.root), "-n", "-c", "4", "-j", "1",
		"-T", strconv.Itoa(int(4*b.each.Seconds())), "-h", s.g.IPv4.String(), "-U", "postgres", "bench")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := b.Exec(cmd); err != nil {
		return 0, nil, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, nil, fmt.Errorf("pgbench: %w: %s", err, out.String())
	}
	rate, took := tps.FindStringSubmatch(out.String()), latency.FindStringSubmatch(out.String())
	if rate == nil {
		return 0, nil, fmt.Errorf("pgbench says no rate: %s", out.String())
	}
	n, err := strconv.ParseFloat(rate[1], 64)
	if err != nil {
		return 0, nil, err
	}
	var mean []time.Duration
	if took != nil {
		if ms, err := strconv.ParseFloat(took[1], 64); err == nil {
			mean = []time.Duration{time.Duration(ms * float64(time.Millisecond))}
		}
	}
	return n, mean, nil
}

func (s *stockGuest) bulkOut(ctx context.Context, b *bench) (float64, []time.Duration, error) {
	c, err := s.dial(ctx, sourcePort)
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	var n int64
	for _, d := range []time.Duration{b.each / 2, b.each} { // first the connection finds its rate
		if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
			return 0, nil, err
		}
		if n, err = io.Copy(io.Discard, c); !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil, fmt.Errorf("the guest ended it: %w", err)
		}
	}
	return float64(n) / mbit / b.each.Seconds(), nil, nil
}

// bulkIn sends for so long, and counts the time until the guest has taken it all.
func (s *stockGuest) bulkIn(ctx context.Context, b *bench) (float64, []time.Duration, error) {
	c, err := s.dial(ctx, sinkPort)
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	begun := time.Now()
	var n int
	for buf := make([]byte, 64<<10); time.Since(begun) < b.each; {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return 0, nil, err
		}
		m, err := c.Write(buf)
		if n += m; err != nil {
			return 0, nil, err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, nil, err
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		return 0, nil, err
	}
	return float64(n) / mbit / time.Since(begun).Seconds(), nil, nil
}

func (s *stockGuest) build(ctx context.Context, b *bench) (float64, []time.Duration, error) {
	c, err := s.dial(ctx, buildPort)
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, nil, err
	}
	if _, err := fmt.Fprintf(c, "%d\n", int(b.each.Seconds())); err != nil {
		return 0, nil, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return 0, nil, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	return float64(n) / b.each.Seconds(), nil, err
}
