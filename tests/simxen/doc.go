// Package simxen is a simulated pair of Xen hosts: domains with pages, dirty
// bits and packets, a network that stalls and breaks, an arbiter, processes
// that can be killed, hosts that can lose power. It satisfies the interfaces
// of package xlft, so that its Session and Receiver run on it unchanged.
//
// The one rule a caller must know: it is made for testing/synctest, where
// time passes when everybody waits. What a client outside saw, and what of it
// stayed true, the Outside checks by itself, at every step, and keeps as
// Violations.
//
// It gives reach, thousands of fault schedules; that xlft works on Xen is
// shown on Xen.
package simxen
