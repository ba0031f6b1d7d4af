// Model shows what xlft could do on real hosts, which the emulated hosts of the lab can't
// show: session, wire, caches, receiver and gate run as they ship, at this machine's own
// speed. The link between the hosts and what only Xen and a guest's kernel do are put in, as
// times that its table states. Both hosts, the guest and its clients share this machine's
// processors.
//
//	go run ./tests/model [-for 5s] [-rate 5000]
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"time"

	"xlft/xlft"
)

var stated = costs{suspend: 2 * time.Millisecond, resume: 100 * time.Microsecond, page: time.Microsecond / 2}

const work = 20 * time.Microsecond // of an order

func main() {
	d := flag.Duration("for", 5*time.Second, "how long each row is measured")
	rate := flag.Float64("rate", 5000, "orders a second")
	flag.Parse()
	if err := run(*d, *rate); err != nil {
		fmt.Fprintln(os.Stderr, "model:", err)
		os.Exit(1)
	}
}

func run(d time.Duration, rate float64) error {
	fmt.Printf(`This is a model. Put in, not measured: a suspend takes the guest %v, a resume %v, mapping a page %v; an
order costs the guest %v; the link has the rate and the round trip that the row says. Measured: all else, on
%d processors that both hosts, guest and clients share.

`, stated.suspend, stated.resume, stated.page, work, runtime.NumCPU())

	fmt.Printf("4,000 pages written in each epoch, 16 lines of each, 20 epochs:\n\n| link | round trip | pause | resume to ack |\n|---|---|---|---|\n")
	for _, l := range links() {
		r, err := dirty(l.setup(xlft.ModeEvent), 4000, 20)
		if err != nil {
			return err
		}
		fmt.Printf("| %s | %v | %s ms | %s ms |\n", l.name, l.rtt, ms(r.pause), ms(r.ack))
	}
	fmt.Printf("\nOrder matching, %.0f orders a second, each answered; then the guest's host dies:\n\n"+
		"| link | round trip | mode | answer p50 | p99 | checkpoints/s | guest runs | pause | ack | MB/s sent | lost |\n|---|---|---|---|---|---|---|---|---|---|---|\n", rate)
	for _, l := range links() {
		for _, mode := range []xlft.Mode{xlft.ModeEvent, xlft.ModeStrict, xlft.ModeInterval} {
			if mode != xlft.ModeEvent && l.rtt != time.Millisecond {
				continue
			}
			r, err := trade(l.setup(mode), rate, work, time.Second, d)
			if err != nil {
				return err
			}
			fmt.Printf("| %s | %v | %s | %s ms | %s ms | %.0f | %.0f %% | %s ms | %s ms | %.1f | %d |\n", l.name, l.rtt, mode,
				ms(r.p50), ms(r.p99), r.perSecond, 100*r.runs, ms(r.pause), ms(r.ack), r.wire/1e6, r.lost)
		}
	}
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }

type kind struct {
	name string
	rate float64
	rtt  time.Duration
}

func links() (all []kind) {
	for _, g := range []float64{1, 10, 25} {
		for _, rtt := range []time.Duration{100 * time.Microsecond, time.Millisecond, 10 * time.Millisecond} {
			all = append(all, kind{fmt.Sprintf("%.0f Gbit/s", g), g * 1e9 / 8, rtt})
		}
	}
	return all
}

func (k kind) setup(mode xlft.Mode) setup {
	return setup{rate: k.rate, rtt: k.rtt, pacing: pacing(mode), pages: 32 << 10, costs: stated, pageCache: pageCache}
}

const pageCache = 128 << 20 // the configuration's default, as are these

func pacing(mode xlft.Mode) xlft.Pacing {
	p := xlft.Pacing{
		Mode: mode, EpochMin: time.Millisecond, EpochMax: time.Second, WindowMax: 500 * time.Millisecond, RunShare: 0.5, DirtyMax: 16384,
	}
	if mode == xlft.ModeInterval {
		p.EpochMax = 200 * time.Millisecond
	}
	return p
}
