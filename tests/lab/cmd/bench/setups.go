//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	"xlft/tests/lab"
	"xlft/tests/lab/ft"
	"xlft/xlft/primary"
)

const unprotected = "unprotected"

// A setup is one way to run a guest.
type setup struct {
	name  string
	long  bool // not in a short run
	begin func(ctx context.Context, b *bench, v vehicle) (protection, error)
}

var setups = []setup{
	{unprotected, false, func(context.Context, *bench, vehicle) (protection, error) { return none{}, nil }},
	{"remus, nothing held", true, remus([]string{"xl"}, 200, "-n")},
	{"remus, buffered, 200 ms", false, remus(lab.RemusXL, 200)},
	{"remus, buffered, 25 ms", true, remus(lab.RemusXL, 25)},
	{"xlft interval, 200 ms", true, xlft("interval", 200*time.Millisecond)},
	{"xlft event", false, xlft("event", time.Second)},
	{"xlft strict", true, xlft("strict", time.Second)},
}

// A protection is a setup that has begun.
type protection interface {
	status(ctx context.Context) (*primary.Status, error) // nil if there is none
	takesOver() bool
	end(ctx context.Context) error
}

type none struct{}

func (none) status(context.Context) (*primary.Status, error) { return nil, nil }
func (none) takesOver() bool                                 { return false }
func (none) end(context.Context) error                       { return nil }

// xlft protects with xlft.
func xlft(mode string, longest time.Duration) func(context.Context, *bench, vehicle) (protection, error) {
	return func(ctx context.Context, b *bench, v vehicle) (protection, error) {
		name := v.guest().Name
		begun := time.Now()
		if _, err := b.home.Run(ctx, "xl", "ft-start", name); err != nil {
			return nil, err
		}
		log.Printf("  ft-start took %v", round(time.Since(begun)))
		_, err := b.home.Run(ctx, "xl", "ft-set", name, "mode="+mode, fmt.Sprint("epoch_max=", longest))
		return ours{b, name}, err
	}
}

type ours struct {
	b    *bench
	name string
}

func (p ours) status(ctx context.Context) (*primary.Status, error) {
	r, err := ft.Status(ctx, p.b.home, p.name)
	if err == nil && !r.Protected {
		err = fmt.Errorf("the protection was lost: %s", r.State)
	}
	return r.Primary, err
}

func (p ours) takesOver() bool { return true }

// end: after the takeover the other host comes back as it was installed.
func (p ours) end(ctx context.Context) error {
	r, err := ft.Status(ctx, p.b.home, p.name)
	if err != nil || !r.Protected {
		return err
	}
	_, err = p.b.home.Run(ctx, "xl", "ft-stop", p.name)
	return err
}

// remus protects with a build of "xl remus", unsafe as it is with any of its parts switched off: its disks are none.
func remus(xl []string, interval int, more ...string) func(context.Context, *bench, vehicle) (protection, error) {
	return func(ctx context.Context, b *bench, v vehicle) (protection, error) {
		const port = "7790"
		p := &stock{b: b, xl: xl}
		var err error
		receive := fmt.Sprintf("EXEC:%s migrate-receive -r", strings.Join(xl, " "))
		if p.there, err = b.backup().Start(ctx, "socat", "TCP-LISTEN:"+port+",reuseaddr", receive); err != nil {
			return nil, err
		}
		if err := b.until(ctx, func() error {
			_, err := b.backup().Run(ctx, "sh", "-c", "ss -ltn | grep -q :"+port)
			return err
		}); err != nil {
			return nil, err
		}
		argv := append(append([]string{}, xl...), "remus", "-F", "-d", "-i", fmt.Sprint(interval), "-s", "")
		argv = append(append(argv, more...), v.guest().Name, fmt.Sprintf("exec socat - TCP:%v:%s", b.backup().IPv4(), port))
		// A device to hold packets at, for the build that can. Its script takes none that has a queue, as one that was ever up.
		if _, err := b.home.Run(ctx, "sh", "-c", "ip link del ifb0 2> /dev/null; ip link add ifb0 type ifb"); err != nil {
			return nil, err
		}
		if p.here, err = b.home.Start(ctx, argv...); err != nil {
			return nil, err
		}
		return p, p.awaitCheckpoints(ctx)
	}
}

// stock is "xl remus" at work.
type stock struct {
	b           *bench
	xl          []string
	here, there *lab.Process
}

// status counts the checkpoints that libxc says it took.
func (p *stock) status(context.Context) (*primary.Status, error) {
	select {
	case <-p.here.Done():
		return nil, fmt.Errorf("xl remus ended: %v: %s", p.here.Wait(), p.here.Stderr())
	default:
		return &primary.Status{Checkpoints: uint64(strings.Count(p.here.Stderr(), "Checkpointed save"))}, nil
	}
}

func (p *stock) takesOver() bool { return false } // it does not notice a death without a word

// awaitCheckpoints waits until the first, live pass is over.
func (p *stock) awaitCheckpoints(ctx context.Context) error {
	begun := time.Now()
	err := p.b.until(ctx, func() error {
		st, err := p.status(ctx)
		if err == nil && st.Checkpoints < 2 {
			err = fmt.Errorf("xl remus takes no checkpoints: %s", p.here.Stderr())
		}
		return err
	})
	log.Printf("  remus took its first checkpoints after %v", round(time.Since(begun)))
	return err
}

// end: the end of the connection ends both sides, and the guest runs on here.
func (p *stock) end(ctx context.Context) error {
	b := p.b
	b.home.Run(ctx, "pkill", "socat")
	b.backup().Run(ctx, "pkill", "-f", "xl migrate-receive|libxl-save-helper")
	p.there.Kill()
	if err := b.until(ctx, func() error {
		select {
		case <-p.here.Done():
			return nil
		default:
			return errors.New("xl remus goes on")
		}
	}); err != nil {
		return err
	}
	// A half-built domain there has no name.
	return b.until(ctx, func() error {
		all, err := b.backup().Domains(ctx)
		if err != nil {
			return err
		}
		left := 0
		for _, d := range all {
			if d.ID != 0 {
				left++
				b.backup().Run(ctx, "xl", "destroy", fmt.Sprint(d.ID)) // looked at again
			}
		}
		if left > 0 {
			return fmt.Errorf("%d domains of xl remus are left", left)
		}
		return nil
	})
}

func (b *bench) until(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return lab.Await(ctx, f)
}
