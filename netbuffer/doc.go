// Package netbuffer holds what a protected domain sends until the checkpoint
// of the epoch that sent it is safe on the backup.
//
// Everything that arrives from a vif is redirected (clsact or ingress, matchall,
// mirred) to one of two ifbs whose root qdisc is plug. The plug keeps packets of
// all ethertypes, in order, and hands them back to the vif when it is opened,
// from where they go on as if nothing had happened. The two take turns: one has
// the sealed epoch, the other the running one. Seal turns the redirect over to
// the one that is empty, Release opens the other.
//
// One plug with its counters of packets per epoch would do in theory. But the
// kernel changes those counters without the lock that an arriving packet takes
// (plug_change in net/sched/sch_plug.c), and packets do arrive during a seal:
// the domain is suspended, its backend is not. A wrong count lets a later epoch
// out ahead of its checkpoint. Here nothing is counted.
//
// The one rule: Seal while the domain is suspended, and Release an epoch only
// after its checkpoint is acknowledged. There are two queues, so there is never
// a second Seal before the Release; Seal refuses it.
//
// A gate lives in the kernel, not in this process. If the process dies while
// the gate holds, the packets stay held; Open finds the gate again and leaves
// the choice between Abandon and Discard to the caller.
//
// The kernel must have ifb, sch_plug, sch_ingress, cls_matchall and act_mirred;
// Check tries them. Calls need CAP_NET_ADMIN in the network namespace of the
// vifs.
package netbuffer
