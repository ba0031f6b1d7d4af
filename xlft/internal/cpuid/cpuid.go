// Package cpuid compares what a domain was told of its processor with what a host
// can give a domain.
//
// The one rule a caller must know: Xen itself does not compare. It clips the
// features of a restored domain to what the host has, and refuses vCPU state
// that needs more only when that state is loaded, at the takeover.
package cpuid

import (
	"fmt"
	"slices"
	"strings"

	"xlft/xlft/wire"
)

// register is one of a CPUID leaf's four.
type register int

const (
	eax register = iota
	ebx
	ecx
	edx
)

func (r register) String() string { return [...]string{"eax", "ebx", "ecx", "edx"}[r] }

type names map[int]string

// A word is a register in which each bit is a feature.
type word struct {
	leaf, sub uint32
	reg       register
	names     names
}

// ignored are features that Xen gives a domain on any host, or that are no
// features: they follow the topology, the domain's own settings, or say that
// something is not there.
var ignored = []string{"htt", "cmp_legacy", "hypervisor", "x2apic", "osxsave", "ospke", "itsc", "fdp_excp_only", "no_fpu_sel"}

// copies are the bits of 0x80000001's edx that AMD's processors repeat from leaf 1:
// a domain's policy has them, and that of a host does not.
const copies = 0x0183f3ff

// name returns what a bit is called.
func (w word) name(bit int) string {
	if n, ok := w.names[bit]; ok {
		return n
	}
	return fmt.Sprintf("CPUID %#x,%d %v bit %d", w.leaf, w.sub, w.reg, bit)
}

// Missing is what a host lacks for a domain.
type Missing struct {
	Vendor   string   // of the domain's processor, if the host's is another: "AuthenticAMD"
	Features []string // names
	State    []string // registers that the processor can't save, or keeps elsewhere
	masks    []string
}

// None reports whether nothing is missing.
func (m Missing) None() bool { return m.Vendor == "" && len(m.Features) == 0 && len(m.State) == 0 }

// String says what is missing.
func (m Missing) String() string {
	var parts []string
	if m.Vendor != "" {
		return "the domain's processor is of " + m.Vendor
	}
	if len(m.Features) > 0 {
		parts = append(parts, strings.Join(m.Features, ", "))
	}
	if len(m.State) > 0 {
		parts = append(parts, "state: "+strings.Join(m.State, ", "))
	}
	return strings.Join(parts, "; ")
}

// Mask is the line of an xl configuration that hides the missing features from
// the domain; "" if there is none.
func (m Missing) Mask() string {
	if len(m.masks) == 0 || m.Vendor != "" {
		return ""
	}
	return "cpuid = [ " + strings.Join(m.masks, ", ") + " ]"
}

// xstate are the leaf of the processor's extended state and what its components
// are called (Intel's and AMD's manuals).
const xstate = 0xd

var components = map[int]string{0: "x87", 1: "SSE", 2: "AVX", 3: "MPX bounds", 4: "MPX configuration", 5: "AVX-512 opmask",
	6: "AVX-512 ZMM0 to 15", 7: "AVX-512 ZMM16 to 31", 9: "PKRU", 11: "CET user", 12: "CET supervisor", 17: "AMX configuration", 18: "AMX tiles", 62: "LWP"}

// Compare returns what the host lacks for the domain: both are CPUID leaves as
// Xen has them in a policy, the domain's own and the most that the host can give
// to a domain of the kind.
func Compare(domain, host []wire.CPUIDLeaf) (m Missing) {
	if v := vendor(domain); v != vendor(host) {
		m.Vendor = v
		return m
	}
	for _, w := range words {
		lacks := register32(domain, w) &^ register32(host, w)
		if w.leaf == 0x80000001 && w.reg == edx {
			lacks &^= copies
		}
		mask := []byte(strings.Repeat("x", 32))
		for bit := range 32 {
			if lacks>>bit&1 == 0 || slices.Contains(ignored, w.names[bit]) {
				continue
			}
			m.Features = append(m.Features, w.name(bit))
			mask[31-bit] = '0'
		}
		if bits := string(mask); strings.Contains(bits, "0") {
			leaf := fmt.Sprintf("%#x", w.leaf)
			if w.leaf == 7 || w.leaf == xstate {
				leaf += fmt.Sprintf(",%#x", w.sub)
			}
			m.masks = append(m.masks, fmt.Sprintf("%q", leaf+":"+w.reg.String()+"="+bits))
		}
	}
	m.State = compareState(domain, host)
	return m
}

// compareState compares the components of the extended state: whether the host
// has each, of the same size and at the same place.
func compareState(domain, host []wire.CPUIDLeaf) (lacks []string) {
	need, has := find(domain, xstate, 0), find(host, xstate, 0)
	wants, able := uint64(need.D)<<32|uint64(need.A), uint64(has.D)<<32|uint64(has.A)
	for i := range 64 {
		if wants>>i&1 == 0 {
			continue
		}
		name := components[i]
		if name == "" {
			name = fmt.Sprintf("component %d", i)
		}
		a, b := find(domain, xstate, uint32(i)), find(host, xstate, uint32(i))
		switch {
		case able>>i&1 == 0:
			lacks = append(lacks, name)
		case i >= 2 && (a.A != b.A || a.B != b.B):
			lacks = append(lacks, name+" (at another place)")
		}
	}
	return lacks
}

func find(all []wire.CPUIDLeaf, leaf, sub uint32) wire.CPUIDLeaf {
	for _, l := range all {
		if l.Leaf == leaf && (l.Sub == sub || l.Sub == wire.NoSubleaf && sub == 0) {
			return l
		}
	}
	return wire.CPUIDLeaf{}
}

func register32(all []wire.CPUIDLeaf, w word) uint32 {
	l := find(all, w.leaf, w.sub)
	return [...]uint32{l.A, l.B, l.C, l.D}[w.reg]
}

// vendor is what leaf 0 says.
func vendor(all []wire.CPUIDLeaf) string {
	l := find(all, 0, 0)
	var b []byte
	for _, r := range []uint32{l.B, l.D, l.C} {
		b = append(b, byte(r), byte(r>>8), byte(r>>16), byte(r>>24))
	}
	return strings.TrimRight(string(b), "\x00")
}
