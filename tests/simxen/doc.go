// Package simxen is a simulated pair of Xen hosts, on which package xlft's Session and Receiver run unchanged. It is made
// for reach, thousands of fault schedules; that xlft works on Xen is shown on Xen (tests/lab).
//
// The one rule a caller must know: run it under testing/synctest, where time passes only while every goroutine waits.
// [Outside] sees what leaves the hosts, checks the promises at every step, and keeps what was broken as Violations.
//
// These parts are simulated:
//
//   - The hypervisor, and libxc's save ([Domain], domain.go). A domain is a deterministic program whose whole state lies
//     in its pages. Its stream has the real format (package savestream), but few record types and no vCPU state. Suspend
//     takes effect between two steps of the program, and a copy of the pages is never torn. A host's calls take a random
//     time, at most Host.Slow.
//   - libxl's restore ([Restorer], replica.go). Records are kept until their checkpoint is complete, then applied. The
//     replica lives in the receiver's process and dies with it; no toolstack, xenstore or device model takes part.
//   - The kernel's network queues ([Process.Gate], gate.go). The real netbuffer.Gate runs on a netbuffertest.Path, which
//     has the queues and the redirect of a vif and outlives the process, as the kernel's do. A packet that is let out is
//     heard at once; nothing is lost, and a queue has room for every epoch.
//   - The fence agent ([Process.FenceAgent], arbiter.go). The real arbiter.Fence runs, and its agent cuts a host's power
//     ([Host.Crash]). The agent can be out of reach, or cut the power and fail to say so; it never lies.
//   - An arbiter that is asked over a network ([Arbiter], arbiter.go). Whoever asks first wins a generation, by one
//     compare-and-swap: it stands for all arbiters of that kind. The product has none yet.
//   - Connections ([Net], net.go). They delay, stall while the network is cut and go on afterwards, and can be torn after
//     a number of bytes or damaged by one bit. There is no TLS: wire frames are checked by their own sums alone. A stalled
//     connection never times out by itself.
//   - The disks ([Platter], platter.go). Real diskrepl runs above them: Mirror or Shared on the primary ([Disks]), Replica
//     on the backup ([DiskHost]), and its journals over files in memory (epochfiles.go). After a power cut each sector
//     that was not flushed has any of its unflushed contents; a sector itself is never torn. Storage that both hosts see
//     is slow at times.
//   - Processes and hosts ([Process], [Host], host.go). A process that is killed runs on, but nothing it does has an
//     effect; a power cut does that to every process and destroys every domain.
//
// Records of ownership are the real store, on a directory that the caller gives ([Process.Store]).
package simxen
