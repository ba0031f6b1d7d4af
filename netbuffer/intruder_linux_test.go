package netbuffer

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// An intruder is what some other program puts at the ingress of vif901.0.
type intruder struct {
	name  string
	words string // how it is named
	enter func(t *testing.T, vif netlink.Link)
}

var intruders = []intruder{
	{"tc filter", "ingress u32 filter with priority 7", func(t *testing.T, vif netlink.Link) {
		err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: vif.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
		enter(t, netlink.FilterAdd(&netlink.U32{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: vif.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 7, Protocol: unix.ETH_P_ALL},
			Actions:     []netlink.Action{&netlink.MirredAction{ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_PIPE}, MirredAction: netlink.TCA_EGRESS_MIRROR, Ifindex: vif.Attrs().Index}},
		}))
	}},
	{"tcx program", "tcx program watcher (id ", func(t *testing.T, vif netlink.Link) {
		attr := struct{ ifindex, fd, attachType, flags uint32 }{uint32(vif.Attrs().Index), uint32(loadProgram(t, bpfSchedCls, 0)), unix.BPF_TCX_INGRESS, 0}
		_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		enter(t, err)
	}},
	{"XDP program", "XDP program watcher (id ", func(t *testing.T, vif netlink.Link) {
		const skbMode = 1 << 1 // XDP_FLAGS_SKB_MODE
		enter(t, netlink.LinkSetXdpFdWithFlags(vif, loadProgram(t, bpfXDP, 2), skbMode))
	}},
	{"nftables netdev chain", "nftables ingress chain in of table netdev antispoof", func(t *testing.T, vif netlink.Link) {
		addChain(t, unix.NFPROTO_NETDEV, netdevIngress, vif.Attrs().Name, false)
	}},
	{"nftables netdev chain of many devices", "nftables ingress chain in of table netdev antispoof", func(t *testing.T, vif netlink.Link) {
		addChain(t, unix.NFPROTO_NETDEV, netdevIngress, vif.Attrs().Name, true)
	}},
	{"nftables inet chain", "nftables ingress chain in of table inet antispoof", func(t *testing.T, vif netlink.Link) {
		addChain(t, unix.NFPROTO_INET, inetIngress, vif.Attrs().Name, false)
	}},
}

// enter skips where the kernel lacks what an intruder needs.
func enter(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Types of BPF programs: linux/bpf.h.
const bpfSchedCls, bpfXDP = 3, 6

// loadProgram loads a BPF program that returns a number.
func loadProgram(t *testing.T, typ uint32, ret int32) (fd int) {
	t.Helper()
	insns := [2]uint64{0xb7 | uint64(uint32(ret))<<32, 0x95} // r0 = ret; exit
	license := append([]byte("GPL"), 0)
	attr := struct {
		typ, count     uint32
		insns, license unsafe.Pointer
		logLevel, size uint32
		log            uint64
		version, flags uint32
		name           [16]byte
	}{typ: typ, count: uint32(len(insns)), insns: unsafe.Pointer(&insns), license: unsafe.Pointer(&license[0])}
	copy(attr.name[:], "watcher")
	r, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		t.Skipf("load a BPF program: %v", err)
	}
	t.Cleanup(func() { unix.Close(int(r)) })
	return int(r)
}

// addChain makes an nftables chain at the hook of an interface, and of lo too if
// it is to be one of many devices.
func addChain(t *testing.T, family byte, hook uint32, ifname string, many bool) {
	t.Helper()
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		t.Skip(err)
	}
	defer s.Close()
	request := func(typ, flags int, family byte, subsys uint16, attrs ...*nl.RtAttr) []byte {
		req := nl.NewNetlinkRequest(typ, flags)
		req.AddRawData(binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, subsys))
		for _, a := range attrs {
			req.AddRawData(a.Serialize())
		}
		return req.Serialize()
	}
	h := nl.NewRtAttr(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, nil)
	h.AddRtAttr(unix.NFTA_HOOK_HOOKNUM, binary.BigEndian.AppendUint32(nil, hook))
	h.AddRtAttr(unix.NFTA_HOOK_PRIORITY, binary.BigEndian.AppendUint32(nil, 0))
	if many {
		devs := h.AddRtAttr(nftaHookDevs|unix.NLA_F_NESTED, nil)
		devs.AddRtAttr(nftaDeviceName, nl.ZeroTerminated("lo"))
		devs.AddRtAttr(nftaDeviceName, nl.ZeroTerminated(ifname))
	} else {
		h.AddRtAttr(unix.NFTA_HOOK_DEV, nl.ZeroTerminated(ifname))
	}
	const newTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE
	var batch []byte
	batch = append(batch, request(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)...)
	batch = append(batch, request(newTable, unix.NLM_F_CREATE, family, 0,
		nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated("antispoof")))...)
	batch = append(batch, request(nftNewChain, unix.NLM_F_CREATE|unix.NLM_F_ACK, family, 0,
		nl.NewRtAttr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated("antispoof")), nl.NewRtAttr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated("in")),
		h, nl.NewRtAttr(unix.NFTA_CHAIN_TYPE, nl.ZeroTerminated("filter")))...)
	batch = append(batch, request(unix.NFNL_MSG_BATCH_END, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)...)
	if err := unix.Sendto(s.GetFd(), batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	msgs, _, err := s.Receive()
	if err != nil || len(msgs) == 0 || len(msgs[0].Data) < 4 {
		t.Fatalf("answer of nftables: %v, %v", msgs, err)
	}
	if errno := -int32(binary.NativeEndian.Uint32(msgs[0].Data)); errno != 0 {
		enter(t, unix.Errno(errno))
	}
}

// TestOpenRefusesIntruders: Open refuses a vif at which some other program is,
// says which, and leaves nothing behind. A gate that is there says so in Stats.
func TestOpenRefusesIntruders(t *testing.T) {
	for _, i := range intruders {
		t.Run(i.name, func(t *testing.T) {
			inNamespace(t)
			pair(t, "vif901.0", "guest")
			pair(t, "vif902.0", "other")
			c, err := newTC()
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			look := func(name string) error {
				vif, err := c.h.LinkByName(name)
				if err != nil {
					t.Fatal(err)
				}
				fs, err := c.filters(vif)
				return errors.Join(err, foreign(vif, fs), c.hooked(vif))
			}
			if err := errors.Join(look("vif901.0"), Inspect(901, Options{})); err != nil {
				t.Fatalf("before: %v", err)
			}
			vif, err := netlink.LinkByName("vif901.0")
			if err != nil {
				t.Fatal(err)
			}
			i.enter(t, vif)
			_, openErr := Open(901, Options{})
			for what, err := range map[string]error{"open": openErr, "inspect": Inspect(901, Options{}), "a later look": look("vif901.0")} {
				var fe *ForeignError
				if !errors.As(err, &fe) || !errors.Is(err, ErrForeign) || fe.Vif != "vif901.0" || fe.Show == "" || !strings.Contains(fe.What, i.words) {
					t.Errorf("%s: got %v, want a ForeignError with %q", what, err, i.words)
				}
			}
			t.Log(openErr)
			if err := look("vif902.0"); err != nil {
				t.Errorf("the vif beside it: %v", err)
			}
			if ids, err := Stale(); err != nil || len(ids) > 0 {
				t.Errorf("gates left: %v, %v", ids, err)
			}
		})
	}
}

// TestParseChainCut: a message that ends early is no chain of the interface.
func TestParseChainCut(t *testing.T) {
	m := []byte{unix.NFPROTO_NETDEV, 0, 0, 0}
	h := nl.NewRtAttr(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, nil)
	h.AddRtAttr(unix.NFTA_HOOK_HOOKNUM, []byte{0, 0, 0, netdevIngress})
	devs := h.AddRtAttr(nftaHookDevs|unix.NLA_F_NESTED, nil)
	devs.AddRtAttr(nftaDevicePrefix, []byte("vif90"))
	m = append(m, h.Serialize()...)
	for n := range m {
		if name, ok := parseChain(m[:n], "vif901.0"); ok {
			t.Errorf("%d of %d bytes: %q", n, len(m), name)
		}
	}
	if _, ok := parseChain(m, "vif901.0"); !ok {
		t.Error("the prefix of its name is not seen")
	}
	if _, ok := parseChain(m, "vif801.0"); ok {
		t.Error("another interface's prefix is taken for its own")
	}
}
