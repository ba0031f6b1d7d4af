/* Instructions that C has no words for. */

#ifndef XTF_CPU_H
#define XTF_CPU_H

#include <stdint.h>

static inline void cpuid(uint32_t leaf, uint32_t r[4])
{
    asm volatile("cpuid"
                 : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3])
                 : "a"(leaf), "c"(0));
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
    asm volatile("wrmsr"
                 :
                 : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
                 : "memory");
}

/* rdtsc waits for earlier loads, so that time does not run ahead of them. */
static inline uint64_t rdtsc(void)
{
    uint32_t low, high;

    asm volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static inline void outb(uint16_t port, uint8_t value)
{
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

/*
 * The other side of a ring may run on another CPU. x86 keeps loads in order
 * and stores in order, so the compiler is all there is to hold back, except
 * between a store and a later load.
 */
#define barrier() asm volatile("" : : : "memory")
#define mb()      asm volatile("mfence" : : : "memory")

#endif
