package primary_test

import (
	"fmt"

	"xlft/xlft"
	"xlft/xlft/primary"
)

// A machine decides and does nothing: here the backup falls silent after the
// domain was protected, and the arbiter gives the domain to this host.
func ExampleMachine() {
	var m primary.Machine
	for _, ev := range []primary.Event{
		primary.Start{},
		primary.Connected{},
		primary.DisksSynced{},
		primary.Captured{Epoch: 1},
		primary.Acked{Epoch: 1},
		primary.BackupLost{Err: fmt.Errorf("silent for 1s")},
		primary.Arbitrated{Verdict: xlft.Won},
		primary.SaveEnded{},
	} {
		acts := m.Step(ev)
		fmt.Printf("%T: %v\n", ev, m.State())
		for _, a := range acts {
			fmt.Printf("\t%T\n", a)
		}
	}
	// Output:
	// primary.Start: connecting
	// 	primary.ReleaseAll
	// 	primary.Connect
	// primary.Connected: syncing
	// 	primary.SyncDisks
	// primary.DisksSynced: syncing
	// 	primary.BeginSave
	// primary.Captured: syncing
	// 	primary.Send
	// primary.Acked: protected
	// 	primary.Release
	// primary.BackupLost: arbitrating
	// 	primary.Claim
	// primary.Arbitrated: detaching
	// 	primary.HangUp
	// 	primary.NextGeneration
	// 	primary.EndSave
	// primary.SaveEnded: connecting
	// 	primary.ReleaseAll
	// 	primary.RetryLater
}
