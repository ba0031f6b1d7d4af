package savestream

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// InspectOptions say how Inspect prints. The zero value is usable.
type InspectOptions struct {
	JSON   bool // one JSON object a line
	Config bool // the whole domain configuration of an xl save file
}

// Inspect prints what is in r, an xl save file, a libxl stream or a libxc
// stream, as its first bytes tell: one line a record with its offset, type,
// body length and main fields, totals at the end. Offsets count from the start
// of r. It does not seek and holds one record at a time.
//
// If the stream is bad, its good part has been printed and the error, a
// FormatError, locates the bad record. A checkpointed stream that stops after a
// CHECKPOINT, as libxc leaves it, is short too (io.ErrUnexpectedEOF); the line
// of totals then has "at checkpoint".
func Inspect(w io.Writer, r io.Reader, opts InspectOptions) error {
	in := &inspector{opts: opts, w: bufio.NewWriter(w), r: bufio.NewReader(r)}
	in.enc = json.NewEncoder(in.w)
	in.enc.SetEscapeHTML(false)
	err := in.run()
	if in.offset != nil {
		in.totals()
	}
	if werr := in.w.Flush(); werr != nil && err == nil {
		err = werr
	}
	return err
}

// fields keep their order, for people and for JSON.
type fields []field

type field struct {
	key   string
	value any
}

func (fs fields) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range fs {
		if i > 0 {
			b.WriteByte(',')
		}
		v, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%q:%s", f.key, v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (fs fields) String() string {
	var b strings.Builder
	for i, f := range fs {
		if i > 0 {
			b.WriteByte(' ')
		}
		switch v := f.value.(type) {
		case fields:
			fmt.Fprintf(&b, "%s(%v)", f.key, v)
		case string:
			if strings.ContainsAny(v, " \"=\n") {
				fmt.Fprintf(&b, "%s=%q", f.key, v)
			} else {
				fmt.Fprintf(&b, "%s=%s", f.key, v)
			}
		default:
			fmt.Fprintf(&b, "%s=%v", f.key, v)
		}
	}
	return b.String()
}

// hex prints as 0x… in both forms.
type hex uint64

func (h hex) String() string               { return fmt.Sprintf("%#x", uint64(h)) }
func (h hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

type inspector struct {
	opts InspectOptions
	w    *bufio.Writer
	enc  *json.Encoder
	r    *bufio.Reader

	base         int64 // bytes before the stream that is read
	records      int
	pfns         uint64
	pages        uint64
	checkpoints  int
	offset       func() int64
	atCheckpoint func() bool
}

func (in *inspector) line(off int64, layer, typ string, length int, fs fields) {
	if in.opts.JSON {
		in.enc.Encode(struct {
			Offset int64  `json:"offset"`
			Layer  string `json:"layer"`
			Type   string `json:"type"`
			Length int    `json:"length"`
			Fields fields `json:"fields,omitempty"`
		}{off, layer, typ, length, fs})
		return
	}
	fmt.Fprintf(in.w, "%12d  %-5s  %-24s %9d  %v\n", off, layer, typ, length, fs)
}

func (in *inspector) run() error {
	magic, err := in.r.Peek(8)
	if err != nil {
		return located(short(err), 0, Part("magic"))
	}
	if bytes.HasPrefix([]byte(saveMagic), magic) {
		if err := in.saveHeader(); err != nil {
			return err
		}
		if magic, err = in.r.Peek(8); err != nil {
			return located(short(err), in.base, PartLibxlHeader)
		}
		if binary.BigEndian.Uint64(magic) != libxlIdent {
			return &FormatError{in.base, PartLibxlHeader, ErrMagic}
		}
	}
	switch binary.BigEndian.Uint64(magic) {
	case libxlIdent:
		return in.libxl()
	case imageMarker:
		return in.libxc()
	}
	return &FormatError{0, Part("magic"), wrong(ErrMagic, "%q is none of xl save file, libxl stream, libxc stream", magic)}
}

func (in *inspector) saveHeader() error {
	src := &input{r: in.r}
	in.offset = func() int64 { return src.off }
	h, err := readSaveHeader(src)
	if err != nil {
		return err
	}
	in.base = src.off
	config := strings.TrimRight(string(h.Config), "\x00")
	fs := fields{{"mandatory", hex(h.Mandatory)}, {"optional", hex(h.Optional)}, {"config_bytes", len(h.Config)}}
	if h.JSON() {
		fs = append(fs, field{"config_format", "json"})
		var c struct {
			Info struct {
				Name string `json:"name"`
				Type string `json:"type"`
				UUID string `json:"uuid"`
			} `json:"c_info"`
			Build struct {
				MaxMem int64 `json:"max_memkb"`
			} `json:"b_info"`
		}
		if json.Unmarshal([]byte(config), &c) == nil {
			fs = append(fs, field{"name", c.Info.Name}, field{"type", c.Info.Type}, field{"uuid", c.Info.UUID}, field{"max_memkb", c.Build.MaxMem})
		}
	} else {
		fs = append(fs, field{"config_format", "xl.cfg"})
	}
	if len(h.Rest) > 0 {
		fs = append(fs, field{"rest_bytes", len(h.Rest)})
	}
	if in.opts.Config && in.opts.JSON {
		fs = append(fs, field{"config", config})
	}
	in.line(0, "xl", "SAVE_HEADER", int(in.base), fs)
	if in.opts.Config && !in.opts.JSON {
		fmt.Fprintln(in.w, strings.TrimRight(config, "\n"))
	}
	return nil
}

func (in *inspector) libxl() error {
	d := NewLibxlDecoder(in.r)
	d.xc.in.off = in.base
	in.offset, in.atCheckpoint = d.Offset, d.AtCheckpoint
	legacy, err := d.Legacy()
	if err != nil {
		return err
	}
	in.line(in.base, "libxl", "HEADER", libxlHeaderLen, fields{{"version", libxlVersion}, {"legacy", legacy}})
	headers := int64(-1) // where the libxc headers are expected
	for {
		if headers >= 0 {
			h, err := d.xc.Header()
			if err != nil {
				return err
			}
			in.libxcHeader(headers, h)
			headers = -1
		}
		it, err := d.Next()
		if err == io.EOF {
			return d.Trailing()
		}
		if err != nil {
			return err
		}
		if it.Libxc != nil {
			in.record(*it.Libxc)
			continue
		}
		in.records++
		rec := *it.Libxl
		in.line(rec.Offset, "libxl", rec.Type.String(), len(rec.Body), libxlFields(rec))
		if rec.Type == LibxcContext {
			headers = d.Offset()
		}
	}
}

func (in *inspector) libxc() error {
	d := NewDecoder(in.r)
	in.offset, in.atCheckpoint = d.Offset, d.AtCheckpoint
	h, err := d.Header()
	if err != nil {
		return err
	}
	in.libxcHeader(0, h)
	for {
		rec, err := d.Next()
		if err == io.EOF {
			return d.Trailing()
		}
		if err != nil {
			return err
		}
		in.record(rec)
	}
}

func (in *inspector) libxcHeader(off int64, h Header) {
	xen := fmt.Sprintf("%d.%d", h.XenMajor, h.XenMinor)
	if h.XenMajor == 0 {
		xen = "legacy"
	}
	in.line(off, "libxc", "HEADER", imageHeaderLen+domainHeaderLen, fields{{"version", h.Version}, {"domain", h.Type.String()}, {"xen", xen}})
}

func (in *inspector) record(rec Record) {
	in.records++
	fs := recordFields(rec)
	switch rec.Type {
	case Checkpoint:
		in.checkpoints++
		fs = fields{{"number", in.checkpoints}}
	case PageDataType:
		if p, err := ParsePageData(rec.Body); err == nil {
			in.pfns += uint64(p.Count())
			in.pages += uint64(len(p.Data()) / PageSize)
		}
	}
	in.line(rec.Offset, "libxc", rec.Type.String(), len(rec.Body), fs)
}

func (in *inspector) totals() {
	fs := fields{
		{"records", in.records}, {"pfns", in.pfns}, {"pages", in.pages}, {"page_bytes", in.pages * PageSize},
		{"checkpoints", in.checkpoints}, {"bytes", in.offset()},
	}
	if in.atCheckpoint != nil && in.atCheckpoint() {
		fs = append(fs, field{"ends", "at checkpoint"})
	}
	in.line(in.offset(), "", "TOTAL", 0, fs)
}

func libxlFields(rec LibxlRecord) fields {
	switch rec.Type {
	case EmulatorXenstoreData, EmulatorContext:
		h, data, err := ParseEmulator(rec.Body)
		if err != nil {
			return fields{{"error", err.Error()}}
		}
		name := [...]string{"unknown", "qemu-traditional", "qemu-upstream"}[h.ID]
		fs := fields{{"emulator", name}, {"index", h.Index}, {"data_bytes", len(data)}}
		if rec.Type == EmulatorXenstoreData {
			if kv, err := ParseXenstoreData(data); err == nil {
				fs = append(fs, field{"keys", len(kv) / 2})
			}
		}
		return fs
	case CheckpointState:
		return fields{{"control_id", binary.LittleEndian.Uint32(rec.Body)}}
	}
	return nil
}

func recordFields(rec Record) fields {
	le := binary.LittleEndian
	b := rec.Body
	switch rec.Type {
	case PageDataType:
		return pageFields(b)
	case X86PVInfo:
		return fields{{"width", b[0]}, {"levels", b[1]}}
	case X86PVP2MFrames:
		return fields{{"first_pfn", hex(le.Uint32(b))}, {"last_pfn", hex(le.Uint32(b[4:]))}, {"frames", (len(b) - 8) / 8}}
	case X86PVVCPUBasic, X86PVVCPUExtended, X86PVVCPUXSave, X86PVVCPUMSRs:
		return fields{{"vcpu", le.Uint32(b)}, {"context_bytes", len(b) - vcpuHeadLen}}
	case X86TSCInfo:
		t, err := ParseTSCInfo(b)
		if err != nil {
			return fields{{"error", err.Error()}}
		}
		return fields{{"mode", t.Mode}, {"khz", t.KHz}, {"nsec", t.Nanoseconds}, {"incarnation", t.Incarnation}}
	case HVMContext:
		return contextFields(b)
	case HVMParams:
		ps, err := ParseHVMParams(b)
		if err != nil {
			return fields{{"error", err.Error()}}
		}
		fs := fields{{"count", len(ps)}}
		for _, p := range ps {
			fs = append(fs, field{p.Name(), hex(p.Value)})
		}
		return fs
	case X86CPUIDPolicy:
		return fields{{"leaves", len(b) / cpuidLeafLen}}
	case X86MSRPolicy:
		return fields{{"msrs", len(b) / msrEntryLen}}
	}
	return nil
}

func pageFields(body []byte) fields {
	p, err := ParsePageData(body)
	if err != nil {
		return fields{{"error", err.Error()}}
	}
	var byType [16]int
	lo, hi := ^uint64(0), uint64(0)
	for i := range p.Count() {
		e := p.Entry(i)
		byType[e.Type]++
		lo, hi = min(lo, e.PFN), max(hi, e.PFN)
	}
	var types fields
	for t, n := range byType {
		if n > 0 {
			types = append(types, field{PageType(t).String(), n})
		}
	}
	return fields{{"pfns", p.Count()}, {"pages", len(p.Data()) / PageSize}, {"first_pfn", hex(lo)}, {"last_pfn", hex(hi)}, {"types", types}}
}

func contextFields(b []byte) fields {
	saves, err := ParseHVMContext(b)
	var entries fields
next:
	for _, s := range saves {
		for i := range entries {
			if entries[i].key == s.Name() {
				entries[i].value = entries[i].value.(int) + 1
				continue next
			}
		}
		entries = append(entries, field{s.Name(), 1})
	}
	fs := fields{{"entries", entries}}
	if err != nil {
		fs = append(fs, field{"error", err.Error()})
	}
	return fs
}
