package netbuffer

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// unsupported turns the answers that the kernel gives for a kind that it does
// not know into an UnsupportedError.
func unsupported(feature, module string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
		return &UnsupportedError{feature, module, err}
	}
	return err
}

// Check tries on a pair of throw-away ifbs, in a network namespace of its own,
// whether the kernel has all that a gate needs. What is missing comes back as
// UnsupportedError, all of it joined. The kernel loads modules by itself if it
// has them. Nothing is left behind.
func Check(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		// The thread is in the new namespace; not unlocking it ends it with the
		// goroutine, and the namespace with the thread.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("netbuffer: make a network namespace: %w", err)
			return
		}
		done <- check()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func check() error {
	k, err := newKernel(0, Options{})
	if err != nil {
		return err
	}
	defer k.close()

	link := func(name string) (netlink.Link, error) {
		la := netlink.NewLinkAttrs()
		la.Name = name
		if err := k.h.LinkAdd(&netlink.Ifb{LinkAttrs: la}); err != nil {
			return nil, unsupported("ifb device", "ifb", err)
		}
		return k.h.LinkByName(name)
	}
	vif, err := link("vif")
	if err != nil {
		return err
	}
	ifb, err := link("ifb")
	if err != nil {
		return err
	}

	var errs error
	note := func(err error) { errs = errors.Join(errs, err) }
	note(unsupported("plug qdisc", "sch_plug", k.changePlug(ifb, plugLimit, DefaultLimit, unix.NLM_F_CREATE|unix.NLM_F_EXCL)))
	d := &device{k: k, vif: vif, ifb: [2]netlink.Link{ifb, ifb}}
	if err := k.addQdisc(d); err != nil {
		note(err)
		return errs
	}
	if err := k.addFilter(d, nil, 0); err != nil {
		note(err)
		return errs
	}
	note(d.Steer(1))
	return errs
}

// has reports whether the kernel knows a classifier, by adding one without
// actions to a throw-away ifb.
func (k *kernel) has(classifier string) bool {
	const name = "xlftprobe"
	la := netlink.NewLinkAttrs()
	la.Name = name
	if err := k.h.LinkAdd(&netlink.Ifb{LinkAttrs: la}); err != nil {
		return false
	}
	l, err := k.h.LinkByName(name)
	if err != nil {
		return false
	}
	defer k.h.LinkDel(l)
	d := &device{k: k, vif: l}
	if err := k.addQdisc(d); err != nil {
		return false
	}
	f := &netlink.GenericFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 1, Protocol: unix.ETH_P_ALL},
		FilterType:  classifier,
	}
	return !errors.Is(k.h.FilterAdd(f), unix.ENOENT)
}
