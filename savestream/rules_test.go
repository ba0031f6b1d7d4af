package savestream_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"

	"xlft/savestream"
)

// raw builds a stream without checking it.
func raw(h savestream.Header, recs ...savestream.Record) []byte {
	b := h.AppendTo(nil)
	for _, r := range recs {
		b = append(b, u32(uint32(r.Type), uint32(len(r.Body)))...)
		b = append(b, r.Body...)
		b = append(b, make([]byte, -len(r.Body)&7)...)
	}
	return b
}

func TestRules(t *testing.T) {
	pv := savestream.Header{Version: 3, Type: savestream.PV}
	v2 := savestream.Header{Version: 2, Type: savestream.HVM}
	static, epoch := hvmStatic(), hvmEpoch(t, 1)
	end, cp := rec(savestream.End), rec(savestream.Checkpoint)
	seq := func(parts ...any) []savestream.Record {
		var out []savestream.Record
		for _, p := range parts {
			switch p := p.(type) {
			case savestream.Record:
				out = append(out, p)
			case []savestream.Record:
				out = append(out, p...)
			}
		}
		return out
	}
	badPage := func(edit func(b []byte) []byte) savestream.Record {
		r := epoch[0]
		r.Body = edit(bytes.Clone(r.Body))
		return r
	}
	pvRecs := plainPV(t)

	for name, tt := range map[string]struct {
		h    savestream.Header
		recs []savestream.Record
		form savestream.Form
		want error
	}{
		"PagesBeforeStaticEnd":      {h: v3, recs: seq(static[:2], epoch, end), want: savestream.ErrOrder},
		"RegistersBeforeStaticEnd":  {h: v3, recs: seq(epoch[2], end), want: savestream.ErrOrder},
		"EndBeforeStaticEnd":        {h: v3, recs: seq(end), want: savestream.ErrOrder},
		"TwoStaticEnds":             {h: v3, recs: seq(static, static[2]), want: savestream.ErrOrder},
		"PolicyAfterStaticEnd":      {h: v3, recs: seq(static, static[0]), want: savestream.ErrOrder},
		"EndWithoutContext":         {h: v3, recs: seq(static, epoch[0], end), want: savestream.ErrIncomplete},
		"CheckpointWithoutContext":  {h: v3, recs: seq(static, epoch, cp, epoch[0], cp), want: savestream.ErrIncomplete},
		"EndAfterCheckpoint":        {h: v3, recs: seq(static, epoch, cp, end)},
		"EndInsideEpoch":            {h: v3, recs: seq(static, epoch, cp, epoch[0], end), want: savestream.ErrIncomplete},
		"NothingDirty":              {h: v3, recs: seq(static, epoch, cp, hvmContext(), cp, end)},
		"CheckpointInPlain":         {h: v3, recs: seq(static, epoch, cp, end), form: savestream.Plain, want: savestream.ErrForm},
		"CheckpointAfterVerify":     {h: v3, recs: seq(static, epoch, rec(savestream.Verify), epoch, cp), want: savestream.ErrForm},
		"Verify":                    {h: v3, recs: seq(static, epoch, rec(savestream.Verify), epoch, end)},
		"VerifyInCheckpointed":      {h: v3, recs: seq(static, epoch, rec(savestream.Verify)), form: savestream.Checkpointed, want: savestream.ErrForm},
		"VerifyAfterCheckpoint":     {h: v3, recs: seq(static, epoch, cp, rec(savestream.Verify)), want: savestream.ErrForm},
		"UnknownMandatory":          {h: v3, recs: seq(static, rec(0x13)), want: savestream.ErrMandatory},
		"UnknownOptional":           {h: v3, recs: seq(rec(0x80000013, []byte("x")), static, epoch, end)},
		"Toolstack":                 {h: v3, recs: seq(static, rec(savestream.Toolstack, []byte("x"))), want: savestream.ErrObsolete},
		"DirtyPFNList":              {h: v3, recs: seq(static, rec(savestream.CheckpointDirtyPFNList, u64(1))), want: savestream.ErrForm},
		"PVRecordInHVM":             {h: v3, recs: seq(static, rec(savestream.SharedInfo, page(0))), want: savestream.ErrDomainType},
		"HVMRecordInPV":             {h: pv, recs: seq(pvRecs[:3], epoch[2]), want: savestream.ErrDomainType},
		"PVPagesBeforeInfo":         {h: pv, recs: seq(static), want: savestream.ErrOrder},
		"PVPagesBeforeP2M":          {h: pv, recs: seq(pvRecs[:3], pvRecs[4]), want: savestream.ErrOrder},
		"PVVCPUBeforePages":         {h: pv, recs: seq(pvRecs[:4], pvRecs[7]), want: savestream.ErrOrder},
		"PVInfoTwice":               {h: pv, recs: seq(pvRecs[0], pvRecs[0]), want: savestream.ErrOrder},
		"PVInfoOdd":                 {h: pv, recs: seq(rec(savestream.X86PVInfo, []byte{8, 3, 0, 0, 0, 0, 0, 0})), want: savestream.ErrValue},
		"P2MLength":                 {h: pv, recs: seq(pvRecs[:3], rec(savestream.X86PVP2MFrames, u32(0, 511), u64(1, 2))), want: savestream.ErrLength},
		"P2MBackwards":              {h: pv, recs: seq(pvRecs[:3], rec(savestream.X86PVP2MFrames, u32(9, 8), u64(1))), want: savestream.ErrValue},
		"VCPUBasicLength":           {h: pv, recs: seq(pvRecs[:5], rec(savestream.X86PVVCPUBasic, u32(0, 0), make([]byte, 5160))), want: savestream.ErrLength},
		"VCPUExtendedLong":          {h: pv, recs: seq(pvRecs[:5], rec(savestream.X86PVVCPUExtended, u32(0, 0), make([]byte, 129))), want: savestream.ErrLength},
		"VCPUReserved":              {h: pv, recs: seq(pvRecs[:5], rec(savestream.X86PVVCPUMSRs, u32(0, 1))), want: savestream.ErrReserved},
		"StaticEndInVersion2":       {h: v2, recs: seq(rec(savestream.StaticDataEnd)), want: savestream.ErrVersion},
		"EndWithBody":               {h: v3, recs: seq(static, epoch, rec(savestream.End, u64(0))), want: savestream.ErrLength},
		"HVMParamsCount":            {h: v3, recs: seq(static, rec(savestream.HVMParams, u32(2, 0), u64(1, 1))), want: savestream.ErrLength},
		"HVMParamsReserved":         {h: v3, recs: seq(static, rec(savestream.HVMParams, u32(0, 1))), want: savestream.ErrReserved},
		"HVMParamsEmpty":            {h: v3, recs: seq(static, rec(savestream.HVMParams, u32(0, 0)), epoch, end)},
		"HVMContextEmpty":           {h: v3, recs: seq(static, rec(savestream.HVMContext)), want: savestream.ErrLength},
		"TSCLength":                 {h: v3, recs: seq(static, rec(savestream.X86TSCInfo, u64(1, 2))), want: savestream.ErrLength},
		"TSCReserved":               {h: v3, recs: seq(static, rec(savestream.X86TSCInfo, u64(1, 2), u32(0, 1))), want: savestream.ErrReserved},
		"CPUIDLength":               {h: v3, recs: seq(rec(savestream.X86CPUIDPolicy, u64(1))), want: savestream.ErrLength},
		"MSREmpty":                  {h: v3, recs: seq(rec(savestream.X86MSRPolicy)), want: savestream.ErrLength},
		"PagesNone":                 {h: v3, recs: seq(static, rec(savestream.PageDataType, u64(0, 0))), want: savestream.ErrValue},
		"PagesReserved":             {h: v3, recs: seq(static, badPage(func(b []byte) []byte { b[4] = 1; return b })), want: savestream.ErrReserved},
		"PagesCountLies":            {h: v3, recs: seq(static, badPage(func(b []byte) []byte { binary.LittleEndian.PutUint32(b, 0x20000000); return b })), want: savestream.ErrLength},
		"PagesTypeUnknown":          {h: v3, recs: seq(static, badPage(func(b []byte) []byte { b[15] = 0x50; return b })), want: savestream.ErrPageType},
		"PagesPFNReserved":          {h: v3, recs: seq(static, badPage(func(b []byte) []byte { b[14] = 0x10; return b })), want: savestream.ErrReserved},
		"PagesTypeWithoutItsPage":   {h: v3, recs: seq(static, badPage(func(b []byte) []byte { b[23] = 0; return b })), want: savestream.ErrLength},
		"PagesTypeTooManyPages":     {h: v3, recs: seq(static, badPage(func(b []byte) []byte { b[15] = 0xf0; return b })), want: savestream.ErrLength},
		"PagesShort":                {h: v3, recs: seq(static, badPage(func(b []byte) []byte { return b[:len(b)-8] })), want: savestream.ErrLength},
		"DomainTypeUnknown":         {h: savestream.Header{Version: 3, Type: 3}, want: savestream.ErrDomain},
		"VersionUnknown":            {h: savestream.Header{Version: 4, Type: savestream.HVM}, want: savestream.ErrVersion},
		"Version2InfersStaticEnd":   {h: v2, recs: seq(epoch, end)},
		"ContextBeforePagesOfEpoch": {h: v3, recs: seq(static, hvmContext(), epoch[0], cp, end)},
	} {
		t.Run(name, func(t *testing.T) {
			b := raw(tt.h, tt.recs...)
			d := savestream.NewDecoder(bytes.NewReader(b))
			d.Form = tt.form
			var err error
			for err == nil {
				_, err = d.Next()
			}
			if err == io.EOF {
				err = nil
			}
			if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
				t.Errorf("Decoder: got %v, want %v", err, tt.want)
			}

			s := savestream.Scanner{Form: tt.form}
			serr := error(nil)
			for p := b; len(p) > 0 && serr == nil; {
				var n int
				n, _, serr = s.Scan(p[:min(len(p), 100)])
				p = p[n:]
			}
			if !errors.Is(serr, tt.want) || tt.want == nil && s.Close() != nil {
				t.Errorf("Scanner: got %v, want %v", serr, tt.want)
			}

			enc := savestream.NewEncoder(io.Discard, tt.h)
			enc.Form = tt.form
			var eerr error
			for i := 0; i < len(tt.recs) && eerr == nil; i++ {
				eerr = enc.Encode(tt.recs[i])
			}
			if len(tt.recs) > 0 && !errors.Is(eerr, tt.want) {
				t.Errorf("Encoder: got %v, want %v", eerr, tt.want)
			}
		})
	}
}

func TestPadding(t *testing.T) {
	full := encode(t, v3, slices.Concat(
		hvmStatic(), []savestream.Record{rec(0x80000001, []byte("abc"))},
		hvmEpoch(t, 0), []savestream.Record{rec(savestream.End)},
	)...)
	at := bytes.Index(full, []byte("abc")) + 5
	full[at] = 1
	if _, err := decode(bytes.NewReader(full)); !errors.Is(err, savestream.ErrPadding) {
		t.Errorf("Decoder: got %v", err)
	}
	if err := scanAll(full, 1<<20); !errors.Is(err, savestream.ErrPadding) {
		t.Errorf("Scanner: got %v", err)
	}
}

func TestErrorsSayWhere(t *testing.T) {
	long := append(v3.AppendTo(nil), u32(uint32(savestream.PageDataType), savestream.MaxBody+1)...)
	for want, b := range map[string][]byte{
		"savestream: PAGE_DATA record at offset 40: body over 128 MiB": long,
		"savestream: image header at offset 0: unexpected EOF":         []byte("abc"),
		"savestream: domain header at offset 24: unexpected EOF":       v3.AppendTo(nil)[:30],
		"savestream: record header at offset 40: unexpected EOF":       v3.AppendTo(nil)[:40],
		"savestream: END record at offset 40: out of order: no STATIC_DATA_END yet": raw(v3,
			rec(savestream.End)),
	} {
		if _, err := decode(bytes.NewReader(b)); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestMemoryFollowsTheBytes: a record that claims 128 MiB and sends none of it
// costs no memory to speak of.
func TestMemoryFollowsTheBytes(t *testing.T) {
	b := append(raw(v3, hvmStatic()...), u32(0x80000000, savestream.MaxBody)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		if _, err := decode(bytes.NewReader(b)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / 10; got > 4<<20 {
		t.Errorf("%d bytes allocated for a claim", got)
	}
}
