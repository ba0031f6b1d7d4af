package netbuffer

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check tries whether the kernel has all that a gate needs, on a pair of
// temporary ifbs in a network namespace of its own. It returns an
// UnsupportedError for each missing feature, joined. The kernel loads modules
// by itself if they are installed. Check leaves nothing behind.
func Check(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		// The thread is in the new namespace. It is not unlocked, so it ends
		// with the goroutine, and the namespace with the thread.
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
	t, err := newTC()
	if err != nil {
		return err
	}
	defer t.close()

	link := func(name string) (netlink.Link, error) {
		la := netlink.NewLinkAttrs()
		la.Name = name
		if err := t.h.LinkAdd(&netlink.Ifb{LinkAttrs: la}); err != nil {
			return nil, unsupported("ifb device", "ifb", err)
		}
		return t.h.LinkByName(name)
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
	missing := func(err error) { errs = errors.Join(errs, err) }
	missing(unsupported("plug qdisc", "sch_plug", t.changePlug(ifb, plugLimit, leastCeiling, unix.NLM_F_CREATE|unix.NLM_F_EXCL)))
	d := &device{tc: t, vif: vif, ifb: [2]netlink.Link{ifb, ifb}}
	if err := d.addQdisc(); err != nil {
		missing(err)
		return errs
	}
	if err := d.addFilter(nil, 0); err != nil {
		missing(err)
		return errs
	}
	missing(d.Steer(1))
	return errs
}

// knows reports whether the kernel has a classifier with these actions, by
// adding one to a temporary ifb.
func (t *tc) knows(classifier string, actions ...netlink.Action) bool {
	const name = "xlftprobe"
	la := netlink.NewLinkAttrs()
	la.Name = name
	if err := t.h.LinkAdd(&netlink.Ifb{LinkAttrs: la}); err != nil {
		return false
	}
	l, err := t.h.LinkByName(name)
	if err != nil {
		return false
	}
	defer t.h.LinkDel(l)
	d := &device{tc: t, vif: l}
	if err := d.addQdisc(); err != nil {
		return false
	}
	attrs := netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 1, Protocol: unix.ETH_P_ALL}
	var f netlink.Filter = &netlink.GenericFilter{FilterAttrs: attrs, FilterType: classifier}
	if len(actions) > 0 {
		f = &netlink.MatchAll{FilterAttrs: attrs, Actions: actions}
	}
	return !errors.Is(t.h.FilterAdd(f), unix.ENOENT)
}
