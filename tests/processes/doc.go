// Package processes runs the real xlft on simulated hosts: its daemons are processes, talk TLS over TCP between network
// namespaces, start real restore workers and fence agents, and are stopped, starved, killed and restarted at random.
//
// The one rule a caller must know: it needs root, and what happens is not determined by the seed alone. A seed gives the
// same faults after the same waits; what the processes make of them depends on the machine.
//
// Real, beside the program itself (built with the tag simxen): processes, signals, sockets, TLS, files, locks, time.
// The receiver's socket is handed over as systemd does, and units are restarted as conf/systemd says. Simulated, in the
// process of the test, which outlives all of them:
//
//   - The hypervisor (xen.go, domain.go), behind xlft/internal/xen with the tag simxen. A domain is a server of registers
//     whose whole state is in its pages. It suspends at once. What is in the hypervisor outlives the process that put it
//     there: a suspended domain stays suspended, a replica whose worker was killed stays, paused.
//   - The kernel's queues of a vif (package netbuffertest). The product's netbuffer.Gate runs above them. They outlive
//     processes too, and are lost with the host's power.
//   - Power. A host without power loses its processes, domains, queues, its run directory and its network namespace, and
//     says nothing more; its records stay. The fence agent is a program that asks the test to do that. It never lies.
//   - Clients, which reach every domain that is there, as if the switch flooded: also one that should not be there any
//     more. Requests reach a domain at once; replies leave through its gate.
//
// There are no disks, and no watchdog ends a process that hangs.
//
// What is checked: that no reply leaves of a state that a takeover has forgotten (P1, P3), that a domain completed from
// part of a checkpoint never runs (P4), that what clients saw is linearizable (package porcupine), that no host is fenced
// that had no fault, and, when the faults are over, that the domain runs once, answers and is protected again by itself
// (P5, P6).
package processes
