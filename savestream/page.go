package savestream

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// A PageType is bits 63 to 60 of an entry of PAGE_DATA's pfn table
// (XEN_DOMCTL_PFINFO_* of Xen's public domctl.h, shifted).
type PageType uint8

const (
	PageNormal PageType = 0x0
	PageL1     PageType = 0x1
	PageL2     PageType = 0x2
	PageL3     PageType = 0x3
	PageL4     PageType = 0x4
	PageL1Pin  PageType = 0x9
	PageL2Pin  PageType = 0xa
	PageL3Pin  PageType = 0xb
	PageL4Pin  PageType = 0xc
	PageBroken PageType = 0xd // no data
	PageXAlloc PageType = 0xe // no data: allocate only
	PageXTab   PageType = 0xf // no data: the pfn is invalid
)

const (
	// One bit per page type.
	hasDataMask   = 1<<PageNormal | 1<<PageL1 | 1<<PageL2 | 1<<PageL3 | 1<<PageL4 | 1<<PageL1Pin | 1<<PageL2Pin | 1<<PageL3Pin | 1<<PageL4Pin
	knownTypeMask = hasDataMask | 1<<PageBroken | 1<<PageXAlloc | 1<<PageXTab

	entryTypeShift = 60
	entryPFNMask   = 1<<52 - 1
	entryReserved  = 1<<60 - 1<<52
)

// HasData reports whether pages of type t have content in the stream.
func (t PageType) HasData() bool { return hasDataMask>>(t&15)&1 != 0 }

func (t PageType) known() bool { return t < 16 && knownTypeMask>>t&1 != 0 }

var pageTypeNames = [16]string{
	"NOTAB", "L1TAB", "L2TAB", "L3TAB", "L4TAB", "", "", "", "",
	"L1TAB_PIN", "L2TAB_PIN", "L3TAB_PIN", "L4TAB_PIN", "BROKEN", "XALLOC", "XTAB",
}

func (t PageType) String() string {
	if t.known() {
		return pageTypeNames[t]
	}
	return fmt.Sprintf("page type %#x", uint8(t))
}

// A PageEntry is one entry of PAGE_DATA's pfn table.
type PageEntry struct {
	PFN  uint64 // at most 52 bits
	Type PageType
}

// Encode returns the entry as the table has it. The parts are not checked.
func (e PageEntry) Encode() uint64 { return uint64(e.Type)<<entryTypeShift | e.PFN }

// ParsePageEntry undoes Encode. The parts are not checked.
func ParsePageEntry(e uint64) PageEntry {
	return PageEntry{e & entryPFNMask, PageType(e >> entryTypeShift)}
}

// checkEntry returns the error of a bad pfn table entry.
func checkEntry(i int, e uint64) error {
	if t := PageType(e >> entryTypeShift); !t.known() {
		return wrong(ErrPageType, "%#x in entry %d", uint8(t), i)
	}
	return wrong(ErrReserved, "%#016x in entry %d", e, i)
}

// PageData is the body of a PAGE_DATA record. It refers to the body it was
// made from and does not copy it.
type PageData struct {
	table []byte
	data  []byte
}

// ParsePageData checks a PAGE_DATA body and makes its parts accessible.
func ParsePageData(body []byte) (PageData, error) {
	if len(body) > MaxBody {
		return PageData{}, ErrTooLong
	}
	if err := bodyLength(PageDataType, uint32(len(body))); err != nil {
		return PageData{}, err
	}
	room, err := pageDataRoom(uint32(len(body)), body)
	if err != nil {
		return PageData{}, err
	}
	end := pageHeadLen + int(binary.LittleEndian.Uint32(body))*pageEntryLen
	p := PageData{body[pageHeadLen:end], body[end:]}

	pages := uint32(0)
	for i := range p.Count() {
		e := binary.LittleEndian.Uint64(p.table[i*pageEntryLen:])
		if e&entryReserved != 0 || !PageType(e>>entryTypeShift).known() {
			return PageData{}, checkEntry(i, e)
		}
		if p.Entry(i).Type.HasData() {
			pages++
		}
	}
	if pages != room {
		return PageData{}, wrong(ErrLength, "room for %d pages, types want %d", room, pages)
	}
	return p, nil
}

// Count returns the number of pfns, with data or without.
func (p PageData) Count() int { return len(p.table) / pageEntryLen }

// Entry returns entry i of the pfn table.
func (p PageData) Entry(i int) PageEntry {
	return ParsePageEntry(binary.LittleEndian.Uint64(p.table[i*pageEntryLen:]))
}

// Data returns the content of all pages that have any, one after the other in
// the order of the table, PageSize bytes each.
func (p PageData) Data() []byte { return p.data }

// All yields each entry with its page, or with nil if its type has no data.
func (p PageData) All() iter.Seq2[PageEntry, []byte] {
	return func(yield func(PageEntry, []byte) bool) {
		data := p.data
		for i := range p.Count() {
			e := p.Entry(i)
			var page []byte
			if e.Type.HasData() {
				page, data = data[:PageSize:PageSize], data[PageSize:]
			}
			if !yield(e, page) {
				return
			}
		}
	}
}

// AppendPageData appends the body of a PAGE_DATA record to b: the table, then
// data, which holds PageSize bytes for each entry whose type has data.
func AppendPageData(b []byte, entries []PageEntry, data []byte) ([]byte, error) {
	if len(entries) == 0 {
		return b, wrong(ErrValue, "no pfns")
	}
	pages := 0
	for i, e := range entries {
		if !e.Type.known() {
			return b, wrong(ErrPageType, "%#x in entry %d", uint8(e.Type), i)
		}
		if e.PFN > entryPFNMask {
			return b, wrong(ErrValue, "pfn %#x in entry %d", e.PFN, i)
		}
		if e.Type.HasData() {
			pages++
		}
	}
	if len(data) != pages*PageSize {
		return b, wrong(ErrLength, "%d bytes of pages, types want %d", len(data), pages*PageSize)
	}
	if n := int64(pageHeadLen) + int64(len(entries))*pageEntryLen + int64(len(data)); n > MaxBody {
		return b, ErrTooLong
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entries)))
	b = append(b, 0, 0, 0, 0)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint64(b, e.Encode())
	}
	return append(b, data...), nil
}
