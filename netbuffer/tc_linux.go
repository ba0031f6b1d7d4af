package netbuffer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// plugHandle is the handle of our root qdisc.
	plugHandle = 0x786c << 16

	// ifbQueueLen is how many packets an ifb takes before it tells the qdisc
	// to wait (it drops none). With 0 it would stop after every packet.
	ifbQueueLen = 1024
)

// A tc makes ifbs, qdiscs and filters, in the network namespace that the
// calling thread had when newTC opened the sockets.
type tc struct {
	h     *netlink.Handle
	socks map[int]*nl.SocketHandle // for requests that netlink.Handle lacks

	noTables bool // the kernel had no nftables when it was last asked
}

func newTC() (*tc, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netbuffer: open netlink: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("netbuffer: open netlink: %w", err)
	}
	t := &tc{h: h, socks: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}
	if s, err := nl.Subscribe(unix.NETLINK_NETFILTER); err == nil {
		t.socks[unix.NETLINK_NETFILTER] = &nl.SocketHandle{Socket: s}
	} else if !errors.Is(err, unix.EPROTONOSUPPORT) {
		t.close()
		return nil, fmt.Errorf("netbuffer: open netlink of netfilter: %w", err)
	}
	return t, nil
}

func (t *tc) close() {
	t.h.Close()
	for _, s := range t.socks {
		s.Close()
	}
}

// A device is the interface and the ifbs behind a vif: the kernel's Path.
type device struct {
	tc       *tc
	vif      netlink.Link    // nil if it vanished
	ifb      [2]netlink.Link // nil where one is missing of a vif that is gone
	action   uint32          // index of the mirred action that steers
	ownQdisc bool            // we made the clsact
	made     bool            // the ifbs are new

	taps  *taps
	tap   tap   // nil while polling
	noTap error // why it is none, or not the best

	looked time.Time // for programs and chains at the vif
	beside error     // that were found then
}

// makeIfb makes an ifb, down, with a place for a program and without a plug.
func (t *tc) makeIfb(name string, mtu int) (netlink.Link, error) {
	la := netlink.NewLinkAttrs()
	la.Name, la.MTU, la.TxQLen = name, mtu, ifbQueueLen
	if err := t.h.LinkAdd(&netlink.Ifb{LinkAttrs: la}); err != nil {
		return nil, unsupported("ifb device", "ifb", err)
	}
	ifb, err := t.h.LinkByName(name)
	if err != nil {
		return nil, err
	}
	// Without an address of its own the ifb sends nothing. If it gets one,
	// packets that the host sends on the ifb wait in the queue and end there.
	_ = t.h.LinkSetIP6AddrGenMode(ifb, nl.IN6_ADDR_GEN_MODE_NONE)
	// Now or never: if the ifb is up, a new clsact makes the kernel reset its
	// other qdiscs (qdisc_graft in net/sched/sch_api.c), and a plug drops what it
	// holds. That the place is missing shows when it is needed.
	_ = t.h.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifb.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}})
	return ifb, nil
}

// makePlug makes the root qdisc of an ifb, which holds at first, or sets the
// limit, in bytes, of a plug that exists already.
func (d *device) makePlug(queue int, limit uint32) error {
	flags := 0
	if _, err := d.State(queue); err != nil {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return unsupported("plug qdisc", "sch_plug", d.tc.changePlug(d.ifb[queue], plugLimit, limit, flags))
}

// addQdisc makes sure that the vif has a place for ingress filters.
func (d *device) addQdisc() error {
	qs, err := d.tc.h.QdiscList(d.vif)
	if err != nil {
		return err
	}
	for _, q := range qs {
		if q.Attrs().Parent == netlink.HANDLE_INGRESS {
			if q.Attrs().IngressBlock != nil {
				return &ForeignError{d.vif.Attrs().Name, "ingress filter block", "tc qdisc show dev " + d.vif.Attrs().Name}
			}
			return nil
		}
	}
	err = d.tc.h.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: d.vif.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}})
	if err != nil {
		return unsupported("clsact qdisc", "sch_ingress", err)
	}
	d.ownQdisc = true
	return nil
}

// hasQdisc reports whether a vif has a place for ingress filters, or an ifb one
// for a program.
func (t *tc) hasQdisc(link netlink.Link) bool {
	qs, err := t.h.QdiscList(link)
	return err == nil && slices.ContainsFunc(qs, func(q netlink.Qdisc) bool {
		return q.Attrs().Parent == netlink.HANDLE_INGRESS
	})
}

// has reports whether an ifb of the device has this index.
func (d *device) has(ifindex int) bool {
	for _, ifb := range d.ifb {
		if ifb != nil && ifb.Attrs().Index == ifindex {
			return true
		}
	}
	return false
}

// filters returns the ingress filters of an interface, other programs' too.
func (t *tc) filters(vif netlink.Link) ([]netlink.Filter, error) {
	fs, err := t.h.FilterList(vif, netlink.HANDLE_MIN_INGRESS)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // no ingress qdisc
	}
	return fs, err
}

// Change is for Path.
func (d *device) Change(queue int, a Action) error {
	if d.ifb[queue] == nil {
		return nil
	}
	if err := d.tc.changePlug(d.ifb[queue], a, 0, 0); err != nil {
		return fmt.Errorf("%v: %w", a, err)
	}
	return nil
}

// Steer is for Path. It replaces the target of the mirred action: the kernel
// swaps a pointer, so each packet goes to one queue or the other.
//
// If some other program removed the filter, its action is gone too, and the
// kernel makes a new one that no filter uses. So Steer looks at the kernel's
// answer, which says how many filters are bound to the action. For a short time
// after the filter's removal the old action is still there.
func (d *device) Steer(queue int) error {
	if d.vif == nil {
		return nil
	}
	bound, err := d.tc.replaceMirred(d.action, d.ifb[queue].Attrs().Index)
	if err != nil {
		return fmt.Errorf("steer: %w", err)
	}
	if bound > 0 {
		return nil
	}
	if err := d.tc.deleteMirred(d.action); err != nil && !gone(err) {
		return errors.Join(ErrBypassed, err)
	}
	if d.tc.vanished(d.vif) {
		return nil
	}
	return ErrBypassed
}

// Empty is for Path. It compares the packets that the ifb got with those that
// it handed on.
func (d *device) Empty(queue int) (bool, error) {
	if d.ifb[queue] == nil {
		return true, nil
	}
	st, err := d.State(queue)
	if err != nil || st.Packets > 0 {
		return false, err
	}
	ifb, err := d.tc.h.LinkByIndex(d.ifb[queue].Attrs().Index)
	if err != nil {
		return false, fmt.Errorf("read ifb: %w", err)
	}
	s := ifb.Attrs().Statistics
	return s == nil || s.RxPackets-s.RxDropped == s.TxPackets, nil
}

// request returns a request about the root qdisc of an ifb.
func (t *tc) request(typ, flags int, ifb netlink.Link) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(typ, flags)
	req.Sockets = t.socks
	req.AddData(&nl.TcMsg{
		Family:  nl.FAMILY_ALL,
		Ifindex: int32(ifb.Attrs().Index),
		Handle:  plugHandle,
		Parent:  netlink.HANDLE_ROOT,
	})
	return req
}

// changePlug makes, with NLM_F_CREATE, or changes the root qdisc of an ifb.
func (t *tc) changePlug(ifb netlink.Link, a Action, limit uint32, flags int) error {
	req := t.request(unix.RTM_NEWQDISC, flags|unix.NLM_F_ACK, ifb)
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("plug")))
	req.AddData(nl.NewRtAttr(nl.TCA_OPTIONS, plugOptions(a, limit)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// State is for Path. It asks for this one qdisc: a dump would walk all links of
// the host.
func (d *device) State(queue int) (QueueState, error) {
	if d.ifb[queue] == nil {
		return QueueState{}, nil
	}
	// Before Linux 6.5 or so the answer to a get only goes to multicast groups
	// unless an echo is asked for.
	req := d.tc.request(unix.RTM_GETQDISC, unix.NLM_F_ACK|unix.NLM_F_ECHO, d.ifb[queue])
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWQDISC)
	if err != nil {
		return QueueState{}, fmt.Errorf("read queue: %w", err)
	}
	for _, m := range msgs {
		if st, ok := parsePlug(m); ok {
			return st, nil
		}
	}
	return QueueState{}, fmt.Errorf("read queue: no plug qdisc on %s", d.ifb[queue].Attrs().Name)
}

// named reports whether an ifb of the device has this name, with a suffix.
func (d *device) named(name string) bool {
	for i, ifb := range d.ifb {
		if ifb != nil && ifb.Attrs().Name == suffix(name, i) {
			return true
		}
	}
	return false
}

// gone reports whether an error says that the object does not exist.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}

// vanished reports whether an interface is not here any more.
func (t *tc) vanished(link netlink.Link) bool {
	_, err := t.h.LinkByIndex(link.Attrs().Index)
	var none netlink.LinkNotFoundError
	return gone(err) || errors.As(err, &none)
}

// unsupported turns the errors that the kernel returns for an unknown kind of
// link, qdisc, classifier or action into an UnsupportedError.
func unsupported(feature, module string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
		return &UnsupportedError{feature, module, err}
	}
	return err
}
