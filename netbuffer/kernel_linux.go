package netbuffer

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernel is the host of a real gate. It works in the network namespace that the
// calling thread had when it was made.
type kernel struct {
	*tc
	domid uint32
	opts  Options
	all   map[*vif]*device
	taps  *taps

	watch int            // socket on which the kernel reports changes of links
	fresh map[int]string // interfaces of the domain without a gate, by index
}

func newKernel(domid uint32, opts Options) (*kernel, error) {
	t, err := newTC()
	if err != nil {
		return nil, err
	}
	watch, err := watchLinks()
	if err != nil {
		t.close()
		return nil, fmt.Errorf("netbuffer: watch links: %w", err)
	}
	return &kernel{tc: t, domid: domid, opts: opts, all: map[*vif]*device{}, taps: newTaps(opts.Watch), watch: watch, fresh: map[int]string{}}, nil
}

func (k *kernel) close() error {
	for _, d := range k.all {
		d.unlisten()
	}
	k.taps.close()
	k.tc.close()
	return unix.Close(k.watch)
}

// Open finds the vifs of a domain and builds the gate of each, or adopts the
// gate that an earlier process left. Packets go through the gate but are not
// held before the first Seal, unless the earlier process left the gate holding:
// then it still holds, Holding says adopted, and Seal and Drain return
// ErrAdopted until ReleaseAll; Discard works.
//
// The vifs of a domain are the interfaces named vif<domid>.<n>; those that
// sysfs knows as the domain's though they were renamed (vifname= in xl.cfg);
// the taps vif<domid>.<n>-emu of emulated interfaces; and Options.Vifs. A
// domain without any has an empty gate.
//
// Errors: an UnsupportedError if the kernel lacks something, a ForeignError if
// some other program has tc filters, tcx or XDP programs, or nftables chains at
// the ingress of a vif that has no gate yet, ErrNoVif for Options.Vifs and
// Options.Devices. What came to stand beside a gate that is there is told by
// Stats.
func Open(domid uint32, opts Options) (*Gate, error) {
	return open(domid, opts, false)
}

// open is Open. With onlyFound it adopts gates and builds none.
func open(domid uint32, opts Options, onlyFound bool) (*Gate, error) {
	k, err := newKernel(domid, opts)
	if err != nil {
		return nil, err
	}
	if onlyFound {
		k.taps.best = Polling // it ends at once
	}
	g := newGate(opts, k)
	if err := k.adoptOrBuild(g, onlyFound); err != nil {
		return nil, errors.Join(err, g.undo(k), k.close())
	}
	return g, nil
}

// undo removes what this Open made, and leaves what it found.
func (g *Gate) undo(k *kernel) error {
	g.vifs = slices.DeleteFunc(g.vifs, func(v *vif) bool { return !k.all[v].made })
	if g.holding {
		return nil // a gate that holds stays
	}
	var errs error
	for _, v := range g.vifs {
		errs = errors.Join(errs, k.bypass(v))
	}
	if errs == nil {
		errs = g.settle(time.Millisecond)
	}
	for _, v := range g.vifs {
		errs = errors.Join(errs, k.destroy(v))
	}
	return errs
}

// adoptOrBuild fills the gate with the vifs of the domain: those of a gate that
// an earlier process left, vanished ones too, and new ones.
func (k *kernel) adoptOrBuild(g *Gate, onlyFound bool) error {
	links, err := k.links()
	if err != nil {
		return err
	}
	interfaces, err := k.domainVifs(links)
	if err != nil {
		return err
	}
	ifbs := map[string]netlink.Link{}
	for _, l := range links {
		if domainOf(l.Attrs().Name) == fmt.Sprint(k.domid) && l.Type() == "ifb" {
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

	// If one vif holds, all are adopted as holding: the most careful state.
	for _, ifb := range ifbs {
		if aliasOf(ifb.Attrs().Alias).holding {
			g.adopt()
		}
	}
	if !g.holding { // packets that wait have to be decided on first
		if err := k.missingDevices(interfaces); err != nil {
			return err
		}
	}
	for _, link := range interfaces {
		name, err := ifbFor(k.domid, link.Attrs().Name, link.Attrs().Index)
		if err != nil {
			return err
		}
		found := take(name)
		if found == [2]netlink.Link{} && onlyFound {
			continue
		}
		v, err := k.build(link, found, name, g.holding)
		if v != nil {
			g.vifs = append(g.vifs, v) // for undo
		}
		if err != nil {
			return err
		}
	}
	// The remaining ifbs belong to interfaces that are gone.
	for len(ifbs) > 0 {
		var name string
		for name = range ifbs {
			break
		}
		name = name[:len(name)-1]
		d := &device{tc: k.tc, ifb: take(name)}
		v := newVif(Vif{Name: name, Path: d}, k.opts)
		v.gone = true
		for _, ifb := range d.ifb {
			if ifb != nil && aliasOf(ifb.Attrs().Alias).vif != "" {
				v.Name = aliasOf(ifb.Attrs().Alias).vif
			}
		}
		k.all[v] = d
		g.vifs = append(g.vifs, v)
	}
	slices.SortFunc(g.vifs, func(a, b *vif) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// domainVifs picks the domain's interfaces.
func (k *kernel) domainVifs(links []netlink.Link) ([]netlink.Link, error) {
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
	var errs error
	for name := range missing {
		errs = errors.Join(errs, &NoVifError{name})
	}
	return found, errs
}

// Inspect returns every reason why Open would refuse the vifs of a domain,
// joined: each a ForeignError, or ErrNoVif. It changes nothing, and a gate that
// is there already is no reason.
func Inspect(domid uint32, opts Options) error {
	k, err := newKernel(domid, opts)
	if err != nil {
		return err
	}
	defer k.close()
	links, err := k.links()
	if err != nil {
		return err
	}
	vifs, err := k.domainVifs(links)
	err = errors.Join(err, k.missingDevices(vifs))
	for _, link := range vifs {
		if _, ferr := k.free(link); ferr != nil {
			err = errors.Join(err, ferr)
		}
	}
	return err
}

// free returns the tc filters of an interface that was just read, if no other
// program is in the way of a gate there.
func (k *kernel) free(link netlink.Link) ([]netlink.Filter, error) {
	filters, err := k.filters(link)
	if err == nil {
		err = foreign(link, filters)
	}
	if err == nil {
		err = k.hooked(link)
	}
	var fe *ForeignError
	if err != nil && !errors.As(err, &fe) {
		err = fmt.Errorf("netbuffer: hold output of %s: look what is there: %w", link.Attrs().Name, err)
	}
	return filters, err
}

// build makes the gate of one interface, or the missing parts of it: found are
// the ifbs that exist, name is their common name. The order of the steps is
// such that a crash at any point leaves no packets held without an alias that
// says so. With an error, v is the part that was built, or nil.
func (k *kernel) build(link netlink.Link, found [2]netlink.Link, name string, holding bool) (v *vif, err error) {
	fail := func(what string, err error) (*vif, error) {
		return v, fmt.Errorf("netbuffer: hold output of %s: %s: %w", link.Attrs().Name, what, err)
	}
	filters, err := k.free(link)
	if errors.Is(err, ErrForeign) && found != [2]netlink.Link{} {
		err = nil // packets may wait in that gate, and have to be decided on
	}
	if err != nil {
		return nil, err
	}

	d := &device{tc: k.tc, vif: link, made: found == [2]netlink.Link{}}
	v = newVif(Vif{Name: link.Attrs().Name, Path: d}, k.opts)
	k.all[v] = d
	for i, ifb := range found {
		if ifb == nil {
			if ifb, err = k.makeIfb(suffix(name, i), link.Attrs().MTU); err != nil {
				return fail("make ifb", err)
			}
		}
		d.ifb[i] = ifb
		d.ownQdisc = d.ownQdisc || aliasOf(ifb.Attrs().Alias).ownQdisc
		if err := d.makePlug(i, k.opts.ceiling()); err != nil {
			return fail("make plug", err)
		}
		if err := k.h.LinkSetUp(ifb); err != nil {
			return fail("set ifb up", err)
		}
	}

	// A new queue is empty and holds.
	v.ready = found[1] == nil

	// The redirect tells which queue has the running epoch.
	for _, f := range filters {
		if ours(f) && d.has(target(f)) {
			v.Current = slices.IndexFunc(d.ifb[:], func(ifb netlink.Link) bool { return ifb.Attrs().Index == target(f) })
			break
		}
	}
	if !holding {
		if err := v.open(time.Now().Add(k.opts.timeout())); err != nil {
			return fail("open plug", err)
		}
	}
	if err := d.addQdisc(); err != nil {
		return fail("make clsact", err)
	}
	if err := k.remember(v, holding); err != nil {
		return fail("set alias", err)
	}
	if err := d.addFilter(filters, v.Current); err != nil {
		return fail("redirect", err)
	}
	d.listen(k.taps)
	return v, nil
}

func (k *kernel) addVifs(vifs []*vif, holding bool) ([]*vif, error) {
	fresh, err := k.missing(vifs)
	if err != nil {
		return nil, err
	}
	var out []*vif
	for _, link := range fresh {
		name, err := ifbFor(k.domid, link.Attrs().Name, link.Attrs().Index)
		if err != nil {
			return out, err
		}
		// An interface that vanished and came back finds the ifbs of the
		// earlier one. The packets in them have no way out any more.
		for _, v := range vifs {
			if d := k.all[v]; v.gone && d.named(name) {
				if err := k.destroy(v); err != nil {
					return out, err
				}
				d.ifb, v.moved = [2]netlink.Link{}, false
			}
		}
		v, err := k.build(link, [2]netlink.Link{}, name, holding)
		if err != nil {
			if v != nil {
				err = errors.Join(err, k.bypass(v), k.destroy(v))
			}
			return out, err
		}
		delete(k.fresh, link.Attrs().Index)
		out = append(out, v)
	}
	return out, nil
}

func (k *kernel) remember(v *vif, holding bool) error {
	d := k.all[v]
	text := alias{v.Name, holding, d.ownQdisc}.String()
	for _, ifb := range d.ifb {
		if ifb == nil {
			continue
		}
		if err := k.h.LinkSetAlias(ifb, text); err != nil {
			return fmt.Errorf("netbuffer: %s: set alias of %s: %w", v.Name, ifb.Attrs().Name, err)
		}
	}
	return nil
}

func (k *kernel) redirected(v *vif) error {
	d := k.all[v]
	if d.vif == nil {
		return nil
	}
	fs, err := k.filters(d.vif)
	if err != nil {
		return err
	}
	for _, f := range fs {
		if d.redirects(f) {
			v.lost = failed(f)
			return foreign(d.vif, fs)
		}
	}
	if k.vanished(d.vif) {
		return nil
	}
	return ErrBypassed
}

// lookEvery is the time between two looks for programs and chains at a vif. Stats
// is called far more often, for what waits.
const lookEvery = 200 * time.Millisecond

func (k *kernel) alone(v *vif) error {
	d := k.all[v]
	if d.vif == nil {
		return nil
	}
	if time.Since(d.looked) >= lookEvery {
		d.looked, d.beside = time.Now(), k.look(d)
	}
	return d.beside
}

// look looks for programs and chains at a vif.
func (k *kernel) look(d *device) error {
	link, err := k.h.LinkByIndex(d.vif.Attrs().Index)
	switch {
	case err == nil:
		return k.hooked(link)
	case k.vanished(d.vif):
		return nil
	}
	return err
}

func (k *kernel) restore(v *vif, holding bool) (bool, error) {
	if err := k.redirected(v); !errors.Is(err, ErrBypassed) {
		return false, err
	}
	d := k.all[v]
	filters, err := k.filters(d.vif)
	if err != nil {
		return false, err
	}
	if err := foreign(d.vif, filters); err != nil {
		return false, err
	}
	if err := d.addQdisc(); err != nil {
		return false, err
	}
	if err := k.remember(v, holding); err != nil { // the clsact may be ours now
		return false, err
	}
	return true, d.addFilter(filters, v.Current)
}

func (k *kernel) bypass(v *vif) error {
	d := k.all[v]
	if d.vif == nil {
		return nil
	}
	fs, err := k.filters(d.vif)
	if err != nil {
		return err
	}
	for _, f := range fs {
		if ours(f) {
			if err := k.h.FilterDel(f); err != nil && !gone(err) {
				return fmt.Errorf("end redirect: %w", err)
			}
		}
	}
	if !d.ownQdisc || !k.hasQdisc(d.vif) {
		return nil
	}
	// We made it, but other programs may use it by now.
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

func (k *kernel) destroy(v *vif) error {
	var errs error
	k.all[v].unlisten()
	for _, ifb := range k.all[v].ifb {
		if ifb == nil {
			continue
		}
		if err := k.h.LinkDel(ifb); err != nil && !gone(err) {
			errs = errors.Join(errs, fmt.Errorf("remove %s: %w", ifb.Attrs().Name, err))
		}
	}
	return errs
}

// Stale returns the domains that have gates in this network namespace, whether
// a process uses them or died. They are in rising order.
func Stale() ([]uint32, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("netbuffer: list links: %w", err)
	}
	var domids []uint32
	for _, l := range links {
		if l.Type() != "ifb" {
			continue
		}
		if id, err := strconv.ParseUint(domainOf(l.Attrs().Name), 10, 32); err == nil {
			domids = append(domids, uint32(id))
		}
	}
	slices.Sort(domids)
	return slices.Compact(domids), nil
}

// Cleanup removes the gate of a domain that an earlier process left. It lets
// out the packets in the gate, or drops them if drop is set. Let them out only
// if the arbiter awarded the domain to this host.
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
