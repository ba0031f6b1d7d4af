package cpuid

import (
	"slices"
	"strings"
	"testing"

	"xlft/xlft/wire"
)

// amd is a policy with AVX2 and the AVX state.
func amd(change func(leaf *wire.CPUIDLeaf)) []wire.CPUIDLeaf {
	all := []wire.CPUIDLeaf{
		{Leaf: 0, Sub: wire.NoSubleaf, A: 0xd, B: 0x68747541, C: 0x444d4163, D: 0x69746e65},
		{Leaf: 1, Sub: wire.NoSubleaf, C: 1<<28 | 1<<27 | 1<<31 | 1<<12, D: 1 | 1<<28},
		{Leaf: 7, Sub: 0, B: 1<<5 | 1<<13},
		{Leaf: 0xd, Sub: 0, A: 7, B: 0x340, C: 0x340},
		{Leaf: 0xd, Sub: 1, A: 0xf},
		{Leaf: 0xd, Sub: 2, A: 0x100, B: 0x240},
		{Leaf: 0x80000001, Sub: wire.NoSubleaf, C: 2, D: 1<<29 | 1},
	}
	for i := range all {
		if change != nil {
			change(&all[i])
		}
	}
	return all
}

func TestCompare(t *testing.T) {
	only := func(leaf, sub uint32, f func(*wire.CPUIDLeaf)) func(*wire.CPUIDLeaf) {
		return func(l *wire.CPUIDLeaf) {
			if l.Leaf == leaf && (l.Sub == sub || l.Sub == wire.NoSubleaf) {
				f(l)
			}
		}
	}
	for _, c := range []struct {
		name string
		host func(*wire.CPUIDLeaf)
		want string
		mask string
	}{
		{"the same", nil, "", ""},
		{"more", func(l *wire.CPUIDLeaf) {
			if l.Leaf == 7 {
				l.B, l.C = ^uint32(0), ^uint32(0)
			}
		}, "", ""},
		{"no AVX2", only(7, 0, func(l *wire.CPUIDLeaf) { l.B = 0 }), "avx2", `cpuid = [ "0x7,0x0:ebx=xxxxxxxxxxxxxxxxxxxxxxxxxx0xxxxx" ]`},
		{"no FMA and no AVX", only(1, 0, func(l *wire.CPUIDLeaf) { l.C = 0 }), "fma, avx",
			`cpuid = [ "0x1:ecx=xxx0xxxxxxxxxxxxxxx0xxxxxxxxxxxx" ]`},
		{"what follows the topology", func(l *wire.CPUIDLeaf) {
			switch l.Leaf {
			case 1:
				l.C, l.D = l.C&^(1<<27|1<<31), 1
			case 0x80000001:
				l.C, l.D = 0, 1<<29
			}
		}, "", ""},
		{"no AVX state", only(0xd, 0, func(l *wire.CPUIDLeaf) { l.A = 3 }), "state: AVX", ""},
		{"AVX state elsewhere", only(0xd, 2, func(l *wire.CPUIDLeaf) { l.B = 0x280 }), "state: AVX (at another place)", ""},
		{"no such leaf", only(0xd, 1, func(l *wire.CPUIDLeaf) { l.Leaf = 0xffff }), "xsaveopt, xsavec, xgetbv1, xsaves",
			`cpuid = [ "0xd,0x1:eax=xxxxxxxxxxxxxxxxxxxxxxxxxxxx0000" ]`},
		{"another vendor", only(0, 0, func(l *wire.CPUIDLeaf) { l.B, l.D, l.C = 0x756e6547, 0x49656e69, 0x6c65746e }), "the domain's processor is of AuthenticAMD", ""},
	} {
		m := Compare(amd(nil), amd(c.host))
		if m.String() != c.want || m.Mask() != c.mask || m.None() != (c.want == "") {
			t.Errorf("%s: %q, mask %q; want %q, %q", c.name, m, m.Mask(), c.want, c.mask)
		}
	}
}

// A name that is to be ignored has to be a name, and no bit has two.
func TestNames(t *testing.T) {
	var all []string
	for _, w := range words {
		for bit, n := range w.names {
			if bit > 31 || n != strings.ToLower(n) || slices.Contains(all, n) {
				t.Errorf("bit %d, name %q", bit, n)
			}
			all = append(all, n)
		}
	}
	for _, n := range ignored {
		if !slices.Contains(all, n) {
			t.Errorf("no feature is called %q", n)
		}
	}
}
