package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/control"
	"xlft/xlft/internal/domconf"
	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
)

// guardCommand is what scripts/xl asks before it runs the real xl.
func (a *app) guardCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "guard XL-ARGUMENTS",
		Short:              "say whether an xl command would do harm to a protected domain",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || harms[args[0]] == "" && !harmsReplica(args[0]) {
				return nil
			}
			c, err := a.config()
			if err != nil {
				return nil // nothing is protected from a host without a configuration
			}
			if why := refusal(args, func(domain string) role { return roleOf(cmd.Context(), c.RunDir, domain) }, nameOf); why != "" {
				return errors.New(why)
			}
			return nil
		},
	}
}

// harms are the commands that would tear a protected domain or leave a part of it
// unprotected, and why.
var harms = map[string]string{
	"save":           "both read and clear one log of written pages: the image could miss some, and so could the backup",
	"migrate":        "both read and clear one log of written pages, and the domain could run on two hosts",
	"suspend":        "the suspend would be taken for a checkpoint",
	"pause":          "a paused domain takes no checkpoints",
	"mem-set":        "the backup's copy has the size that the domain has now",
	"mem-max":        "the backup's copy has the size that the domain has now",
	"vcpu-set":       "the backup's copy has the vCPUs that the domain has now",
	"block-attach":   "the disk would not be on the backup",
	"block-detach":   "the disk would come back at a takeover",
	"cd-insert":      "the medium would not be on the backup",
	"cd-eject":       "the medium would come back at a takeover",
	"network-attach": "the device would not be on the backup",
	"network-detach": "the device would come back at a takeover",
	"pci-attach":     "the device would not be on the backup",
	"usbdev-attach":  "the device would not be on the backup",
	"usbctrl-attach": "the device would not be on the backup",
	"vtpm-attach":    "the device would not be on the backup",
	"channel-attach": "the device would not be on the backup",
	"config-update":  "the backup would not know of the change",
	"rename":         "the backup knows the domain by its name",
	"remus":          "both read and clear one log of written pages",
}

// harmsReplica reports whether a command does something to a domain at all: only its
// primary decides on a replica.
func harmsReplica(command string) bool {
	return harms[command] != "" || slices.Contains([]string{"unpause", "resume", "destroy", "shutdown", "reboot"}, command)
}

// role is what this host is to a domain at the moment.
type role int

const (
	stranger role = iota
	protects
	mayProtect // a protector is there and does not answer
)

func roleOf(ctx context.Context, runDir, domain string) role {
	ask, cancel := context.WithTimeout(ctx, overview.Patience)
	defer cancel()
	st, err := protector.NewClient(runDir, domain).Status(ask)
	switch {
	case err == nil && st.State != primary.Ended:
		return protects
	case err != nil && ask.Err() != nil:
		return mayProtect
	case err != nil && !errors.Is(err, control.ErrDown):
		return mayProtect
	}
	return stranger
}

// nameOf returns the name of a domain that is given by its number.
func nameOf(id string) string {
	h, err := xen.Open()
	if err != nil {
		return id
	}
	defer h.Close()
	d, err := h.Lookup(id)
	if err != nil {
		return id
	}
	return d.Name
}

// refusal says why an xl command must not run; "" if it may.
func refusal(args []string, roleOf func(domain string) role, nameOf func(id string) string) string {
	command, domain := args[0], domainOf(args)
	if domain == "" {
		return ""
	}
	if _, err := strconv.ParseUint(domain, 10, 32); err == nil {
		domain = nameOf(domain)
	}
	if of, ok := strings.CutSuffix(domain, domconf.ReplicaSuffix); ok {
		if harmsReplica(command) {
			return fmt.Sprintf("xl %s: %s is the copy that this host holds of %s, for another host: \"xl ft-stop %s\" on that host ends that", command, domain, of, of)
		}
		return ""
	}
	why := harms[command]
	if why == "" {
		return ""
	}
	switch roleOf(domain) {
	case protects:
		return fmt.Sprintf("xl %s: %s is protected by xlft, and %s: \"xl ft-stop %s\" first, then \"xl ft-start %s\" again", command, domain, why, domain, domain)
	case mayProtect:
		return fmt.Sprintf("xl %s: %s has a protector that does not answer: \"xl ft-status %s\" shows what is known", command, domain, domain)
	}
	return ""
}

// withValue are the options of the commands in harms that have a value.
var withValue = map[string]string{"migrate": "sC", "save": "", "remus": "isN"}

// domainOf returns the domain of an xl command line: its first argument that is
// neither an option nor an option's value.
func domainOf(args []string) string {
	values := withValue[args[0]]
	rest := args[1:]
	for i := 0; i < len(rest); i++ {
		a := rest[i]
		switch {
		case a == "--":
			if i+1 < len(rest) {
				return rest[i+1]
			}
			return ""
		case strings.HasPrefix(a, "--"), a == "-":
		case strings.HasPrefix(a, "-"):
			// As getopt has it: "-Fi 100" and "-i100" too.
			if at := strings.IndexAny(a[1:], values); values != "" && at == len(a)-2 {
				i++ // its value is the next argument
			}
		default:
			return a
		}
	}
	return ""
}
