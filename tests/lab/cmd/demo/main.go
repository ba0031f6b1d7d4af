//go:build linux

// Demo protects a domain on two real Xen hosts, kills the host it runs on, and shows what a client outside saw of it.
//
// It prepares the lab by itself, as root. Its exit status is 1 if a promise was not kept.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/tests/lab/probe"
)

const (
	unanswered = 64               // requests under way at any time
	before     = 15 * time.Second // under protection, until the host is killed
	afterwards = 10 * time.Second // of service from the backup
	patience   = 2 * time.Minute  // for whatever must come
)

// errBroken makes the exit status 1.
var errBroken = errors.New("a promise was not kept")

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx); err != nil {
		log.Fatal("demo: ", err)
	}
}

// demo is the show from the first boot to the table.
func demo(ctx context.Context) (err error) {
	n := narrator{begun: time.Now(), out: os.Stdout}
	n.say("preparing two Xen hosts (the first time takes some minutes)")
	l, err := lab.Open(ctx, n.say)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.Reset(ctx); err != nil {
		return err
	}
	s := ft.Usual
	if err := ft.Install(ctx, l, s); err != nil {
		return err
	}
	xen, err := l.A.Run(ctx, "sh", "-c", "xl info xen_version; uname -r")
	if err != nil {
		return err
	}
	n.say("hosts A (%v) and B (%v) run Xen and Linux %s, xlft is installed",
		l.A.IPv4(), l.B.IPv4(), strings.Join(strings.Fields(xen), " and "))

	g := lab.NewGuest("web1", 10)
	g.DirtyRate, g.WorkingSet = 500, 2000
	n.say("starting %s on A: a Linux guest of %d MiB, a TCP service with state, %d pages written a second", g.Name, g.Memory, g.DirtyRate)
	if err := l.A.CreateGuest(ctx, g); err != nil {
		return err
	}
	client, err := dial(ctx, l, g)
	if err != nil {
		return err
	}
	defer client.Close()
	n.say("%s answers at %v", g.Name, g.IPv4)
	for _, argv := range [][]string{{"xl", "ft-check", g.Name}, {"xl", "ft-start", g.Name}} {
		if err := n.run(ctx, l.A, argv...); err != nil {
			return err
		}
	}
	r, err := show(ctx, n, l, g, client, s)
	if err != nil {
		return err
	}
	fmt.Fprintln(n.out)
	return r.print(n)
}

// show is the client's work, the kill and the takeover.
func show(ctx context.Context, n narrator, l *lab.Lab, g lab.Guest, client *probe.Client, s ft.Settings) (*result, error) {
	cables, err := l.Capture(lab.SentBy(g))
	if err != nil {
		return nil, err
	}
	start, err := client.Get()
	if err != nil {
		return nil, err
	}
	n.say("a client outside sends numbers over one TCP connection, without pause, and checks the replies")
	stream := client.Stream(1, unanswered)
	if err := wait(ctx, before); err != nil {
		return nil, err
	}
	r := &result{settings: s}
	if r.status, err = ft.Status(ctx, l.A, g.Name); err != nil {
		return nil, err
	}
	sent, received, err := stream.Counts()
	if err != nil {
		return nil, err
	}
	n.say("%d requests, %d replies, %d checkpoints so far", sent, received, r.status.Primary.Checkpoints)

	l.A.Kill()
	killed := time.Now()
	n.say("HOST A IS KILLED, as by a power cut")
	if _, err := ft.Await(within(ctx), l.B, g.Name, "the takeover", func(r ft.Row) bool { return r.Role == "owner" }); err != nil {
		return nil, err
	}
	n.say("B runs %s", g.Name)
	if r.first, err = firstReply(ctx, stream, killed); err != nil {
		n.say("the client: %v", err)
	} else {
		n.say("the client goes on: the first reply after %v", round(r.first))
		if err := wait(ctx, afterwards); err != nil {
			return nil, err
		}
	}
	replies, err := stream.Stop(patience)
	if err != nil {
		n.say("the client: %v", err)
	}
	r.sent, r.received, r.broken = stream.Counts()
	n.say("the client stops: %d requests, %d replies", r.sent, r.received)

	// Asked over another connection, so that a broken one does not hide what is true.
	if r.end, err = ask(ctx, l, g); err != nil {
		return nil, err
	}
	r.counted = r.end.Count - start.Count
	r.untrue, r.wrong = probe.Judge(start, r.end, replies)
	frames, err := cables.Stop()
	if err != nil {
		return nil, err
	}
	for _, f := range frames {
		if f.Host == l.B && f.Time.After(killed) && !f.Announces() {
			r.spoke = f.Time.Sub(killed)
			break
		}
	}
	return r, nil
}

// firstReply waits for a reply that came after the host was killed. Replies that were on the wire by then do not count:
// they come within milliseconds.
func firstReply(ctx context.Context, stream *probe.Stream, killed time.Time) (time.Duration, error) {
	const wire = 100 * time.Millisecond
	var first time.Duration
	var broken error
	err := lab.Await(within(ctx), func() error {
		if _, _, broken = stream.Counts(); broken != nil {
			return nil
		}
		r, ok := probe.After(stream.Replies(), killed.Add(wire))
		if !ok {
			return errors.New("no reply came from B")
		}
		first = r.At.Sub(killed)
		return nil
	})
	return first, errors.Join(err, broken)
}

func dial(ctx context.Context, l *lab.Lab, g lab.Guest) (*probe.Client, error) {
	return l.DialGuest(within(ctx), g)
}

func ask(ctx context.Context, l *lab.Lab, g lab.Guest) (probe.State, error) {
	c, err := dial(ctx, l, g)
	if err != nil {
		return probe.State{}, err
	}
	defer c.Close()
	return c.Get()
}

// within gives whatever must come its time. The context ends with the program.
func within(ctx context.Context) context.Context {
	ctx, cancel := context.WithTimeout(ctx, patience)
	context.AfterFunc(ctx, cancel)
	return ctx
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// A result is what the demo has to show.
type result struct {
	settings ft.Settings
	status   ft.Row // shortly before the kill

	sent, received uint64
	broken         error // why the connection ended, if it did
	end            probe.State
	counted        uint64
	untrue         int
	wrong          error         // the first untrue reply
	spoke          time.Duration // from the kill to the guest's first frame from B
	first          time.Duration // from the kill to the first reply
}

// print shows the table, and returns an error if a promise was not kept.
func (r *result) print(n narrator) error {
	w := tabwriter.NewWriter(n.out, 0, 0, 2, ' ', 0)
	kept := true
	row := func(what, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", what, fmt.Sprintf(format, args...)) }
	promise := func(ok bool, what, format string, args ...any) {
		word := ""
		if !ok {
			kept, word = false, "  NOT AS PROMISED"
		}
		row(what, "%s%s", fmt.Sprintf(format, args...), word)
	}
	yes := map[bool]string{true: "yes", false: "no"}

	promise(r.broken == nil && r.first > 0, "connection kept", "%s", yes[r.broken == nil && r.first > 0])
	promise(r.sent == r.received && r.received == r.counted, "requests sent, replies received, counted by the guest",
		"%d, %d, %d", r.sent, r.received, r.counted)
	promise(r.untrue == 0, "replies that turned out untrue", "%d", r.untrue)
	row("from the kill to the first reply", "%v", round(r.first))
	row("  of it failure_timeout", "%v", r.settings.FailureTimeout)
	row("  then until the guest spoke from B", "%v", round(r.spoke-r.settings.FailureTimeout))
	row("  then TCP's retransmission", "%v", round(r.first-r.spoke))
	p := r.status.Primary
	row("checkpoints taken", "%d", p.Checkpoints)
	row("pause per checkpoint", "median %v, worst %v", round(p.PauseMedian.Total), round(p.PauseWorst.Total))
	row("bytes per checkpoint", "median %d KiB", p.BytesMedian>>10)
	if err := w.Flush(); err != nil {
		return err
	}
	if !kept {
		return errors.Join(errBroken, r.broken, r.wrong)
	}
	return nil
}
