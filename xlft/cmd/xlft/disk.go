package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"xlft/xlft/config"
	"xlft/xlft/internal/diskserver"
)

func (a *app) diskCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "disk",
		Short:   "the disks of domains that xlft keeps copies of",
		GroupID: "host",
		Long: `Serves the disks of domains as network block devices of this host, so that what
is written to them can be copied. A domain's configuration for xl names such a
disk as "script=block-xlft,vdev=xvda,access=rw,target=DOMAIN/xvda"; where it is
on a host, that host's configuration of xlft says.`,
	}
	c.AddCommand(a.diskServeCommand(), a.diskAttachCommand(), a.diskDetachCommand(), a.diskStatusCommand(), a.diskPromoteCommand(), a.diskInvalidateCommand(), a.diskVerifyCommand())
	return c
}

// cutDisk reads DOMAIN/VDEV.
func cutDisk(s string) (domain, vdev string, err error) {
	i := strings.LastIndexByte(s, '/')
	if i < 1 || i == len(s)-1 {
		return "", "", fmt.Errorf("%q is no DOMAIN/VDEV such as \"web1/xvda\"", s)
	}
	return s[:i], s[i+1:], nil
}

// disk returns the configuration, and what DOMAIN/VDEV names.
func (a *app) disk(arg string) (c *config.Config, domain, vdev string, err error) {
	if domain, vdev, err = cutDisk(arg); err != nil {
		return nil, "", "", err
	}
	c, err = a.config()
	return c, domain, vdev, err
}

// diskClient asks the server of a domain's disks.
func diskClient(c *config.Config, domain string) *diskserver.Client {
	return diskserver.NewClient(diskserver.CommandSocket(c.RunDir, domain), "", nil)
}
