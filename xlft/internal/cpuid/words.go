package cpuid

// words are the CPUID registers that say what a processor can do, one bit for
// each feature, with the names of those bits in Xen (cpufeatureset.h, 4.17), in
// small letters.
var words = []word{
	{1, 0, edx, names{
		0: "fpu", 1: "vme", 2: "de", 3: "pse", 4: "tsc", 5: "msr", 6: "pae", 7: "mce", 8: "cx8", 9: "apic", 11: "sep",
		12: "mtrr", 13: "pge", 14: "mca", 15: "cmov", 16: "pat", 17: "pse36", 19: "clflush", 21: "ds", 22: "acpi", 23: "mmx",
		24: "fxsr", 25: "sse", 26: "sse2", 27: "ss", 28: "htt", 29: "tm1", 31: "pbe",
	}},
	{1, 0, ecx, names{
		0: "sse3", 1: "pclmulqdq", 2: "dtes64", 3: "monitor", 4: "dscpl", 5: "vmx", 6: "smx", 7: "eist", 8: "tm2",
		9: "ssse3", 12: "fma", 13: "cx16", 14: "xtpr", 15: "pdcm", 17: "pcid", 18: "dca", 19: "sse4_1", 20: "sse4_2",
		21: "x2apic", 22: "movbe", 23: "popcnt", 24: "tsc_deadline", 25: "aesni", 26: "xsave", 27: "osxsave", 28: "avx",
		29: "f16c", 30: "rdrand", 31: "hypervisor",
	}},
	{0x80000001, 0, edx, names{
		11: "syscall", 20: "nx", 22: "mmxext", 25: "ffxsr", 26: "page1gb", 27: "rdtscp", 29: "lm", 30: "3dnowext",
		31: "3dnow",
	}},
	{0x80000001, 0, ecx, names{
		0: "lahf_lm", 1: "cmp_legacy", 2: "svm", 3: "extapic", 4: "cr8_legacy", 5: "abm", 6: "sse4a", 7: "misalignsse",
		8: "3dnowprefetch", 9: "osvw", 10: "ibs", 11: "xop", 12: "skinit", 13: "wdt", 15: "lwp", 16: "fma4",
		19: "nodeid_msr", 21: "tbm", 22: "topoext", 26: "dbext", 29: "monitorx",
	}},
	{0xd, 1, eax, names{0: "xsaveopt", 1: "xsavec", 2: "xgetbv1", 3: "xsaves"}},
	{7, 0, ebx, names{
		0: "fsgsbase", 1: "tsc_adjust", 2: "sgx", 3: "bmi1", 4: "hle", 5: "avx2", 6: "fdp_excp_only", 7: "smep", 8: "bmi2",
		9: "erms", 10: "invpcid", 11: "rtm", 12: "pqm", 13: "no_fpu_sel", 14: "mpx", 15: "pqe", 16: "avx512f",
		17: "avx512dq", 18: "rdseed", 19: "adx", 20: "smap", 21: "avx512_ifma", 23: "clflushopt", 24: "clwb",
		25: "proc_trace", 26: "avx512pf", 27: "avx512er", 28: "avx512cd", 29: "sha", 30: "avx512bw", 31: "avx512vl",
	}},
	{7, 0, ecx, names{
		0: "prefetchwt1", 1: "avx512_vbmi", 2: "umip", 3: "pku", 4: "ospke", 6: "avx512_vbmi2", 7: "cet_ss", 8: "gfni",
		9: "vaes", 10: "vpclmulqdq", 11: "avx512_vnni", 12: "avx512_bitalg", 14: "avx512_vpopcntdq", 22: "rdpid",
		25: "cldemote", 27: "movdiri", 28: "movdir64b", 29: "enqcmd",
	}},
	{0x80000007, 0, edx, names{7: "hw_pstate", 8: "itsc", 9: "cpb", 10: "efro"}},
	{0x80000008, 0, ebx, names{
		0: "clzero", 2: "rstr_fp_err_ptrs", 9: "wbnoinvd", 12: "ibpb", 14: "ibrs", 15: "amd_stibp", 16: "ibrs_always",
		17: "stibp_always", 18: "ibrs_fast", 19: "ibrs_same_mode", 20: "no_lmsl", 23: "amd_ppin", 24: "amd_ssbd",
		25: "virt_ssbd", 26: "ssb_no", 28: "psfd", 29: "btc_no", 30: "ibpb_ret",
	}},
	{7, 0, edx, names{
		2: "avx512_4vnniw", 3: "avx512_4fmaps", 4: "fsrm", 8: "avx512_vp2intersect", 9: "srbds_ctrl", 10: "md_clear",
		11: "rtm_always_abort", 13: "tsx_force_abort", 14: "serialize", 15: "hybrid", 16: "tsxldtrk", 20: "cet_ibt",
		23: "avx512_fp16", 26: "ibrsb", 27: "stibp", 28: "l1d_flush", 29: "arch_caps", 30: "core_caps", 31: "ssbd",
	}},
	{7, 1, eax, names{4: "avx_vnni", 5: "avx512_bf16", 10: "fzrm", 11: "fsrs", 12: "fsrcs"}},
	{0x80000021, 0, eax, names{
		2: "lfence_dispatch", 5: "verw_clear", 6: "nscb", 8: "auto_ibrs", 27: "sbpb", 28: "ibpb_brtype", 29: "srso_no",
	}},
	{7, 1, ebx, names{0: "intel_ppin"}},
	{7, 2, edx, names{0: "intel_psfd", 1: "ipred_ctrl", 2: "rrsba_ctrl", 4: "bhi_ctrl", 5: "mcdt_no"}},
	{7, 1, ecx, names{}},
	{7, 1, edx, names{18: "cet_sss"}},
	{0x80000021, 0, ecx, names{1: "tsa_sq_no", 2: "tsa_l1_no"}},
}
