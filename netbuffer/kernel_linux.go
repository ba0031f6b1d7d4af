package netbuffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// ifbPrefix starts the names of our ifbs: xlft<domid>.<vif>a and b, with an
	// e before that for the tap of an emulated interface. The longest,
	// xlft32751.9999a, fits IFNAMSIZ.
	ifbPrefix = "xlft"

	// plugHandle is the handle of our root qdisc, filterHandle that of our
	// filter; with it we know our own filter again.
	plugHandle   = 0x786c << 16
	filterHandle = 0x786c6674

	filterPriority = 1

	// actionIndex plus the index of a vif's first ifb is the index of its
	// mirred action. The kernel counts up from 1 for those who don't choose: if
	// the vif vanishes under a Steer, no action of somebody else is hit.
	actionIndex = 0x78000000

	// ifbQueueLen is how many packets an ifb takes before it tells the qdisc
	// to wait (it drops none). With 0 it would stop after every packet.
	ifbQueueLen = 1024

	plugLimit Action = 3 // TCQ_PLUG_LIMIT
)

var (
	vifName = regexp.MustCompile(`^vif(\d+)\.(\d+)(-emu)?$`)
	sysName = regexp.MustCompile(`^vif-(\d+)-(\d+)$`)
	ifbName = regexp.MustCompile(`^` + ifbPrefix + `(\d+)\.(\d+e?|x[0-9a-f]+)([ab])$`)
)

// kernel is the host of a real gate. It talks to the network namespace that
// the calling thread had when it was made.
type kernel struct {
	domid uint32
	opts  Options
	h     *netlink.Handle
	socks map[int]*nl.SocketHandle
	all   map[*line]*device

	watch   int  // socket that hears of changes to links
	changed bool // since the links were last looked at
}

// device is what stands behind a line. It is the kernel's Path.
type device struct {
	k        *kernel
	vif      netlink.Link    // nil if it vanished
	ifb      [2]netlink.Link // nil where one is missing of a vif that is gone
	action   uint32          // index of the mirred action that steers
	ownQdisc bool            // we made the clsact
	made     bool            // the ifbs are new
}

func newKernel(domid uint32, opts Options) (*kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netbuffer: open netlink: %w", err)
	}
	k := &kernel{domid: domid, opts: opts, h: h, watch: -1, all: map[*line]*device{}}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		k.close()
		return nil, fmt.Errorf("netbuffer: open netlink: %w", err)
	}
	k.socks = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}

	k.watch, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err == nil {
		err = unix.Bind(k.watch, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK})
	}
	if err != nil {
		k.close()
		return nil, fmt.Errorf("netbuffer: watch links: %w", err)
	}
	return k, nil
}

func (k *kernel) close() error {
	k.h.Close()
	if s := k.socks[unix.NETLINK_ROUTE]; s != nil {
		s.Close()
	}
	if k.watch >= 0 {
		return unix.Close(k.watch)
	}
	return nil
}

// Open finds the vifs of a domain and builds the gate of each, or finds the
// one that an earlier process left. Packets go through it but are not held
// before the first Seal, unless the gate was left holding: then it still
// holds, is Adopted, and only Abandon and Discard are allowed at first.
//
// Found are interfaces named vif<domid>.<n>, those which sysfs knows as this
// domain's though they were renamed (vifname= in xl.cfg), the taps
// vif<domid>.<n>-emu of emulated interfaces, which are gated like the others,
// and Options.Vifs. A domain without any has an empty gate.
func Open(domid uint32, opts Options) (*Gate, error) {
	return open(domid, opts, false)
}

func open(domid uint32, opts Options, onlyFound bool) (*Gate, error) {
	k, err := newKernel(domid, opts)
	if err != nil {
		return nil, err
	}
	g := &Gate{opts: opts, host: k}
	if err := k.fill(g, onlyFound); err != nil {
		return nil, errors.Join(err, g.undo(k), k.close())
	}
	return g, nil
}

// undo takes away what this Open made, and leaves what it found.
func (g *Gate) undo(k *kernel) error {
	g.lines = slices.DeleteFunc(g.lines, func(l *line) bool { return !k.all[l].made })
	if g.holding {
		return nil // what holds stays
	}
	var errs error
	for _, l := range g.lines {
		errs = errors.Join(errs, k.bypass(l))
	}
	if errs == nil {
		errs = g.settle(time.Millisecond)
	}
	for _, l := range g.lines {
		errs = errors.Join(errs, k.destroy(l))
	}
	return errs
}

func (k *kernel) fill(g *Gate, onlyFound bool) error {
	links, err := k.h.LinkList()
	if err != nil {
		return fmt.Errorf("netbuffer: list links: %w", err)
	}
	vifs, err := k.vifs(links)
	if err != nil {
		return err
	}
	ifbs := map[string]netlink.Link{}
	for _, l := range links {
		if m := ifbName.FindStringSubmatch(l.Attrs().Name); m != nil && m[1] == fmt.Sprint(k.domid) && l.Type() == "ifb" {
			ifbs[l.Attrs().Name] = l
		}
	}
	take := func(name string) (pair [2]netlink.Link) {
		for i := range pair {
			pair[i] = ifbs[suffix(name, i)]
			delete(ifbs, suffix(name, i))
		}
		return pair
	}

	// Any gate that holds makes all of them hold: adopt the most careful state.
	for _, ifb := range ifbs {
		if noteOf(ifb).holding {
			g.holding, g.adopted = true, true
		}
	}
	for _, v := range vifs {
		name, err := k.ifbFor(v)
		if err != nil {
			return err
		}
		found := take(name)
		if found == [2]netlink.Link{} && onlyFound {
			continue
		}
		l, err := k.build(v, found, name, g.holding)
		if l != nil {
			g.lines = append(g.lines, l) // for undo
		}
		if err != nil {
			return err
		}
	}
	// What is left belongs to vifs that are gone.
	for len(ifbs) > 0 {
		var name string
		for name = range ifbs {
			break
		}
		name = name[:len(name)-1]
		d := &device{k: k, ifb: take(name)}
		l := &line{Line: Line{name, d}, gone: true}
		for _, ifb := range d.ifb {
			if ifb != nil && noteOf(ifb).vif != "" {
				l.Name = noteOf(ifb).vif
			}
		}
		k.all[l] = d
		g.lines = append(g.lines, l)
	}
	slices.SortFunc(g.lines, func(a, b *line) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

func suffix(name string, queue int) string { return name + "ab"[queue:queue+1] }

// vifs picks the domain's interfaces.
func (k *kernel) vifs(links []netlink.Link) ([]netlink.Link, error) {
	var found []netlink.Link
	missing := map[string]bool{}
	for _, name := range k.opts.Vifs {
		missing[name] = true
	}
	for _, l := range links {
		name := l.Attrs().Name
		domid, _ := ownerOf(name)
		if missing[name] || domid == fmt.Sprint(k.domid) {
			found = append(found, l)
		}
		delete(missing, name)
	}
	for name := range missing {
		return nil, fmt.Errorf("netbuffer: %s: %w", name, ErrNoVif)
	}
	return found, nil
}

// ownerOf tells the domain and number of a vif, by its name or by the xenbus
// device behind it.
func ownerOf(name string) (domid, vif string) {
	if m := vifName.FindStringSubmatch(name); m != nil {
		if m[3] != "" {
			return m[1], m[2] + "e"
		}
		return m[1], m[2]
	}
	dev, err := os.Readlink(filepath.Join("/sys/class/net", name, "device"))
	if err != nil {
		return "", ""
	}
	if m := sysName.FindStringSubmatch(filepath.Base(dev)); m != nil {
		return m[1], m[2]
	}
	return "", ""
}

func (k *kernel) ifbFor(vif netlink.Link) (string, error) {
	_, n := ownerOf(vif.Attrs().Name)
	if n == "" {
		n = fmt.Sprintf("x%x", vif.Attrs().Index)
	}
	name := fmt.Sprintf("%s%d.%s", ifbPrefix, k.domid, n)
	if len(name)+1 >= unix.IFNAMSIZ {
		return "", fmt.Errorf("netbuffer: %s: name %s of its ifb is too long", vif.Attrs().Name, name)
	}
	return name, nil
}

// A note is what an ifb's alias keeps for the next process.
type note struct {
	vif      string
	holding  bool
	ownQdisc bool
}

func (n note) String() string {
	s := "xlft gate of " + n.vif
	if n.ownQdisc {
		s += ", own clsact"
	}
	if n.holding {
		s += ", holding"
	}
	return s
}

func noteOf(ifb netlink.Link) note {
	s, _ := strings.CutPrefix(ifb.Attrs().Alias, "xlft gate of ")
	parts := strings.Split(s, ", ")
	return note{
		vif:      parts[0],
		ownQdisc: slices.Contains(parts[1:], "own clsact"),
		holding:  slices.Contains(parts[1:], "holding"),
	}
}

// build makes the gate of one vif, or what is missing of it. The order is one
// in which a crash at any point leaves nothing held that nobody knows of.
func (k *kernel) build(vif netlink.Link, found [2]netlink.Link, name string, holding bool) (l *line, err error) {
	fail := func(what string, err error) (*line, error) {
		return l, fmt.Errorf("netbuffer: hold output of %s: %s: %w", vif.Attrs().Name, what, err)
	}
	filters, err := k.filters(vif)
	if err != nil {
		return fail("read filters", err)
	}
	if err := foreign(vif, filters); err != nil {
		return nil, err
	}

	d := &device{k: k, vif: vif, made: found == [2]netlink.Link{}}
	l = &line{Line: Line{vif.Attrs().Name, d}}
	k.all[l] = d
	for i, ifb := range found {
		if ifb == nil {
			if ifb, err = k.makeIfb(suffix(name, i), vif.Attrs().MTU); err != nil {
				return fail("make ifb", err)
			}
		}
		d.ifb[i] = ifb
		d.ownQdisc = d.ownQdisc || noteOf(ifb).ownQdisc
		if err := k.makePlug(d, i); err != nil {
			return fail("make plug", err)
		}
		if err := k.h.LinkSetUp(ifb); err != nil {
			return fail("set ifb up", err)
		}
	}

	// A new queue is empty and holds.
	l.ready = found[1] == nil

	// The redirect says which queue has the running epoch.
	for _, f := range filters {
		if ours(f) && target(f) == d.ifb[1].Attrs().Index {
			l.now = 1
		}
	}
	if !holding {
		if err := l.open(time.Now().Add(k.opts.timeout())); err != nil {
			return fail("open plug", err)
		}
	}
	if err := k.addQdisc(d); err != nil {
		return fail("make clsact", err)
	}
	if err := k.remember(l, holding); err != nil {
		return fail("make note", err)
	}
	if err := k.addFilter(d, filters, l.now); err != nil {
		return fail("redirect", err)
	}
	return l, nil
}

func (k *kernel) makeIfb(name string, mtu int) (netlink.Link, error) {
	la := netlink.NewLinkAttrs()
	la.Name, la.MTU, la.TxQLen = name, mtu, ifbQueueLen
	if err := k.h.LinkAdd(&netlink.Ifb{LinkAttrs: la}); err != nil {
		return nil, unsupported("ifb device", "ifb", err)
	}
	ifb, err := k.h.LinkByName(name)
	if err != nil {
		return nil, err
	}
	// Without an address of its own the ifb stays quiet. If it is not, what the
	// host sends on it waits in the queue and ends in the ifb.
	_ = k.h.LinkSetIP6AddrGenMode(ifb, nl.IN6_ADDR_GEN_MODE_NONE)
	return ifb, nil
}

// makePlug makes the root qdisc, which holds at first, or sets the limit of
// the one that is there.
func (k *kernel) makePlug(d *device, queue int) error {
	flags := 0
	if _, err := d.State(queue); err != nil {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return unsupported("plug qdisc", "sch_plug", k.changePlug(d.ifb[queue], plugLimit, k.opts.limit(), flags))
}

// addQdisc makes sure that the vif has a place for ingress filters.
func (k *kernel) addQdisc(d *device) error {
	qs, err := k.h.QdiscList(d.vif)
	if err != nil {
		return err
	}
	for _, q := range qs {
		if q.Attrs().Parent == netlink.HANDLE_INGRESS {
			if q.Attrs().IngressBlock != nil {
				return &ForeignError{d.vif.Attrs().Name, "filter block"}
			}
			return nil
		}
	}
	err = k.h.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
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

func (k *kernel) hasQdisc(vif netlink.Link) bool {
	qs, err := k.h.QdiscList(vif)
	return err == nil && slices.ContainsFunc(qs, func(q netlink.Qdisc) bool {
		return q.Attrs().Parent == netlink.HANDLE_INGRESS
	})
}

func (k *kernel) filter(d *device, queue int) *netlink.MatchAll {
	return &netlink.MatchAll{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: d.vif.Attrs().Index,
			Handle:    filterHandle,
			Parent:    netlink.HANDLE_MIN_INGRESS,
			Priority:  filterPriority,
			Protocol:  unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Index: actionIndex | d.ifb[0].Attrs().Index, Action: netlink.TC_ACT_STOLEN},
			MirredAction: netlink.TCA_EGRESS_REDIR,
			Ifindex:      d.ifb[queue].Attrs().Index,
		}},
	}
}

// addFilter redirects the vif to a queue, unless it already is, and notes
// which action does it.
func (k *kernel) addFilter(d *device, filters []netlink.Filter, queue int) error {
	for _, f := range filters {
		if !ours(f) {
			continue
		}
		if r := redirect(f); r != nil && d.has(r.Ifindex) {
			d.action = uint32(r.Index)
			return nil
		}
		// Left by a gate whose ifb is gone: it drops everything.
		if err := k.h.FilterDel(k.filter(d, queue)); err != nil {
			return err
		}
	}
	err := k.h.FilterAdd(k.filter(d, queue))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		if k.has("matchall") {
			return unsupported("mirred action", "act_mirred", err)
		}
		return unsupported("matchall classifier", "cls_matchall", err)
	}
	d.action = uint32(actionIndex | d.ifb[0].Attrs().Index)
	return err
}

func (d *device) has(ifindex int) bool {
	for _, ifb := range d.ifb {
		if ifb != nil && ifb.Attrs().Index == ifindex {
			return true
		}
	}
	return false
}

func (k *kernel) filters(vif netlink.Link) ([]netlink.Filter, error) {
	fs, err := k.h.FilterList(vif, netlink.HANDLE_MIN_INGRESS)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // no ingress qdisc
	}
	return fs, err
}

func ours(f netlink.Filter) bool {
	return f.Type() == "matchall" && f.Attrs().Handle == filterHandle
}

func redirect(f netlink.Filter) *netlink.MirredAction {
	if m, ok := f.(*netlink.MatchAll); ok && len(m.Actions) == 1 {
		if r, ok := m.Actions[0].(*netlink.MirredAction); ok {
			return r
		}
	}
	return nil
}

func target(f netlink.Filter) int {
	if r := redirect(f); r != nil {
		return r.Ifindex
	}
	return 0
}

// foreign refuses a vif that somebody else filters. Our redirect has to come
// first, or a filter before it could let packets pass; and a packet that comes
// back from the ifb is not classified again, so a filter behind it would never
// see one.
func foreign(vif netlink.Link, filters []netlink.Filter) error {
	for _, f := range filters {
		// A dump shows a classifier without filters as handle 0.
		if !ours(f) && f.Attrs().Handle != 0 {
			return &ForeignError{vif.Attrs().Name, fmt.Sprintf("%s filter with priority %d", f.Type(), f.Attrs().Priority)}
		}
	}
	return nil
}

// Change is Path's.
func (d *device) Change(queue int, a Action) error {
	if d.ifb[queue] == nil {
		return nil
	}
	if err := d.k.changePlug(d.ifb[queue], a, 0, 0); err != nil {
		return fmt.Errorf("%v: %w", a, err)
	}
	return nil
}

// Steer is Path's. It replaces the target of the mirred action: the kernel
// swaps a pointer, so each packet goes to one queue or the other.
func (d *device) Steer(queue int) error {
	if d.vif == nil {
		return nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWACTION, unix.NLM_F_ACK|unix.NLM_F_REPLACE)
	req.Sockets = d.k.socks
	req.AddRawData(make([]byte, 4)) // struct tcamsg, all zero
	tab := nl.NewRtAttr(nl.TCA_ACT_TAB, nil)
	act := tab.AddRtAttr(1, nil)
	act.AddRtAttr(nl.TCA_ACT_KIND, nl.ZeroTerminated("mirred"))
	parms := nl.TcMirred{Eaction: int32(netlink.TCA_EGRESS_REDIR), Ifindex: uint32(d.ifb[queue].Attrs().Index)}
	parms.Index, parms.Action = d.action, int32(netlink.TC_ACT_STOLEN)
	act.AddRtAttr(nl.TCA_ACT_OPTIONS, nil).AddRtAttr(nl.TCA_MIRRED_PARMS, parms.Serialize())
	req.AddRawData(tab.Serialize())
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("steer: %w", err)
	}
	return nil
}

// Empty is Path's. It compares what came into the ifb with what it handed on.
func (d *device) Empty(queue int) (bool, error) {
	if d.ifb[queue] == nil {
		return true, nil
	}
	st, err := d.State(queue)
	if err != nil || st.Packets > 0 {
		return false, err
	}
	ifb, err := d.k.h.LinkByIndex(d.ifb[queue].Attrs().Index)
	if err != nil {
		return false, fmt.Errorf("read ifb: %w", err)
	}
	s := ifb.Attrs().Statistics
	return s == nil || s.RxPackets-s.RxDropped == s.TxPackets, nil
}

func (k *kernel) request(typ, flags int, ifb netlink.Link) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(typ, flags)
	req.Sockets = k.socks
	req.AddData(&nl.TcMsg{
		Family:  nl.FAMILY_ALL,
		Ifindex: int32(ifb.Attrs().Index),
		Handle:  plugHandle,
		Parent:  netlink.HANDLE_ROOT,
	})
	return req
}

// changePlug sends struct tc_plug_qopt { int action; __u32 limit; }.
func (k *kernel) changePlug(ifb netlink.Link, a Action, limit uint32, flags int) error {
	req := k.request(unix.RTM_NEWQDISC, flags|unix.NLM_F_ACK, ifb)
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("plug")))
	opt := binary.NativeEndian.AppendUint32(nil, uint32(a))
	opt = binary.NativeEndian.AppendUint32(opt, limit)
	req.AddData(nl.NewRtAttr(nl.TCA_OPTIONS, opt))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// State is Path's. It asks for this one qdisc: a dump would walk all links of
// the host.
func (d *device) State(queue int) (QueueState, error) {
	if d.ifb[queue] == nil {
		return QueueState{}, nil
	}
	// Before Linux 6.5 or so the answer to a get only goes to multicast groups
	// unless an echo is asked for.
	req := d.k.request(unix.RTM_GETQDISC, unix.NLM_F_ACK|unix.NLM_F_ECHO, d.ifb[queue])
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

// parsePlug reads a struct tcmsg and its attributes.
func parsePlug(m []byte) (st QueueState, ok bool) {
	const tcmsgLen = 20
	if len(m) < tcmsgLen {
		return st, false
	}
	attrs, err := nl.ParseRouteAttr(m[tcmsgLen:])
	if err != nil {
		return st, false
	}
	isPlug, hasStats := false, false
	for _, a := range attrs {
		switch a.Attr.Type {
		case nl.TCA_KIND:
			isPlug = nl.BytesToString(a.Value) == "plug"
		case nl.TCA_STATS2:
			stats, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return st, false
			}
			for _, s := range stats {
				ne := binary.NativeEndian
				switch {
				case s.Attr.Type == nl.TCA_STATS_BASIC && len(s.Value) >= 12:
					st.Passed = ne.Uint64(s.Value) // gnet_stats_basic: bytes, packets
				case s.Attr.Type == nl.TCA_STATS_QUEUE && len(s.Value) >= 12:
					// gnet_stats_queue: qlen, backlog, drops, …
					st.Packets = uint64(ne.Uint32(s.Value))
					st.Bytes = uint64(ne.Uint32(s.Value[4:]))
					st.Drops = uint64(ne.Uint32(s.Value[8:]))
					hasStats = true
				}
			}
		}
	}
	return st, isPlug && hasStats
}

// added looks at the links again if the kernel said that any of them changed.
func (k *kernel) added(lines []*line) ([]string, error) {
	buf := make([]byte, 1<<15)
	for {
		_, _, err := unix.Recvfrom(k.watch, buf, 0)
		if err == unix.EAGAIN {
			break
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil && err != unix.ENOBUFS {
			return nil, fmt.Errorf("netbuffer: watch links: %w", err)
		}
		k.changed = true
	}
	if !k.changed {
		return nil, nil
	}
	fresh, err := k.missing(lines)
	if err != nil {
		return nil, err
	}
	k.changed = len(fresh) > 0 // then look again next time
	var names []string
	for _, v := range fresh {
		names = append(names, v.Attrs().Name)
	}
	return names, nil
}

// missing returns vifs without a line and marks lines whose vif is gone.
func (k *kernel) missing(lines []*line) ([]netlink.Link, error) {
	links, err := k.h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("netbuffer: list links: %w", err)
	}
	opts := k.opts
	defer func() { k.opts = opts }()
	k.opts.Vifs = nil // one of them may be gone by now
	vifs, err := k.vifs(links)
	if err != nil {
		return nil, err
	}
	there := map[int]bool{}
	for _, l := range links {
		there[l.Attrs().Index] = true
	}
	gated := map[int]bool{}
	for _, l := range lines {
		d := k.all[l]
		if d.vif == nil {
			continue
		}
		if !there[d.vif.Attrs().Index] {
			d.vif, l.gone = nil, true
			continue
		}
		gated[d.vif.Attrs().Index] = true
	}
	return slices.DeleteFunc(vifs, func(v netlink.Link) bool { return gated[v.Attrs().Index] }), nil
}

func (k *kernel) extend(lines []*line, holding bool) ([]*line, error) {
	fresh, err := k.missing(lines)
	if err != nil {
		return nil, err
	}
	var out []*line
	for _, v := range fresh {
		name, err := k.ifbFor(v)
		if err != nil {
			return out, err
		}
		// A vif that left and came back finds the ifb of the one before, with
		// packets in it that have no way out any more.
		for _, l := range lines {
			if d := k.all[l]; l.gone && d.named(name) {
				if err := k.destroy(l); err != nil {
					return out, err
				}
				d.ifb = [2]netlink.Link{}
			}
		}
		l, err := k.build(v, [2]netlink.Link{}, name, holding)
		if err != nil {
			if l != nil {
				err = errors.Join(err, k.bypass(l), k.destroy(l))
			}
			return out, err
		}
		out = append(out, l)
	}
	return out, nil
}

func (d *device) named(name string) bool {
	for i, ifb := range d.ifb {
		if ifb != nil && ifb.Attrs().Name == suffix(name, i) {
			return true
		}
	}
	return false
}

func (k *kernel) remember(l *line, holding bool) error {
	d := k.all[l]
	alias := note{l.Name, holding, d.ownQdisc}.String()
	for _, ifb := range d.ifb {
		if ifb == nil {
			continue
		}
		if err := k.h.LinkSetAlias(ifb, alias); err != nil {
			return fmt.Errorf("netbuffer: %s: note on %s: %w", l.Name, ifb.Attrs().Name, err)
		}
	}
	return nil
}

func (k *kernel) redirected(l *line) error {
	d := k.all[l]
	if d.vif == nil {
		return nil
	}
	fs, err := k.filters(d.vif)
	if err != nil {
		return err
	}
	for _, f := range fs {
		if ours(f) && d.has(target(f)) {
			return foreign(d.vif, fs)
		}
	}
	if _, err := k.h.LinkByIndex(d.vif.Attrs().Index); err != nil {
		return nil // vanished just now
	}
	return ErrBypassed
}

func (k *kernel) bypass(l *line) error {
	d := k.all[l]
	if d.vif == nil {
		return nil
	}
	fs, err := k.filters(d.vif)
	if err != nil {
		return err
	}
	for _, f := range fs {
		if ours(f) {
			if err := k.h.FilterDel(k.filter(d, l.now)); err != nil && !gone(err) {
				return fmt.Errorf("end redirect: %w", err)
			}
		}
	}
	if !d.ownQdisc || !k.hasQdisc(d.vif) {
		return nil
	}
	// It was ours, but others may have come to use it.
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		rest, err := k.h.FilterList(d.vif, parent)
		if err != nil || len(rest) > 0 {
			return nil
		}
	}
	err = k.h.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: d.vif.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}})
	if err != nil && !gone(err) {
		return fmt.Errorf("remove clsact: %w", err)
	}
	return nil
}

func (k *kernel) destroy(l *line) error {
	var errs error
	for _, ifb := range k.all[l].ifb {
		if ifb == nil {
			continue
		}
		if err := k.h.LinkDel(ifb); err != nil && !gone(err) {
			errs = errors.Join(errs, fmt.Errorf("remove %s: %w", ifb.Attrs().Name, err))
		}
	}
	return errs
}

func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}

// Stale returns the domains that have gates in this network namespace, in use
// or left by a process that died.
func Stale() ([]uint32, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("netbuffer: list links: %w", err)
	}
	var domids []uint32
	for _, l := range links {
		m := ifbName.FindStringSubmatch(l.Attrs().Name)
		if m == nil || l.Type() != "ifb" {
			continue
		}
		if id, err := strconv.ParseUint(m[1], 10, 32); err == nil {
			domids = append(domids, uint32(id))
		}
	}
	slices.Sort(domids)
	return slices.Compact(domids), nil
}

// Cleanup removes the gate of a domain that an earlier process left. It lets
// out what is held, or drops it if drop is set: let out only what the arbiter
// awarded to this host.
func Cleanup(domid uint32, opts Options, drop bool) error {
	g, err := open(domid, opts, true)
	if err != nil {
		return err
	}
	if drop {
		return g.Discard()
	}
	return g.Close()
}
