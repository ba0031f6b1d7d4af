package diskserver

import (
	"context"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// mayServe returns an error if the backup may have taken the domain over while
// this host was down: then the disks here are older than those there, and a
// domain that is started from them runs a second time, or from the past. Hosts
// start domains by themselves when they boot.
func (s *Server) mayServe(ctx context.Context) error {
	if s.Owned == nil {
		return nil
	}
	o, err := s.Owned()
	if err != nil {
		return err
	}
	if o.Role != xlft.HostPrimary || !o.Exposed && !o.Handed || o.Instance == "" || strings.HasPrefix(o.Instance, s.Boot+"/") {
		return nil
	}
	here := fmt.Sprintf("this host went down while %s could take %s over", o.Peer, s.Config.Name)
	promote := fmt.Sprintf("if %s is lost for good, or never ran the domain, \"xlft disk promote %s\" on this host says so", o.Peer, s.Config.Name)
	dial, err := s.Dial(o.Peer)
	if err != nil {
		return fmt.Errorf("%s, which can't be asked: %w; %s", here, err, promote)
	}
	ctx, cancel := wire.AwakeTimeout(ctx, wire.OwnerTimeout)
	defer cancel()
	// Without reclaim: what a replica has was let out, and the disks here may lack it.
	q := wire.OwnerQuery{Domain: s.Config.Name, UUID: o.UUID, Generation: o.Generation, Patience: wire.OwnerTimeout}
	var r wire.OwnerResult
	err = wire.Ask(ctx, dial, s.Software, wire.TypeOwner, q, wire.TypeOwnerResult, &r)
	switch {
	case err != nil:
		return fmt.Errorf("%s, which can't be asked: %w; %s", here, err, promote)
	case r.Role == wire.RoleNone, r.Role == wire.RoleRunning && r.Generation < o.Generation:
		s.Log.Info("the backup did not take the domain over while this host was down", zap.String("peer", o.Peer), zap.Uint64("generation", o.Generation))
		return nil
	case r.Role == wire.RoleRunning:
		return fmt.Errorf("%s, and it did: its disks are the newer ones. Run the domain there; \"xl ft-start %s\" there makes the disks here equal", here, s.Config.Name)
	}
	return fmt.Errorf("%s, which does not know yet whether it did (it holds a replica): look with \"xl ft-status\" there, and try again; %s", here, promote)
}
