//go:build linux

package main

import (
	"context"
	"fmt"
	"log"
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
	{"remus, nothing held", true, remus(lab.DebianXL, 200, "-n")},
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

// remus protects with a build of "xl remus", unsafe as it is with any of its parts switched off.
func remus(xl []string, interval int, more ...string) func(context.Context, *bench, vehicle) (protection, error) {
	return func(ctx context.Context, b *bench, v vehicle) (protection, error) {
		r, err := lab.StartRemus(ctx, b.home, b.backup(), v.guest().Name, xl, interval, more...)
		if err != nil {
			return nil, err
		}
		begun := time.Now()
		first, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err = r.AwaitCheckpoints(first)
		log.Printf("  remus took its first checkpoints after %v", round(time.Since(begun)))
		return stock{r}, err
	}
}

// stock is "xl remus" at work.
type stock struct{ *lab.Remus }

func (p stock) status(context.Context) (*primary.Status, error) {
	n, err := p.Checkpoints()
	return &primary.Status{Checkpoints: n}, err
}

func (p stock) takesOver() bool { return false } // it does not notice a death without a word

func (p stock) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return p.Stop(ctx)
}
