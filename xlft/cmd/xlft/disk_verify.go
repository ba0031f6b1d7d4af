package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"xlft/diskrepl"
	"xlft/xlft/config"
	"xlft/xlft/internal/diskserver"
)

// errDiffer makes disk verify return 1.
var errDiffer = errors.New("the copies differ")

// errRepaired makes disk verify return 1 too: something changed the copy.
var errRepaired = errors.New("the copies differed; they are equal now")

// An unverifiedError makes disk verify return exitUnverified.
type unverifiedError struct{ err error }

func (e *unverifiedError) Error() string { return e.err.Error() }
func (e *unverifiedError) Unwrap() error { return e.err }

func (a *app) diskVerifyCommand() *cobra.Command {
	var (
		rate   string
		order  diskserver.Verification
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "verify [flags] DOMAIN | DOMAIN/VDEV",
		Short: "compare a domain's disks with the backup's copies, while it runs",
		Long: `Compares the disks of a protected domain, on the host that runs it, with the
copies that the backup keeps, and prints the ranges that differ. The domain runs
on meanwhile, and stays protected. Each 64 KiB are hashed on both hosts at one
point of the order of the domain's writes: what is under way never seems to
differ. The disk here is read as the domain reads it, the copy as the backup's
storage has it. What the domain discarded (TRIM) may be reported until it is
written again: storage may return anything for it.

--repair takes this host's disk for true: where the copy differs, this host's
content is written to the copy, as a write of the domain is, and compared again.

The exit status is 0 if the copies are equal, 1 if ranges differed, repaired or
not, and 2 if it is not known: the domain is not protected, say, or its
protection was lost meanwhile.

xlft-verify@DOMAIN.timer does it every week; it is off unless it is enabled with
"systemctl enable --now xlft-verify@DOMAIN.timer".`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeServed,
		RunE: func(cmd *cobra.Command, args []string) error {
			fail := func(err error) error { return fmt.Errorf("disk verify: %s: %w", args[0], err) }
			unknown := func(err error) error { return fail(&unverifiedError{err}) }
			domain := args[0]
			if strings.Contains(domain, "/") {
				var err error
				if domain, order.VDev, err = cutDisk(args[0]); err != nil {
					return unknown(err)
				}
			}
			cfg, err := a.config()
			if err != nil {
				return unknown(err)
			}
			bytes := cfg.For(domain).SyncRate
			if rate != "" {
				if bytes, err = config.ParseBytes(rate); err != nil {
					return unknown(fmt.Errorf("--rate: %w", err))
				}
			}
			order.Rate = int64(bytes)
			v := &verifyOutput{w: cmd.ErrOrStderr(), tty: isTerminal(cmd.ErrOrStderr()), domain: domain, disks: []*verifiedDisk{}}
			err = diskClient(cfg, domain).Verify(cmd.Context(), order, v.found)
			v.end()
			if err != nil {
				v.Error = err.Error()
			}
			perr := v.print(cmd.OutOrStdout(), asJSON)
			switch {
			case err != nil:
				return unknown(err)
			case perr != nil:
				return unknown(perr)
			}
			if err := v.verdict(); err != nil {
				return fail(err)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&order.Repair, "repair", false, "write this host's content to the copy where they differ")
	c.Flags().StringVar(&rate, "rate", "", "limit in bytes per second, such as 20MiB; 0 is none (default: sync_rate)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// A verifiedDisk is what was found on one disk.
type verifiedDisk struct {
	VDev string `json:"vdev"`
	diskrepl.Compared
	Differences []diskrepl.Difference `json:"differences"`
}

// verifyOutput collects findings, and shows the progress on a terminal.
type verifyOutput struct {
	w      io.Writer
	tty    bool
	domain string
	disks  []*verifiedDisk
	Error  string
}

func (v *verifyOutput) found(f diskserver.Finding) {
	if n := len(v.disks); n == 0 || v.disks[n-1].VDev != f.VDev {
		v.disks = append(v.disks, &verifiedDisk{VDev: f.VDev, Differences: []diskrepl.Difference{}})
	}
	d := v.disks[len(v.disks)-1]
	d.Compared = f.Compared
	for _, x := range f.Differences {
		d.add(x)
	}
	if v.tty {
		fmt.Fprintf(v.w, "\r\033[K%s/%s: %d of %d MiB compared, %d ranges differ", v.domain, d.VDev, d.Compared.Compared>>20, d.Total>>20, len(d.Differences))
	}
}

// add adds a difference, to the one before if that ends where it begins.
func (d *verifiedDisk) add(x diskrepl.Difference) {
	if n := len(d.Differences); n > 0 {
		last := &d.Differences[n-1]
		joined := *last
		joined.Length += x.Length
		if x.Offset == last.Offset+last.Length && x.Repaired == last.Repaired && x.Unreadable == last.Unreadable {
			*last = joined
			return
		}
	}
	d.Differences = append(d.Differences, x)
}

func (v *verifyOutput) end() {
	if v.tty {
		fmt.Fprint(v.w, "\r\033[K")
	}
}

func (v *verifyOutput) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, struct {
			Domain string          `json:"domain"`
			Disks  []*verifiedDisk `json:"disks"`
			Error  string          `json:"error,omitempty"`
		}{v.domain, v.disks, v.Error})
	}
	for _, d := range v.disks {
		for _, x := range d.Differences {
			what := "differ"
			switch {
			case x.Unreadable == "primary":
				what = "can't be read here"
			case x.Unreadable != "":
				what = "of the copy can't be read"
			case x.Repaired:
				what = "differed, and were repaired"
			}
			if _, err := fmt.Fprintf(w, "%s/%s: %d bytes at %d %s\n", v.domain, d.VDev, x.Length, x.Offset, what); err != nil {
				return err
			}
		}
		if len(d.Differences) == 0 && d.Compared.Compared == d.Total {
			if _, err := fmt.Fprintf(w, "%s/%s: %d bytes are equal\n", v.domain, d.VDev, d.Total); err != nil {
				return err
			}
		}
	}
	return nil
}

// verdict returns why the copies are not, or were not, equal.
func (v *verifyOutput) verdict() (err error) {
	for _, d := range v.disks {
		for _, x := range d.Differences {
			if !x.Repaired {
				return errDiffer
			}
			err = errRepaired
		}
	}
	return err
}
