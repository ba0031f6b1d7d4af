package savestream_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"xlft/savestream"
)

var v3 = savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17}

// page returns a page filled with c.
func page(c byte) []byte { return bytes.Repeat([]byte{c}, savestream.PageSize) }

func u32(vs ...uint32) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func u64(vs ...uint64) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func rec(t savestream.RecordType, body ...[]byte) savestream.Record {
	return savestream.Record{Type: t, Body: slices.Concat(body...)}
}

func pages(tb testing.TB, entries []savestream.PageEntry, data ...[]byte) savestream.Record {
	tb.Helper()
	body, err := savestream.AppendPageData(nil, entries, slices.Concat(data...))
	if err != nil {
		tb.Fatal(err)
	}
	return savestream.Record{Type: savestream.PageDataType, Body: body}
}

func encode(tb testing.TB, h savestream.Header, recs ...savestream.Record) []byte {
	tb.Helper()
	var buf bytes.Buffer
	enc := savestream.NewEncoder(&buf, h)
	for i, r := range recs {
		if err := enc.Encode(r); err != nil {
			tb.Fatalf("record %d: %v", i, err)
		}
	}
	return buf.Bytes()
}

// hvmStatic, hvmEpoch and friends are the records that libxc writes for a PVH
// domain, as small as they get.
func hvmStatic() []savestream.Record {
	return []savestream.Record{
		rec(savestream.X86CPUIDPolicy, u32(0, 0xffffffff, 0xd, 0x68747541, 0x444d4163, 0x69746e65)),
		rec(savestream.X86MSRPolicy, u32(0xce, 0), u64(1<<31)),
		rec(savestream.StaticDataEnd),
	}
}

func hvmContext() []savestream.Record {
	return []savestream.Record{
		rec(savestream.X86TSCInfo, u32(2, 2400000), u64(123456789), u32(1, 0)),
		rec(savestream.HVMContext, u32(1, 4), u32(0xdeadbeef), []byte{0, 0, 0, 0, 0, 0, 0, 0}),
		rec(savestream.HVMParams, u32(2, 0), u64(1, 0xfeffc), u64(17, 0xfefff)),
	}
}

func hvmEpoch(tb testing.TB, c byte) []savestream.Record {
	return append([]savestream.Record{
		pages(tb, []savestream.PageEntry{{PFN: 0x10}, {PFN: 0x11, Type: savestream.PageXTab}, {PFN: 0x12}}, page(c), page(c+1)),
	}, hvmContext()...)
}

// checkpointed is a Remus stream of a PVH domain with n epochs and an END,
// which libxc would leave out.
func checkpointed(tb testing.TB, n int) []savestream.Record {
	recs := hvmStatic()
	for i := range n {
		recs = append(recs, hvmEpoch(tb, byte(i))...)
		recs = append(recs, rec(savestream.Checkpoint))
	}
	return append(recs, rec(savestream.End))
}

func plainHVM(tb testing.TB) []savestream.Record {
	return slices.Concat(hvmStatic(), hvmEpoch(tb, 1), []savestream.Record{rec(savestream.End)})
}

func plainPV(tb testing.TB) []savestream.Record {
	return []savestream.Record{
		rec(savestream.X86PVInfo, []byte{8, 4, 0, 0, 0, 0, 0, 0}),
		rec(savestream.X86MSRPolicy, u32(0xce, 0), u64(1<<31)),
		rec(savestream.StaticDataEnd),
		rec(savestream.X86PVP2MFrames, u32(0, 513), u64(0x100, 0x101)),
		pages(tb, []savestream.PageEntry{{PFN: 7, Type: savestream.PageL4Pin}}, page(9)),
		rec(savestream.X86TSCInfo, u32(0, 2400000), u64(5), u32(0, 0)),
		rec(savestream.SharedInfo, page(3)),
		rec(savestream.X86PVVCPUBasic, u32(0, 0), make([]byte, 5168)),
		rec(savestream.X86PVVCPUExtended, u32(0, 0), make([]byte, 128)),
		rec(savestream.X86PVVCPUXSave, u32(0, 0), make([]byte, 580)), // padded by 4
		rec(savestream.X86PVVCPUMSRs, u32(0, 0)),                     // erratum 1
		rec(savestream.End),
	}
}
