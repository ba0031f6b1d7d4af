package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"xlft/diskrepl/nbd"

	"xlft/netbuffer"
	"xlft/savestream"
	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// advice says what to do about an error; "" if that is not known.
func advice(err error) string {
	is := func(t error) bool { return errors.Is(err, t) }
	var (
		ce      *config.Error
		refusal *wire.Refusal
		unknown *wire.UnknownPeerError
		module  *netbuffer.UnsupportedError
		alert   tls.AlertError
	)
	switch {
	case errors.As(err, &ce) && is(fs.ErrNotExist):
		return "Copy the reference configuration there and adapt it: /usr/local/share/doc/xlft/xlft.toml."
	case errors.As(err, &ce) && is(config.ErrUnknownKey):
		return "The reference configuration has every key: /usr/local/share/doc/xlft/xlft.toml."
	case is(xen.ErrNoXen):
		return "Build it with \"make build-xen\"."
	case is(xen.ErrNoDomain):
		return "\"xl list\" shows the domains of this host."
	case is(protector.ErrAlready):
		return "\"xl ft-status\" shows its protection, \"xl ft-stop\" ends it."
	case is(control.ErrDown):
		return "\"xl ft-list\" shows what is protected on this host."
	case errors.As(err, &module):
		return "Load it with \"modprobe " + module.Module + "\" and run the command again; /etc/modules-load.d/xlft.conf loads it at boot."
	case is(netbuffer.ErrForeign):
		return "Remove it, or move it to the bridge or to another of its ports: a packet that the gate has held does not pass it, or it lets packets past the gate."
	case is(netbuffer.ErrNoVif), is(netbuffer.ErrMoved):
		return "The domain's network devices have to be in the network namespace of dom0 itself: \"ip link\" must show them."
	case is(nbd.ErrNoKernelNBD), strings.Contains(err.Error(), nbd.ErrNoKernelNBD.Error()):
		return "Load it with \"modprobe nbd\"; /etc/modules-load.d/xlft.conf loads it at boot."
	case errors.As(err, &unknown):
		return "Put that fingerprint into the peer's table in the configuration, if it is the right host."
	case errors.As(err, &alert), strings.Contains(err.Error(), "tls: bad certificate"):
		return "The backup does not know this host's certificate: put this host's fingerprint (\"xlft keygen --show\") into the backup's configuration."
	case is(syscall.ECONNREFUSED):
		return "Is xlft-receiver running on the backup? \"systemctl start xlft-receiver.socket\" there, and look at address in the configuration."
	case is(syscall.EHOSTUNREACH), is(syscall.ENETUNREACH), is(syscall.ETIMEDOUT), is(os.ErrDeadlineExceeded), is(context.DeadlineExceeded):
		return "Look at the network between the hosts, and at address in the configuration."
	case is(primary.ErrBothRun):
		return "Destroy the domain on one of the hosts, then start protection on the other."
	case is(wire.ErrExists):
		return "--force replaces it; its peers then need the new fingerprint."
	case is(xlft.ErrSuspendedByOther), is(xlft.ErrSaved):
		return "Protection is tried again until that program is done. If it has ended without resuming the domain, \"xl resume\" (Xen 4.20 or later) or \"xl destroy\" and \"xl restore\" do."
	case is(xlft.ErrMemoryChanged):
		return "Start protection again when \"xl list\" shows that the domain's memory stays the same."
	case is(xlft.ErrSuspendTimeout):
		return "The domain needs drivers that react to a suspend request (Linux and most PV drivers do), and time to: see suspend_timeout."
	case errors.As(err, &refusal) && refusal.Code == wire.CodeVersion:
		return "Install the same version of xlft on both hosts."
	case is(savestream.ErrMandatory), is(savestream.ErrTooLong):
		return "The stream is damaged, or of a version that is not known here."
	}
	return ""
}
