package diskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"xlft/diskrepl"
)

// A Verification asks for a comparison of a domain's disks with the backup's
// copies.
type Verification struct {
	VDev   string `json:"vdev,omitempty"`   // "": all that are mirrored
	Rate   int64  `json:"rate,omitempty"`   // bytes per second; 0 is no limit
	Repair bool   `json:"repair,omitempty"` // the primary's content is written to the copy
}

// A Finding is the progress of a Verification of one disk, and what was found to
// differ since the last Finding.
type Finding struct {
	VDev string `json:"vdev"`
	diskrepl.Compared
	Differences []diskrepl.Difference `json:"differences,omitempty"`
	Error       string                `json:"error,omitempty"` // in the last Finding: why it is not known whether the copies are equal
	Done        bool                  `json:"done,omitempty"`  // in the last Finding: all disks are compared
}

// errNotReplicated: there is no copy that follows the domain's disk.
var errNotReplicated = errors.New("the disks are not being replicated, and only a copy that is kept up to date can be compared")

// Verify compares the disks with the backup's copies, one after the other, and
// calls report with what is found. An error says that it is not known whether they
// are equal.
func (s *Server) Verify(ctx context.Context, o Verification, report func(Finding) error) error {
	s.mu.Lock()
	v := s.session
	s.mu.Unlock()
	if v == nil {
		return fmt.Errorf("%w: \"xl ft-start %s\" protects the domain", errNotReplicated, s.Config.Name)
	}
	v.mu.Lock()
	vdevs := slices.Sorted(maps.Keys(v.links))
	v.mu.Unlock()
	if o.VDev != "" {
		vdevs = []string{o.VDev}
	}
	if len(vdevs) == 0 { // the session has only begun
		return errNotReplicated
	}
	compared := 0
	for _, vdev := range vdevs {
		l := v.link(vdev)
		if l == nil {
			return fmt.Errorf("disk %s: %w", vdev, errNotReplicated)
		}
		last := time.Now()
		err := l.Verify(ctx, diskrepl.Comparison{Rate: o.Rate, Repair: o.Repair}, func(p diskrepl.Compared, diff []diskrepl.Difference) error {
			if len(diff) == 0 && p.Compared < p.Total && time.Since(last) < reportEvery {
				return nil
			}
			last = time.Now()
			return report(Finding{VDev: vdev, Compared: p, Differences: diff})
		})
		if errors.Is(err, diskrepl.ErrVerifyShared) && o.VDev == "" {
			continue
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", vdev, err)
		}
		compared++
	}
	if compared == 0 {
		return diskrepl.ErrVerifyShared
	}
	return nil
}

// serveVerify answers with Findings, one JSON value after the other. The
// verification ends when the client closes the connection.
func (s *Server) serveVerify(w http.ResponseWriter, r *http.Request) {
	var o Verification
	enc := json.NewEncoder(w)
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		enc.Encode(Finding{Error: err.Error()})
		return
	}
	flush := http.NewResponseController(w)
	err := s.Verify(r.Context(), o, func(f Finding) error {
		if err := enc.Encode(f); err != nil {
			return err
		}
		return flush.Flush()
	})
	last := Finding{Done: err == nil}
	if err != nil {
		last.Error = err.Error()
	}
	enc.Encode(last)
}

// Verify has the server compare the disks, and calls found with each Finding. An
// error says that it is not known whether the copies are equal.
func (c *Client) Verify(ctx context.Context, o Verification, found func(Finding)) error {
	findings, err := c.c.Open(ctx, http.MethodPost, "/verify", o)
	if err != nil {
		return fmt.Errorf("disk server: %w", err)
	}
	defer findings.Close()
	dec := json.NewDecoder(findings)
	for {
		var f Finding
		switch err := dec.Decode(&f); {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("the disk server ended before all was compared")
		case err != nil:
			return fmt.Errorf("disk server: %w", err)
		case f.Error != "":
			return errors.New(f.Error)
		case f.Done:
			return nil
		}
		found(f)
	}
}
