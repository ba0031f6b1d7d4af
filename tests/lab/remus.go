//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Remus is stock "xl remus" at work: from one host, where its guest runs on when it is stopped, to the other. It has no
// disks.
type Remus struct {
	from, to    *Host
	here, there *Process
}

// DebianXL is the command that runs Debian's own build of xl, which can't hold what a domain sends.
var DebianXL = []string{"xl"}

// StartRemus begins to replicate a guest with a build of xl (see [RemusXL]) every so many milliseconds; flags are more
// flags of "xl remus". It does not wait for a checkpoint. Processes end with ctx.
func StartRemus(ctx context.Context, from, to *Host, guest string, xl []string, interval int, flags ...string) (*Remus, error) {
	const port = "7790"
	r := &Remus{from: from, to: to}
	var err error
	receive := fmt.Sprintf("EXEC:%s migrate-receive -r", strings.Join(xl, " "))
	if r.there, err = to.Start(ctx, "socat", "TCP-LISTEN:"+port+",reuseaddr", receive); err != nil {
		return nil, err
	}
	if err := Await(ctx, func() error {
		_, err := to.Run(ctx, "sh", "-c", "ss -ltn | grep -q :"+port)
		return err
	}); err != nil {
		return nil, err
	}
	// A device to hold packets at, for the build that can. Its script takes none that has a queue, as one that was ever up.
	if _, err := from.Run(ctx, "sh", "-c", "ip link del ifb0 2> /dev/null; ip link add ifb0 type ifb"); err != nil {
		return nil, err
	}
	argv := append(append([]string{}, xl...), "remus", "-F", "-d", "-i", fmt.Sprint(interval), "-s", "")
	argv = append(append(argv, flags...), guest, fmt.Sprintf("exec socat - TCP:%v:%s", to.IPv4(), port))
	r.here, err = from.Start(ctx, argv...)
	return r, err
}

// Checkpoints returns how many checkpoints libxc says it took; an error if xl remus has ended.
func (r *Remus) Checkpoints() (uint64, error) {
	select {
	case <-r.here.Done():
		return 0, fmt.Errorf("xl remus ended: %v: %s", r.here.Wait(), r.here.Stderr())
	default:
		return uint64(strings.Count(r.here.Stderr(), "Checkpointed save")), nil
	}
}

// AwaitCheckpoints waits until the first, live pass is over, and checkpoints follow one another.
func (r *Remus) AwaitCheckpoints(ctx context.Context) error {
	return Await(ctx, func() error {
		n, err := r.Checkpoints()
		if err != nil {
			return stop(err)
		}
		if n < 2 {
			return fmt.Errorf("xl remus takes no checkpoints: %s", r.here.Stderr())
		}
		return nil
	})
}

// Stop ends both sides by the end of their connection; the guest runs on where it did.
func (r *Remus) Stop(ctx context.Context) error {
	r.from.Run(ctx, "pkill", "socat")
	r.to.Run(ctx, "pkill", "-f", "xl migrate-receive|libxl-save-helper")
	r.there.Kill()
	if err := Await(ctx, func() error {
		select {
		case <-r.here.Done():
			return nil
		default:
			return errors.New("xl remus goes on")
		}
	}); err != nil {
		return err
	}
	// A half-built domain there has no name.
	return Await(ctx, func() error {
		all, err := r.to.Domains(ctx)
		if err != nil {
			return err
		}
		left := 0
		for _, d := range all {
			if d.ID != 0 {
				left++
				r.to.Run(ctx, "xl", "destroy", fmt.Sprint(d.ID)) // looked at again
			}
		}
		if left > 0 {
			return fmt.Errorf("%d domains of xl remus are left", left)
		}
		return nil
	})
}
