//go:build linux

// Bench measures what protection costs, on two emulated Xen hosts: the same guests, with the same work, unprotected, under
// stock "xl remus" without and with its network buffering, and under xlft in each of its modes, all in one run. It prints
// tables, and writes them with the raw figures and plots into a directory.
//
// It prepares the lab by itself, as root. Nothing else should run on the machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
)

const patience = 3 * time.Minute // for whatever must come

func main() {
	log.SetFlags(log.Ltime)
	short := flag.Bool("short", false, "fewer setups and rows, shorter ones")
	setups := flag.String("setups", ".", "only setups whose name matches; the unprotected guest is always measured")
	rows := flag.String("rows", ".", "only rows whose name matches")
	kernel := flag.String("kernel", "", "more `words` for the guests' kernel command lines")
	out := flag.String("out", "build/bench-lab", "`directory` of the results")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *short, *setups, *rows, *kernel, *out); err != nil {
		log.Fatal("bench: ", err)
	}
}

// A bench is the hosts, and where the guests run.
type bench struct {
	*lab.Lab
	home   *lab.Host
	saved  map[*lab.Host][]byte // of xlft's installation
	rows   *regexp.Regexp
	kernel string        // more words for guests' kernel command lines
	each   time.Duration // that a row takes
	short  bool
	found  results
}

func run(ctx context.Context, short bool, setupNames, rowNames, kernel, out string) (err error) {
	b := &bench{kernel: kernel, saved: map[*lab.Host][]byte{}, each: 10 * time.Second, short: short}
	if b.rows, err = regexp.Compile(rowNames); err != nil {
		return err
	}
	only, err := regexp.Compile(setupNames)
	if err != nil {
		return err
	}
	if short {
		b.each = 5 * time.Second
	}
	if b.Lab, err = lab.OpenBench(ctx, log.Printf); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := b.Reset(ctx); err != nil {
		return err
	}
	b.home = b.A
	s := ft.Usual
	s.More = fmt.Sprintf("[domain.%s.disk.xvda]\npath = %q\n", stockName, lab.StockDisk)
	if err := ft.Install(ctx, b.Lab, s); err != nil {
		return err
	}
	for _, h := range b.Hosts() {
		if b.saved[h], err = ft.Save(ctx, h); err != nil {
			return err
		}
	}
	b.found.begin(ctx, b)
	// What was found before something went wrong is kept.
	defer func() { err = errors.Join(err, b.found.write(out, os.Stdout)) }()
	for _, v := range []vehicle{&workload{}, &stockGuest{}} {
		if v.rows(b) == nil {
			continue
		}
		if err := b.measure(ctx, v, only); err != nil {
			return err
		}
	}
	return nil
}

// A vehicle is a guest with its rows.
type vehicle interface {
	boot(ctx context.Context, b *bench) error
	guest() lab.Guest
	rows(b *bench) []row
	standstill() (time.Duration, error) // the longest since the last call; 0: it can't tell
	// reconnect is called when a setup has begun: what "xl remus" holds during its first copy may have ended connections.
	reconnect(ctx context.Context, b *bench) error
	halt(ctx context.Context, b *bench) error
}

// A mortal is a guest whose host may die under work: dies returns what came of it. The guest runs at the other host then.
type mortal interface {
	dies(ctx context.Context, b *bench) (death, error)
}

// measure runs the rows of a guest in every setup.
func (b *bench) measure(ctx context.Context, v vehicle, only *regexp.Regexp) error {
	if err := v.boot(ctx, b); err != nil {
		return err
	}
	for _, s := range setups {
		if s.name != unprotected && (!only.MatchString(s.name) || b.short && s.long) {
			continue
		}
		log.Printf("%s: %s", v.guest().Name, s.name)
		if err := b.within(ctx, v, s); err != nil {
			return fmt.Errorf("%s, %s: %w", v.guest().Name, s.name, err)
		}
	}
	return v.halt(ctx, b)
}

// within runs the rows in one setup.
func (b *bench) within(ctx context.Context, v vehicle, s setup) error {
	p, err := s.begin(ctx, b, v)
	if err != nil && p != nil {
		// xl remus gives up a guest that takes longer than a minute to suspend.
		log.Printf("  it does not come to protect: %v", err)
		for _, r := range v.rows(b) {
			b.found.add(figure{Guest: v.guest().Name, Setup: s.name, Row: r.name, Unit: r.unit, Failed: err.Error()})
		}
		return errors.Join(p.end(ctx), v.reconnect(ctx, b))
	}
	if err != nil {
		return err
	}
	if err := v.reconnect(ctx, b); err != nil {
		return err
	}
	for _, r := range v.rows(b) {
		f, err := b.row(ctx, v, p, r)
		if err != nil {
			log.Printf("  %s: %v", r.name, err)
			f.Failed = err.Error()
		}
		f.Guest, f.Setup = v.guest().Name, s.name
		b.found.add(f)
		log.Printf("  %-24s %s", r.name, strings.ReplaceAll(f.String(), "\n", " "))
	}
	if m, ok := v.(mortal); ok && p.takesOver() {
		d, err := m.dies(ctx, b)
		if err != nil {
			return err
		}
		d.Guest, d.Setup = v.guest().Name, s.name
		b.found.died(d)
		log.Printf("  its host died: %s", d)
	}
	return p.end(ctx)
}

// row does the work of one row, and looks at what it cost.
func (b *bench) row(ctx context.Context, v vehicle, p protection, r row) (f figure, err error) {
	f.Row, f.Unit = r.name, r.unit
	before, err := p.status(ctx)
	if err != nil {
		return f, err
	}
	cpu, err := b.dom0(ctx)
	if err != nil {
		return f, err
	}
	if _, err := v.standstill(); err != nil {
		return f, err
	}
	begun := time.Now()
	f.Rate, f.Latencies, err = r.work(ctx, b)
	if err != nil {
		return f, err
	}
	took := time.Since(begun)
	if r.watch > 0 { // nothing but time
		for range int(r.watch / time.Second) {
			if err := wait(ctx, time.Second); err != nil {
				return f, err
			}
			if d, err := v.standstill(); err == nil && d > 0 {
				f.Standstills = append(f.Standstills, d)
			}
		}
		took = time.Since(begun)
		if err := r.after(); err != nil {
			return f, err
		}
	}
	after, err := p.status(ctx)
	if err != nil {
		return f, err
	}
	used, err := b.dom0(ctx)
	if err != nil {
		return f, err
	}
	f.finish(took, used-cpu, before, after)
	return f, nil
}

// dom0 returns how much processor time the dom0 of the guest's host has used.
func (b *bench) dom0(ctx context.Context) (time.Duration, error) {
	out, err := b.home.Run(ctx, "xl", "list", "0")
	if err != nil {
		return 0, err
	}
	words := strings.Fields(out)
	if len(words) == 0 {
		return 0, errors.New("xl list says nothing of dom0")
	}
	var seconds float64
	if _, err := fmt.Sscan(words[len(words)-1], &seconds); err != nil {
		return 0, fmt.Errorf("xl list: %q: %w", out, err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

func (b *bench) backup() *lab.Host { return b.Peer(b.home) }

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func round(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

func (b *bench) until(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return lab.Await(ctx, f)
}
