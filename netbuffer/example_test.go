package netbuffer_test

import (
	"fmt"

	"xlft/netbuffer"
	"xlft/netbuffer/netbuffertest"
)

// A gate on a path in memory. On a Xen host Open makes the gate of a domain.
func ExampleGate() {
	path := netbuffertest.NewPath(func(packet []byte) { fmt.Printf("  out: %s\n", packet) })
	gate := netbuffer.New(netbuffer.Options{}, netbuffer.Vif{Name: "vif1.0", Path: path})
	do := func(what string, f func(epoch uint64) error, epoch uint64) {
		fmt.Println(what, epoch)
		if err := f(epoch); err != nil {
			fmt.Println("  error:", err)
		}
	}
	send := func(packet string) {
		fmt.Println("send", packet)
		path.Send([]byte(packet))
	}

	send("before protection")
	do("seal epoch", gate.Seal, 1) // the domain is suspended
	send("of epoch 2")
	do("release epoch", gate.Release, 1) // the backup holds checkpoint 1
	do("seal epoch", gate.Seal, 2)
	send("of epoch 3")
	do("seal epoch", gate.Seal, 3) // too early
	do("release epoch", gate.Release, 2)
	fmt.Println("release all") // protection ends
	if err := gate.ReleaseAll(); err != nil {
		fmt.Println("  error:", err)
	}
	send("after protection")

	// Output:
	// send before protection
	//   out: before protection
	// seal epoch 1
	// send of epoch 2
	// release epoch 1
	// seal epoch 2
	// send of epoch 3
	// seal epoch 3
	//   error: netbuffer: seal epoch 3: an epoch is sealed and not released: epoch 2
	// release epoch 2
	//   out: of epoch 2
	// release all
	//   out: of epoch 3
	// send after protection
	//   out: after protection
}
