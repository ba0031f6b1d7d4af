package savestream

import (
	"encoding/binary"
	"fmt"
)

// TSCInfo is the body of X86_TSC_INFO.
type TSCInfo struct {
	Mode        uint32 // TSC_MODE_*: 0 default, 1 always emulate, 2 never emulate
	KHz         uint32
	Nanoseconds uint64 // elapsed
	Incarnation uint32
}

// ParseTSCInfo reads a body of X86_TSC_INFO.
func ParseTSCInfo(b []byte) (TSCInfo, error) {
	if len(b) != tscInfoLen {
		return TSCInfo{}, wrong(ErrLength, "%d bytes", len(b))
	}
	le := binary.LittleEndian
	return TSCInfo{le.Uint32(b), le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint32(b[16:])}, nil
}

// An HVMParam is one entry of HVM_PARAMS.
type HVMParam struct {
	Index uint64 // HVM_PARAM_*
	Value uint64
}

// Name returns the parameter's name in Xen's public hvm/params.h.
func (p HVMParam) Name() string {
	if p.Index < uint64(len(hvmParamNames)) && hvmParamNames[p.Index] != "" {
		return hvmParamNames[p.Index]
	}
	return fmt.Sprintf("PARAM_%d", p.Index)
}

var hvmParamNames = [...]string{
	0: "CALLBACK_IRQ", 1: "STORE_PFN", 2: "STORE_EVTCHN", 4: "PAE_ENABLED",
	5: "IOREQ_PFN", 6: "BUFIOREQ_PFN", 9: "VIRIDIAN", 10: "TIMER_MODE",
	11: "HPET_ENABLED", 12: "IDENT_PT", 13: "DM_DOMAIN", 14: "ACPI_S_STATE",
	15: "VM86_TSS", 16: "VPT_ALIGN", 17: "CONSOLE_PFN", 18: "CONSOLE_EVTCHN",
	19: "ACPI_IOPORTS_LOCATION", 20: "MEMORY_EVENT_CR0", 21: "MEMORY_EVENT_CR3",
	22: "MEMORY_EVENT_CR4", 23: "MEMORY_EVENT_INT3", 24: "NESTEDHVM",
	25: "MEMORY_EVENT_SINGLE_STEP", 26: "BUFIOREQ_EVTCHN", 27: "PAGING_RING_PFN",
	28: "MONITOR_RING_PFN", 29: "SHARING_RING_PFN", 30: "MEMORY_EVENT_MSR",
	31: "TRIPLE_FAULT_REASON", 32: "IOREQ_SERVER_PFN", 33: "NR_IOREQ_SERVER_PAGES",
	34: "VM_GENERATION_ID_ADDR", 35: "ALTP2M", 36: "X87_FIP_WIDTH",
	37: "VM86_TSS_SIZED", 38: "MCA_CAP",
}

// ParseHVMParams reads a body of HVM_PARAMS.
func ParseHVMParams(b []byte) ([]HVMParam, error) {
	le := binary.LittleEndian
	if len(b) < 8 || uint64(len(b)) != 8+uint64(le.Uint32(b))*hvmParamLen {
		return nil, wrong(ErrLength, "%d bytes", len(b))
	}
	var ps []HVMParam
	for b = b[8:]; len(b) > 0; b = b[hvmParamLen:] {
		ps = append(ps, HVMParam{le.Uint64(b), le.Uint64(b[8:])})
	}
	return ps, nil
}

// An HVMSave is one entry of HVM_CONTEXT (struct hvm_save_descriptor in Xen's
// public hvm/save.h).
type HVMSave struct {
	Type     uint16
	Instance uint16 // vCPU or device
	Data     []byte
}

// Name returns the entry's name in Xen's public arch-x86/hvm/save.h.
func (s HVMSave) Name() string {
	if int(s.Type) < len(hvmSaveNames) && hvmSaveNames[s.Type] != "" {
		return hvmSaveNames[s.Type]
	}
	return fmt.Sprintf("TYPE_%d", s.Type)
}

var hvmSaveNames = [...]string{
	0: "END", 1: "HEADER", 2: "CPU", 3: "PIC", 4: "IOAPIC", 5: "LAPIC", 6: "LAPIC_REGS",
	7: "PCI_IRQ", 8: "ISA_IRQ", 9: "PCI_LINK", 10: "PIT", 11: "RTC", 12: "HPET",
	13: "PMTIMER", 14: "MTRR", 15: "VIRIDIAN_DOMAIN", 16: "CPU_XSAVE",
	17: "VIRIDIAN_VCPU", 18: "VMCE_VCPU", 19: "TSC_ADJUST", 20: "CPU_MSR",
}

// ParseHVMContext splits a body of HVM_CONTEXT, up to its end marker. The
// entries refer to b.
func ParseHVMContext(b []byte) ([]HVMSave, error) {
	const descLen = 8 // typecode, instance, length
	le := binary.LittleEndian
	var out []HVMSave
	for len(b) >= descLen {
		s := HVMSave{Type: le.Uint16(b), Instance: le.Uint16(b[2:])}
		n := uint64(le.Uint32(b[4:]))
		if n > uint64(len(b)-descLen) {
			return out, wrong(ErrLength, "%s entry of %d bytes", s.Name(), n)
		}
		if s.Type == 0 {
			return out, nil
		}
		s.Data, b = b[descLen:descLen+n], b[descLen+n:]
		out = append(out, s)
	}
	return out, wrong(ErrValue, "no end marker")
}
