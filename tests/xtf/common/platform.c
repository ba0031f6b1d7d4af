#include <xtf/platform.h>

#include <xen/arch-x86/cpuid.h>
#include <xen/arch-x86/hvm/start_info.h>

#include <xtf/console.h>
#include <xtf/cpu.h>
#include <xtf/event.h>
#include <xtf/hypercall.h>
#include <xtf/lib.h>
#include <xtf/xenstore.h>

/* Where no RAM, device or ACPI table of a PVH guest is. */
#define SHARED_INFO_GPA 0xfe700000UL

/* Any vector above the exceptions. Interrupts stay off; see event_init. */
#define CALLBACK_VECTOR 0xf0UL

shared_info_t *const shared_info = (void *)SHARED_INFO_GPA;

extern char _end[];

static char cmdline[512];
static uintptr_t ram_next, ram_end;

void platform_init(const struct hvm_start_info *si)
{
    const struct hvm_memmap_table_entry *map;
    const char *words = (const char *)si->cmdline_paddr;

    if (si->magic != XEN_HVM_START_MAGIC_VALUE)
        panic("start info has magic %x\n", si->magic);
    if (words)
        memcpy(cmdline, words, strlen(words) < sizeof cmdline - 1
                                   ? strlen(words)
                                   : sizeof cmdline - 1);

    if (si->version < 1 || !si->memmap_entries)
        panic("start info of version %u has no memory map\n", si->version);
    ram_next = ((uintptr_t)_end + PAGE_SIZE - 1) & -(uintptr_t)PAGE_SIZE;
    map = (const void *)si->memmap_paddr;
    for (unsigned i = 0; i < si->memmap_entries; i++)
        if (map[i].type == XEN_HVM_MEMMAP_TYPE_RAM && map[i].addr <= ram_next &&
            ram_next < map[i].addr + map[i].size)
            ram_end = map[i].addr + map[i].size;
    if (!ram_end)
        panic("memory map has no RAM at %lx\n", ram_next);
}

static void connect_hypercalls(void)
{
    for (uint32_t base = XEN_CPUID_FIRST_LEAF; base < XEN_CPUID_FIRST_LEAF + 0x10000;
         base += 0x100) {
        uint32_t r[4];

        cpuid(base, r);
        if (r[1] != XEN_CPUID_SIGNATURE_EBX || r[2] != XEN_CPUID_SIGNATURE_ECX ||
            r[3] != XEN_CPUID_SIGNATURE_EDX)
            continue;
        cpuid(base + 2, r);
        wrmsr(r[1], (uintptr_t)hypercall_page);
        return;
    }
    panic("no Xen here\n");
}

static void connect_shared_info(void)
{
    struct xen_add_to_physmap xatp = {
        .domid = DOMID_SELF,
        .space = XENMAPSPACE_shared_info,
        .gpfn = SHARED_INFO_GPA / PAGE_SIZE,
    };
    long ret = memory_op(XENMEM_add_to_physmap, &xatp);

    if (ret)
        panic("map shared info: %ld\n", ret);
}

/*
 * A toolstack takes a guest that has set a callback for one that answers on
 * control/shutdown, and only to such a one does it return 1 from a suspend
 * that was cancelled.
 */
static void connect_callback(void)
{
    struct xen_hvm_param p = {
        .domid = DOMID_SELF,
        .index = HVM_PARAM_CALLBACK_IRQ,
        .value = (uint64_t)HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | CALLBACK_VECTOR,
    };
    long ret = hvm_op(HVMOP_set_param, &p);

    if (ret)
        panic("set callback: %ld\n", ret);
}

void platform_connect(void)
{
    connect_hypercalls();
    connect_shared_info();
    event_init();
    connect_callback();
    console_connect();
    xs_connect();
}

uint64_t option(const char *name, uint64_t otherwise)
{
    size_t len = strlen(name);

    for (const char *s = cmdline; *s; s++) {
        uint64_t n = 0;

        if ((s != cmdline && s[-1] != ' ') || memcmp(s, name, len) ||
            s[len] != '=')
            continue;
        for (s += len + 1; *s >= '0' && *s <= '9'; s++)
            n = n * 10 + (*s - '0');
        return n;
    }
    return otherwise;
}

size_t ram_left(void) { return (ram_end - ram_next) / PAGE_SIZE; }

void *ram_alloc(size_t pages)
{
    void *p = (void *)ram_next;

    if (pages > ram_left())
        panic("%lu pages wanted, %lu left\n", pages, ram_left());
    ram_next += pages * PAGE_SIZE;
    return memset(p, 0, pages * PAGE_SIZE);
}

void shutdown(unsigned reason)
{
    struct sched_shutdown s = { .reason = reason };

    console_flush();
    for (;;)
        sched_op(SCHEDOP_shutdown, &s);
}

void panic(const char *fmt, ...)
{
    static bool again;
    char line[160];
    va_list ap;

    va_start(ap, fmt);
    vformat(line, sizeof line, fmt, ap);
    va_end(ap);
    console_emergency("PANIC: ");
    console_emergency(line);
    if (!again) {
        again = true;
        printk("PANIC: %sTest result: CRASH\n", line);
        shutdown(SHUTDOWN_crash);
    }
    for (;;)
        asm volatile("cli; hlt");
}
