// Package netbuffer holds back the network output of a protected domain. The
// packets that the domain sends in an epoch leave only after the checkpoint of
// that epoch is safe on the backup.
//
// All packets that arrive from a vif are redirected (clsact or ingress,
// matchall, mirred, gact) to one of two ifbs whose root qdisc is plug. A plug
// keeps packets of all ethertypes, in order. When it is opened it hands the
// packets back to the vif, where they continue as if they had just arrived. The
// two ifbs take turns: one has the sealed epoch, the other the running epoch.
// Seal switches the redirect to the empty one, Release opens the other.
//
// What waits is a copy. The packets that a backend passes on refer to the
// domain's memory, which the domain may write to after its checkpoint, and the
// domain's network device would wait for them.
//
// One plug, which counts packets per epoch, would do in theory. But the kernel
// changes those counters without the lock that an arriving packet takes
// (plug_change in net/sched/sch_plug.c), and packets do arrive during a seal:
// the domain is suspended, its backend is not. A wrong count lets packets of a
// later epoch out ahead of their checkpoint. This package counts no packets.
//
// The one rule: Seal while the domain is suspended, and Release an epoch only
// after its checkpoint is acknowledged. There are two queues, so a second epoch
// can't be sealed before the first is released; Seal refuses it.
//
// Events says when the domain has sent into the running epoch, for a checkpoint
// that starts at once: a BPF program at each ifb sees the packet that the gate
// takes in, or else a packet socket at the vif sees it come, or else whoever reads
// the queues. Watching says which. What is held does not depend on it.
//
// A gate lives in the kernel, not in this process. If the process dies while
// the gate holds, the packets stay held. Open adopts the gate, and the caller
// chooses between ReleaseAll, which lets the packets out, and Discard, which
// drops them.
//
// The kernel must have ifb, sch_plug, sch_ingress, cls_matchall, act_mirred and
// act_gact; Check tries them. It should have cls_bpf. Open and Cleanup need CAP_NET_ADMIN in the network
// namespace of the vifs, Check in any. On other systems than Linux the package
// builds, and only New and Adopt make gates.
package netbuffer
