package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskserver"
)

func (a *app) diskStatusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status [flags]",
		Short: "show the disks that are served on this host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fail := func(err error) error { return fmt.Errorf("disk status: %w", err) }
			c, err := a.config()
			if err != nil {
				return fail(err)
			}
			domains, err := control.Names(filepath.Dir(diskserver.CommandSocket(c.RunDir, "")))
			if err != nil {
				return fail(err)
			}
			type line struct {
				Domain string `json:"domain"`
				diskserver.DiskStatus
			}
			all := []line{}
			for _, d := range domains {
				st, err := diskClient(c, d).Status(cmd.Context())
				if errors.Is(err, control.ErrDown) {
					continue
				}
				if err != nil {
					return fail(err)
				}
				for _, s := range st {
					all = append(all, line{d, s})
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "DOMAIN\tDISK\tDEVICE\tMIB\tREPLICATION\tPATH")
			for _, l := range all {
				text := "-"
				if p := l.Progress; p != nil && p.Synced {
					text = "in sync"
				} else if p != nil {
					text = fmt.Sprintf("%d %%", p.Compared*100/max(p.Total, 1))
				}
				if l.Error != "" {
					text = "not served: " + l.Error
				}
				if h := l.Holding; h != nil && h.On {
					text += fmt.Sprintf(", %d KiB held", h.Bytes>>10)
					switch {
					case h.Error != "":
						text += " (" + h.Error + ")"
					case l.Progress == nil && !h.ReleaseAll:
						text += " until it is known who owns the domain"
					}
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", l.Domain, l.VDev, l.Device, l.Size>>20, text, l.Path)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
