package netbuffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What other programs may have put between a vif and the bridge, in the order in
// which a packet meets it (__netif_receive_skb_core in net/core/dev.c): XDP, tcx,
// tc filters, the ingress hook of nftables. The gate is a tc filter.

// foreign refuses a vif that some other program filters. Our redirect has to
// come first, or a filter before it could let packets pass; and a packet that
// comes back from the ifb is not classified again, so a filter behind the
// redirect would never see one.
func foreign(vif netlink.Link, filters []netlink.Filter) error {
	name := vif.Attrs().Name
	for _, f := range filters {
		// A dump shows a classifier without filters as handle 0.
		if !ours(f) && f.Attrs().Handle != 0 {
			return &ForeignError{name, fmt.Sprintf("ingress %s filter with priority %d", f.Type(), f.Attrs().Priority), "tc filter show dev " + name + " ingress"}
		}
	}
	return nil
}

// hooked refuses a vif that has a program or a chain that is not a tc filter.
// The programs come before the gate and may send packets past it. The chains
// come behind it, and the kernel does not ask them about a packet that comes
// back from the ifb. vif has just been read.
func (t *tc) hooked(vif netlink.Link) error {
	name := vif.Attrs().Name
	if x := vif.Attrs().Xdp; x != nil && x.Attached {
		return &ForeignError{name, "XDP program " + program(x.ProgId), "ip link show dev " + name}
	}
	ids, err := tcxPrograms(vif.Attrs().Index)
	if err != nil {
		return fmt.Errorf("look for tcx programs: %w", err)
	}
	if len(ids) > 0 {
		return &ForeignError{name, "tcx program " + program(ids[0]), "bpftool net show dev " + name}
	}
	chain, err := t.chain(name)
	if err != nil {
		return fmt.Errorf("look for nftables chains: %w", err)
	}
	if chain != "" {
		return &ForeignError{name, "nftables ingress chain " + chain, "nft list ruleset"}
	}
	return nil
}

// bpf is bpf(2). It works in the network namespace of the calling thread.
func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if errno != 0 {
		return r, errno
	}
	return r, nil
}

// tcxPrograms returns the ids of the tcx programs at an interface's ingress, the
// first 16. Kernels before 6.6 have none.
func tcxPrograms(ifindex int) ([]uint32, error) {
	var ids [16]uint32
	// The query of union bpf_attr in linux/bpf.h, up to prog_cnt.
	attr := struct {
		ifindex, attachType, queryFlags, attachFlags uint32
		ids                                          unsafe.Pointer
		count, _                                     uint32
	}{ifindex: uint32(ifindex), attachType: unix.BPF_TCX_INGRESS, ids: unsafe.Pointer(&ids), count: uint32(len(ids))}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	switch {
	case err == nil, errors.Is(err, unix.ENOSPC):
		return ids[:min(int(attr.count), len(ids))], nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // no tcx in this kernel
		return nil, nil
	case errors.Is(err, unix.ENODEV): // the interface vanished
		return nil, nil
	}
	return nil, err
}

// program returns the name and the id of a BPF program.
func program(id uint32) string {
	unnamed := fmt.Sprintf("with id %d", id)
	get := struct{ id, next, flags uint32 }{id: id}
	fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&get), unsafe.Sizeof(get))
	if err != nil {
		return unnamed
	}
	defer unix.Close(int(fd))
	// struct bpf_prog_info in linux/bpf.h, up to the name.
	var info struct {
		_    [64]byte
		name [16]byte
	}
	attr := struct {
		fd, size uint32
		info     unsafe.Pointer
	}{uint32(fd), uint32(unsafe.Sizeof(info)), unsafe.Pointer(&info)}
	if _, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return unnamed
	}
	name, _, _ := bytes.Cut(info.name[:], []byte{0})
	if len(name) == 0 {
		return unnamed
	}
	return fmt.Sprintf("%s (id %d)", name, id)
}

// Attributes and messages of nftables that x/sys/unix lacks or that are
// simpler here: linux/netfilter/nf_tables.h.
const (
	nftGetChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN
	nftNewChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN

	nftaHookDevs     = 4 // NFTA_HOOK_DEVS: the attributes below
	nftaDeviceName   = 1 // NFTA_DEVICE_NAME
	nftaDevicePrefix = 2 // NFTA_DEVICE_PREFIX: of the names of many devices

	netdevIngress = 0 // NF_NETDEV_INGRESS
	inetIngress   = 5 // NF_INET_INGRESS
)

// chain returns the name of an nftables chain at an interface's ingress; "" if
// there is none.
func (t *tc) chain(ifname string) (string, error) {
	if t.socks[unix.NETLINK_NETFILTER] == nil {
		return "", nil // no netfilter in this kernel
	}
	if t.noTables {
		// To ask again would make the kernel look for the module each time.
		if _, err := os.Stat("/sys/module/nf_tables"); err != nil {
			return "", nil
		}
		t.noTables = false
	}
	for _, family := range []byte{unix.NFPROTO_NETDEV, unix.NFPROTO_INET} {
		req := nl.NewNetlinkRequest(nftGetChain, unix.NLM_F_DUMP)
		req.Sockets = t.socks
		req.AddRawData([]byte{family, unix.NFNETLINK_V0, 0, 0}) // struct nfgenmsg
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, nftNewChain)
		for _, m := range msgs {
			if name, ok := parseChain(m, ifname); ok {
				return name, nil
			}
		}
		switch {
		case errors.Is(err, unix.EINVAL): // no nftables in this kernel
			t.noTables = true
			return "", nil
		case errors.Is(err, nl.ErrDumpInterrupted): // chains changed meanwhile; the next look is soon
		case err != nil:
			return "", err
		}
	}
	return "", nil
}

// parseChain reads an NFT_MSG_NEWCHAIN message without the header of netlink: a
// struct nfgenmsg, whose first byte is the family, and attributes. ok is true if
// the chain is at the ingress of the interface.
func parseChain(m []byte, ifname string) (name string, ok bool) {
	if len(m) < 4 {
		return "", false
	}
	attrs := m[4:]
	hook := attr(attrs, unix.NFTA_CHAIN_HOOK)
	num := attr(hook, unix.NFTA_HOOK_HOOKNUM)
	if len(num) != 4 {
		return "", false // no base chain
	}
	var family string
	switch n := binary.BigEndian.Uint32(num); {
	case m[0] == unix.NFPROTO_NETDEV && n == netdevIngress:
		family = "netdev"
	case m[0] == unix.NFPROTO_INET && n == inetIngress:
		family = "inet"
	default:
		return "", false
	}
	ok = text(attr(hook, unix.NFTA_HOOK_DEV)) == ifname
	eachAttr(attr(hook, nftaHookDevs), func(typ uint16, value []byte) bool {
		switch typ {
		case nftaDeviceName:
			ok = ok || text(value) == ifname
		case nftaDevicePrefix:
			ok = ok || bytes.HasPrefix([]byte(ifname), bytes.TrimRight(value, "\x00"))
		}
		return true
	})
	return fmt.Sprintf("%s of table %s %s", text(attr(attrs, unix.NFTA_CHAIN_NAME)), family, text(attr(attrs, unix.NFTA_CHAIN_TABLE))), ok
}

// text returns a string attribute without its NUL.
func text(value []byte) string {
	s, _, _ := bytes.Cut(value, []byte{0})
	return string(s)
}
