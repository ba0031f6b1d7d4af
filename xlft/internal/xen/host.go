//go:build xen

package xen

// #cgo LDFLAGS: -lxenlight -lxenctrl -lxenguest -lxenstore -lxentoollog
// #include "shim.h"
import "C"

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"xenbits.xenproject.org/git-http/xen.git/tools/golang/xenlight"
)

// LibDir is where libxl keeps files of the domains (XEN_LIB_DIR).
const LibDir = "/var/lib/xen"

// Host stands for libxl, libxc and xenstore of this host.
type Host struct {
	xl  *xenlight.Context
	xch *C.xc_interface
	log *C.xentoollog_logger

	xsmu sync.Mutex
	xs   *C.struct_xs_handle
}

// Open connects to the hypervisor and its tools. It needs root in a dom0.
func Open() (*Host, error) {
	h := &Host{log: C.xlft_logger_new()}
	fail := func(what string, err error) (*Host, error) {
		msg := h.lastErrors()
		h.Close()
		return nil, fmt.Errorf("%s: %w%s (is this a Xen dom0, are you root, is xenstored up?)", what, err, msg)
	}
	var err error
	if h.xch, err = C.xc_interface_open(h.log, h.log, 0); h.xch == nil {
		return fail("open hypervisor", err)
	}
	if h.xs, err = C.xs_open(0); h.xs == nil {
		return fail("open xenstore", err)
	}
	if h.xl, err = xenlight.NewContext(); err != nil {
		return fail("open libxl", err)
	}
	return h, nil
}

// Close closes libxl, libxc and xenstore.
func (h *Host) Close() {
	if h.xl != nil {
		h.xl.Close()
	}
	h.xsmu.Lock()
	if h.xs != nil {
		C.xs_close(h.xs)
		h.xs = nil
	}
	h.xsmu.Unlock()
	if h.xch != nil {
		C.xc_interface_close(h.xch)
	}
	C.xlft_logger_free(h.log)
}

// ctx returns libxl's context inside xenlight's: libxl wants one per process,
// and xenlight's knows how to share SIGCHLD with Go.
func (h *Host) ctx() *C.libxl_ctx {
	f := reflect.ValueOf(h.xl).Elem().FieldByName("ctx")
	return (*C.libxl_ctx)(f.UnsafePointer())
}

// lastErrors returns and clears what libxl and libxc logged, as a suffix for
// an error.
func (h *Host) lastErrors() string {
	c := C.xlft_logger_take(h.log)
	defer C.free(unsafe.Pointer(c))
	if s := C.GoString(c); s != "" {
		return " [" + s + "]"
	}
	return ""
}

// Info asks what this host can do. It asks libxl itself: xenlight's
// GetVersionInfo, GetPhysinfo and DomainInfo store through a nil pointer, at
// least up to Xen 4.17.
func (h *Host) Info() (Info, error) {
	v := C.libxl_get_version_info(h.ctx())
	if v == nil {
		return Info{}, errors.New("ask Xen's version: libxl does not say")
	}
	var p C.libxl_physinfo
	C.libxl_physinfo_init(&p)
	defer C.libxl_physinfo_dispose(&p)
	if rc := C.libxl_get_physinfo(h.ctx(), &p); rc != 0 {
		return Info{}, fmt.Errorf("ask for physical information: %w", xenlight.Error(rc))
	}
	free := uint64(p.free_pages+p.scrub_pages) - uint64(p.outstanding_pages)
	return Info{
		Version:  fmt.Sprintf("%d.%d", v.xen_version_major, v.xen_version_minor),
		FreeKiB:  free * uint64(v.pagesize) / 1024,
		ShadowPV: bool(p.cap_shadow),
		HAP:      bool(p.cap_hap),
		CPUs:     int(p.nr_cpus),
	}, nil
}

// Domains lists the domains, without dom0. It asks Xen and xenstore itself:
// xenlight's ListDomain and DomidToName return nothing if they fail, and a domain
// that is not seen counts as gone.
func (h *Host) Domains() ([]Domain, error) {
	var n C.uint32_t
	infos, err := C.xlft_domains(h.xch, &n)
	if infos == nil {
		return nil, fmt.Errorf("list domains: %w%s", err, h.lastErrors())
	}
	defer C.free(unsafe.Pointer(infos))
	var all []Domain
	for _, d := range unsafe.Slice(infos, n) {
		if d.domain == 0 || d.flags&C.XEN_DOMINF_dying != 0 {
			continue
		}
		name, err := h.xsGet(fmt.Sprintf("/local/domain/%d/name", d.domain))
		if err != nil {
			return nil, fmt.Errorf("name of domain %d: %w", d.domain, err)
		}
		var u [16]byte
		for i, b := range d.handle {
			u[i] = byte(b)
		}
		all = append(all, Domain{uint32(d.domain), name, uuid(u)})
	}
	if n == 0 {
		return nil, errors.New("list domains: Xen lists none, not even dom0")
	}
	return all, nil
}

// Lookup finds a domain by name or id.
func (h *Host) Lookup(name string) (Domain, error) {
	all, err := h.Domains()
	if err != nil {
		return Domain{}, err
	}
	for _, d := range all {
		if d.Name == name {
			return d, nil
		}
	}
	for _, d := range all {
		if strconv.FormatUint(uint64(d.ID), 10) == name {
			return d, nil
		}
	}
	return Domain{}, fmt.Errorf("%w: %q", ErrNoDomain, name)
}

// Config returns the domain's configuration as libxl's JSON.
func (h *Host) Config(domid uint32) (json.RawMessage, error) {
	var rc C.int
	c := C.xlft_config_json(h.ctx(), C.uint32_t(domid), &rc)
	if c == nil {
		return nil, fmt.Errorf("read configuration of domain %d: %w%s", domid, xenlight.Error(rc), h.lastErrors())
	}
	defer C.free(unsafe.Pointer(c))
	return json.RawMessage(strings.TrimSpace(C.GoString(c))), nil
}

// Destroy destroys a domain with its devices. One that is gone is no error.
func (h *Host) Destroy(domid uint32) error {
	if st, _, err := h.state(domid); err == nil && st == C.XLFT_GONE {
		return nil
	}
	if err := h.xl.DomainDestroy(xenlight.Domid(domid)); err != nil {
		return fmt.Errorf("destroy domain %d: %w", domid, err)
	}
	return nil
}

// Pause stops a domain's vCPUs.
func (h *Host) Pause(domid uint32) error {
	if r, err := C.xc_domain_pause(h.xch, C.uint32_t(domid)); r != 0 {
		return fmt.Errorf("pause domain %d: %w%s", domid, err, h.lastErrors())
	}
	return nil
}

// Unpause undoes Pause, and starts a restored domain.
func (h *Host) Unpause(domid uint32) error {
	if r, err := C.xc_domain_unpause(h.xch, C.uint32_t(domid)); r != 0 {
		return fmt.Errorf("unpause domain %d: %w%s", domid, err, h.lastErrors())
	}
	return nil
}

// Rename changes a domain's name.
func (h *Host) Rename(domid uint32, from, to string) error {
	cf, ct := C.CString(from), C.CString(to)
	defer C.free(unsafe.Pointer(cf))
	defer C.free(unsafe.Pointer(ct))
	if rc := C.libxl_domain_rename(h.ctx(), C.uint32_t(domid), cf, ct); rc != 0 {
		return fmt.Errorf("rename domain %d to %s: %w", domid, to, xenlight.Error(rc))
	}
	return nil
}

// Restore makes a domain called name from a checkpointed libxl stream (v2,
// docs/specs/libxl-migration-stream.pandoc) and returns when the stream ends
// after a whole checkpoint. The domain is complete then, and paused.
func (h *Host) Restore(config json.RawMessage, name string, stream *os.File) (uint32, error) {
	cj, cn := C.CString(string(config)), C.CString(name)
	defer C.free(unsafe.Pointer(cj))
	defer C.free(unsafe.Pointer(cn))
	var domid C.uint32_t
	rc := C.xlft_restore(h.ctx(), cj, cn, C.int(stream.Fd()), &domid)
	if rc != 0 {
		return 0, fmt.Errorf("restore %s: %w", name, xenlight.Error(rc))
	}
	return uint32(domid), nil
}

// state asks the hypervisor, for XLFT_xxx and the shutdown reason.
func (h *Host) state(domid uint32) (state C.int, reason int, err error) {
	var r C.int
	state = C.xlft_domain_state(h.xch, C.uint32_t(domid), &r)
	if state < 0 {
		return 0, 0, fmt.Errorf("ask for the state of domain %d: errno %d", domid, -state)
	}
	return state, int(r), nil
}

// XenstoreRead returns what a xenstore node holds; "" if there is none.
func (h *Host) XenstoreRead(path string) string {
	s, _ := h.xsGet(path)
	return s
}

// XenstoreList returns the names of a xenstore node's children.
func (h *Host) XenstoreList(path string) []string {
	cp := C.CString(path)
	defer C.free(unsafe.Pointer(cp))
	h.xsmu.Lock()
	defer h.xsmu.Unlock()
	var n C.uint
	list := C.xs_directory(h.xs, C.XBT_NULL, cp, &n)
	if list == nil {
		return nil
	}
	defer C.free(unsafe.Pointer(list)) // the names are in the same piece
	var names []string
	for _, s := range unsafe.Slice(list, int(n)) {
		names = append(names, C.GoString(s))
	}
	return names
}

// xsGet returns what a xenstore node holds; "" if there is none.
func (h *Host) xsGet(path string) (string, error) {
	cp := C.CString(path)
	defer C.free(unsafe.Pointer(cp))
	h.xsmu.Lock()
	defer h.xsmu.Unlock()
	var n C.uint
	p, err := C.xs_read(h.xs, C.XBT_NULL, cp, &n)
	if p == nil && !errors.Is(err, syscall.ENOENT) {
		return "", fmt.Errorf("read xenstore %s: %w", path, err)
	}
	return take(p, n), nil
}

// take frees what xs_read returned. Of a node that does not exist that is NULL, with the
// length of the answer that says so.
func take(p unsafe.Pointer, n C.uint) string {
	if p == nil {
		return ""
	}
	defer C.free(p)
	return C.GoStringN((*C.char)(p), C.int(n))
}

// xsSwap writes value to a xenstore node if the node holds old. It returns what
// the node held; a node that does not exist holds "".
func (h *Host) xsSwap(path, old, value string) (was string, err error) {
	cp, cv := C.CString(path), C.CString(value)
	defer C.free(unsafe.Pointer(cp))
	defer C.free(unsafe.Pointer(cv))
	h.xsmu.Lock()
	defer h.xsmu.Unlock()
	for {
		t, err := C.xs_transaction_start(h.xs)
		if t == C.XBT_NULL {
			return "", fmt.Errorf("begin xenstore transaction: %w", err)
		}
		var n C.uint
		was = take(C.xs_read(h.xs, t, cp, &n), n)
		if was != old {
			C.xs_transaction_end(h.xs, t, true)
			return was, nil
		}
		C.xs_write(h.xs, t, cp, unsafe.Pointer(cv), C.uint(len(value)))
		ok, err := C.xs_transaction_end(h.xs, t, false)
		if ok {
			return was, nil
		}
		if !errors.Is(err, errAgain) {
			return "", fmt.Errorf("write xenstore %s: %w", path, err)
		}
	}
}
