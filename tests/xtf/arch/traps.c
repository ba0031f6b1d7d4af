/* Exceptions: no test expects one, so each ends the guest with what is known. */

#include <stdint.h>

#include <xtf/console.h>
#include <xtf/platform.h>

struct exception {
    uint64_t vector, code;
    uint64_t rip, cs, rflags, rsp, ss;
};

struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_mid;
    uint32_t offset_high, reserved;
};

extern const char exception_stubs[];

static struct gate idt[32];

void do_exception(const struct exception *e)
{
    uint64_t cr2;

    asm("mov %%cr2, %0" : "=r"(cr2));
    panic("exception %lu code %lx at %lx, sp %lx, cr2 %lx\n", e->vector,
          e->code, e->rip, e->rsp, cr2);
}

void traps_init(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) ptr = { sizeof idt - 1, (uintptr_t)idt };

    for (unsigned i = 0; i < 32; i++) {
        uintptr_t stub = (uintptr_t)exception_stubs + 16 * i;

        idt[i] = (struct gate){
            .offset_low = stub,
            .selector = 8,
            .type = 0x8e, /* present, interrupt gate */
            .offset_mid = stub >> 16,
        };
    }
    asm volatile("lidt %0" : : "m"(ptr));
}
