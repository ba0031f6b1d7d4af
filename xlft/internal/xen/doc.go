// Package xen is the only door to libxl and libxc: it looks domains up,
// suspends, saves, restores and destroys them. It is the only package with cgo
// and the only one that imports xenlight.
//
// The one rule a caller must know: a process has one Host at most, because
// libxl wants one context per process that has children.
//
// Without the build tag xen, Open returns ErrNoXen and nothing else works.
package xen

import (
	"errors"
	"fmt"
)

// ErrNoXen: this binary was built without Xen.
var ErrNoXen = errors.New("this xlft was built without Xen support (build tag xen)")

// ErrNoDomain: no domain of that name or id.
var ErrNoDomain = errors.New("no such domain")

// Domain is a domain as it is listed.
type Domain struct {
	ID   uint32 // domid
	Name string
	UUID string
}

// MaxMemSlack is what libxl lets a domain have beyond its target, in KiB
// (LIBXL_MAXMEM_CONSTANT).
const MaxMemSlack = 1024

// Info is what a host can do.
type Info struct {
	Version  string // "4.17"
	FreeKiB  uint64 // memory that no domain has
	ShadowPV bool   // log-dirty for PV guests (CONFIG_SHADOW_PAGING)
	CPUs     int    // processors; 0: not known
	HAP      bool   // hardware-assisted paging, for PVH and HVM guests
}

// uuid writes a UUID as libxl does (LIBXL_UUID_FMT). xenlight's Uuid.String leaves
// zeroes out.
func uuid(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
