package netbuffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watchLinks opens a socket on which the kernel reports changes of links.
func watchLinks() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// added reads what the kernel reported of links since the last call. It asks the
// kernel nothing, for the domain's pause, unless reports were lost.
func (k *kernel) added(vifs []*vif) ([]string, error) {
	buf := make([]byte, 1<<16)
	lost := false
	for {
		n, _, err := unix.Recvfrom(k.watch, buf, 0)
		if err == unix.EAGAIN {
			break
		}
		if err == unix.EINTR {
			continue
		}
		if err == unix.ENOBUFS {
			lost = true
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("netbuffer: watch links: %w", err)
		}
		if lost {
			continue // the end of an interface may be among what was lost
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, fmt.Errorf("netbuffer: watch links: %w", err)
		}
		for _, m := range msgs {
			if c, ok := parseLink(m.Header.Type, m.Data); ok {
				k.note(c, vifs)
			}
		}
	}
	if lost {
		if _, err := k.missing(vifs); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Values(k.fresh)), nil
}

// A linkChange is the kernel's report of an interface.
type linkChange struct {
	index int
	name  string
	gone  bool // deleted, or moved
	moved bool // to another network namespace
}

// parseLink reads an RTM_NEWLINK or RTM_DELLINK message without the header of
// netlink: struct ifinfomsg (linux/rtnetlink.h), 16 bytes, and attributes. ok is
// false for other messages, such as those of bridges about their ports.
func parseLink(typ uint16, m []byte) (c linkChange, ok bool) {
	const ifinfomsgLen = 16
	if typ != unix.RTM_NEWLINK && typ != unix.RTM_DELLINK || len(m) < ifinfomsgLen || m[0] != unix.AF_UNSPEC {
		return c, false
	}
	attrs := m[ifinfomsgLen:]
	c.index = int(int32(binary.NativeEndian.Uint32(m[4:])))
	c.name = text(attr(attrs, unix.IFLA_IFNAME))
	c.gone = typ == unix.RTM_DELLINK
	c.moved = c.gone && attr(attrs, unix.IFLA_NEW_NETNSID) != nil
	return c, c.name != ""
}

// note takes a change over.
func (k *kernel) note(c linkChange, vifs []*vif) {
	for _, v := range vifs {
		d := k.all[v]
		if d.vif == nil || d.vif.Attrs().Index != c.index {
			continue
		}
		if c.gone {
			d.vif, v.gone, v.moved = nil, true, c.moved
		}
		return
	}
	if c.gone {
		delete(k.fresh, c.index)
	} else if domid, _ := ownerOf(c.name); domid == fmt.Sprint(k.domid) {
		k.fresh[c.index] = c.name
	}
}

// links lists the links, again if any changed meanwhile.
func (t *tc) links() (links []netlink.Link, err error) {
	for range 10 {
		links, err = t.h.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("netbuffer: list links: %w", err)
	}
	return links, nil
}

// missing lists the links. It returns interfaces of the domain that the gate
// does not have, and marks the vifs whose interface is gone.
func (k *kernel) missing(vifs []*vif) ([]netlink.Link, error) {
	links, err := k.links()
	if err != nil {
		return nil, err
	}
	opts := k.opts
	defer func() { k.opts = opts }()
	k.opts.Vifs = nil // one of them may be gone by now
	found, err := k.domainVifs(links)
	if err != nil {
		return nil, err
	}
	there := map[int]bool{}
	for _, l := range links {
		there[l.Attrs().Index] = true
	}
	gated := map[int]bool{}
	for _, v := range vifs {
		d := k.all[v]
		if d.vif == nil {
			continue
		}
		if !there[d.vif.Attrs().Index] {
			d.vif, v.gone = nil, true
			continue
		}
		gated[d.vif.Attrs().Index] = true
	}
	found = slices.DeleteFunc(found, func(v netlink.Link) bool { return gated[v.Attrs().Index] })
	clear(k.fresh)
	for _, v := range found {
		k.fresh[v.Attrs().Index] = v.Attrs().Name
	}
	return found, nil
}

// missingDevices refuses a domain with a network device, of Options.Devices,
// that has no interface here.
func (k *kernel) missingDevices(vifs []netlink.Link) error {
	var errs error
	for _, n := range k.opts.Devices {
		if !slices.ContainsFunc(vifs, func(l netlink.Link) bool { return numberOf(l.Attrs().Name) == n }) {
			errs = errors.Join(errs, &NoVifError{fmt.Sprintf("vif%d.%d", k.domid, n)})
		}
	}
	return errs
}
