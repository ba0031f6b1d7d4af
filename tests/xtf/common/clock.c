#include <xtf/clock.h>

#include <xtf/cpu.h>
#include <xtf/platform.h>

uint64_t clock_now(void)
{
    const volatile struct vcpu_time_info *t = &shared_info->vcpu_info[0].time;
    uint32_t version;
    uint64_t now;

    /* An odd version is one that Xen is writing. */
    do {
        uint64_t delta;

        version = t->version;
        barrier();
        delta = rdtsc() - t->tsc_timestamp;
        if (t->tsc_shift < 0)
            delta >>= -t->tsc_shift;
        else
            delta <<= t->tsc_shift;
        now = t->system_time +
              (uint64_t)((unsigned __int128)delta * t->tsc_to_system_mul >> 32);
        barrier();
    } while (version & 1 || version != t->version);
    return now;
}

uint64_t clock_wall(void)
{
    const volatile shared_info_t *s = shared_info;
    uint32_t version;
    uint64_t boot;

    do {
        version = s->wc_version;
        barrier();
        boot = ((uint64_t)s->wc_sec_hi << 32 | s->wc_sec) * 1000000000 + s->wc_nsec;
        barrier();
    } while (version & 1 || version != s->wc_version);
    return boot + clock_now();
}
