/* Hypercalls by the hypercall page, which knows vmcall from vmmcall. */

#ifndef XTF_HYPERCALL_H
#define XTF_HYPERCALL_H

#include <stdint.h>

#include <xen/xen.h>
#include <xen/event_channel.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>
#include <xen/memory.h>
#include <xen/sched.h>

extern char hypercall_page[];

static inline long hypercall2(unsigned nr, unsigned long a1, const void *a2)
{
    long ret;

    asm volatile("call *%[entry]"
                 : "=a"(ret), "+D"(a1), "+S"(a2)
                 : [entry] "r"(hypercall_page + nr * 32)
                 : "memory");
    return ret;
}

static inline long sched_op(unsigned cmd, const void *arg)
{
    return hypercall2(__HYPERVISOR_sched_op, cmd, arg);
}

static inline long event_channel_op(unsigned cmd, const void *arg)
{
    return hypercall2(__HYPERVISOR_event_channel_op, cmd, arg);
}

static inline long memory_op(unsigned cmd, const void *arg)
{
    return hypercall2(__HYPERVISOR_memory_op, cmd, arg);
}

static inline long hvm_op(unsigned cmd, void *arg)
{
    return hypercall2(__HYPERVISOR_hvm_op, cmd, arg);
}

static inline uint64_t hvm_param(unsigned index)
{
    struct xen_hvm_param p = { .domid = DOMID_SELF, .index = index };

    return hvm_op(HVMOP_get_param, &p) ? 0 : p.value;
}

#endif
