package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/control"
	"xlft/xlft/internal/diskserver"
	"xlft/xlft/internal/xen"
)

// completeDomains completes the name of a domain of this host.
func (a *app) completeDomains(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	h, err := xen.Open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer h.Close()
	all, _ := h.Domains()
	var names []string
	for _, d := range all {
		names = append(names, d.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeWait completes a domain's name, then a state.
func (a *app) completeWait(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeDomains(c, args, word)
	}
	if len(args) == 1 {
		return waitStates, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeProtected completes the name of a domain that is protected from here.
func (a *app) completeProtected(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	c, err := a.config()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := control.Names(c.RunDir)
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeServed completes the name of a domain whose disks are served on this
// host.
func (a *app) completeServed(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	c, err := a.config()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := control.Names(filepath.Dir(diskserver.CommandSocket(c.RunDir, "")))
	return names, cobra.ShellCompDirectiveNoFileComp
}
