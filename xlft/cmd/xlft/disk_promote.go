package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"xlft/xlft/config"
	"xlft/xlft/internal/diskcopy"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/store"
)

func (a *app) diskPromoteCommand() *cobra.Command {
	var replay, discard bool
	c := &cobra.Command{
		Use:   "promote DOMAIN | DOMAIN/VDEV",
		Short: "make this host's copies of a domain's disks those that it runs from",
		Long: `Makes this host's copies of a domain's disks those that it runs from, after the
host that had the newer ones is lost for good. The domain then goes back to the
checkpoint that the copies are of; with durable_ack they are brought to the
newest one that all of them have. A copy that was still being made is refused.

On a host that went down while its backup could take the domain over, and that
can't ask that backup, it says that the domain is this host's.

DOMAIN/VDEV promotes one disk alone, as new as it can be.

With storage = "shared" and durable_ack the journal here may have writes that the
storage does not. They are right only if the other host did not run the domain
on alone after this one was lost to it: --replay writes them, --discard forgets
them. A journal that is damaged is refused, because the copy may be torn:
--discard takes the copy as it is.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fail := func(err error) error { return fmt.Errorf("disk promote: %s: %w", args[0], err) }
			domain, vdev := args[0], ""
			if strings.Contains(args[0], "/") {
				var err error
				if domain, vdev, err = cutDisk(args[0]); err != nil {
					return fail(err)
				}
			}
			c, err := a.config()
			if err != nil {
				return fail(err)
			}
			how := diskcopy.AskShared
			switch {
			case replay:
				how = diskcopy.ReplayShared
			case discard:
				how = diskcopy.DiscardShared
			}
			copies := &diskcopy.Copies{Config: func() *config.Config { return c }, Store: store.Dir(c.StateDir), Boot: protector.BootID()}
			done, err := copies.Promote(domain, vdev, how)
			if err != nil {
				return fail(err)
			}
			for _, d := range done {
				if d.Epoch > 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "%s/%s: brought to checkpoint %d by the journal\n", domain, d.VDev, d.Epoch)
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&replay, "replay", false, "write what the journal has to storage that hosts share")
	c.Flags().BoolVar(&discard, "discard", false, "forget what the journal has: for storage that hosts share, or of a copy whose journal is damaged")
	c.MarkFlagsMutuallyExclusive("replay", "discard")
	return c
}
