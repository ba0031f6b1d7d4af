// Package netbuffer holds what a protected domain sends until the checkpoint
// of the epoch that sent it is safe on the backup.
//
// Everything that arrives from a vif is redirected (clsact or ingress, matchall,
// mirred) to an ifb of its own whose root qdisc is plug. The plug keeps packets
// of all ethertypes in order, counts those of the epoch that was sealed and
// those of the running one, and hands released ones back to the vif, from where
// they go on as if nothing had happened.
//
// The one rule: Seal while the domain is suspended, and Release an epoch only
// after its checkpoint is acknowledged. The qdisc remembers one sealed epoch,
// so there is never a second Seal before the Release; Seal refuses it.
//
// A gate lives in the kernel, not in this process. If the process dies while
// the gate holds, the packets stay held; Open finds the gate again and leaves
// the choice between Abandon and Discard to the caller.
//
// The kernel must have ifb, sch_plug, sch_ingress, cls_matchall and act_mirred;
// Check tries them. Calls need CAP_NET_ADMIN in the network namespace of the
// vifs.
package netbuffer
