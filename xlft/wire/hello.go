package wire

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

const magic = "xlft"

// features are what this side can do beyond the version's minimum.
var features = []string{FeatureS2}

// Greet opens a connection from the primary's side: it sends Hello and waits
// for the answer, at most timeout. The answer has the version and the features
// that both sides have.
func Greet(c *Conn, kind ConnKind, session, software string, timeout time.Duration) (r Hello, err error) {
	defer within(c, timeout)()
	h := Hello{Magic: magic, VersionMin: VersionMin, VersionMax: VersionMax, Features: features, Software: software, Kind: kind, Session: session}
	if err := c.WriteJSON(TypeHello, 0, h); err != nil {
		return r, fmt.Errorf("greet peer: %w", err)
	}
	if err := c.Expect(TypeHello, &r); err != nil {
		return r, fmt.Errorf("greet peer: %w", err)
	}
	if r.Magic != magic || r.VersionMin != r.VersionMax || r.VersionMin < VersionMin || r.VersionMax > VersionMax {
		return r, fmt.Errorf("greet peer: bad answer %+v", r)
	}
	return r, nil
}

// Welcome is the backup's half of Greet. On an error the peer has been told why;
// the caller closes the connection and logs.
func Welcome(c *Conn, software string, timeout time.Duration) (Hello, error) {
	defer within(c, timeout)()
	var h Hello
	if err := c.Expect(TypeHello, &h); err != nil {
		var frame *FrameError
		if errors.As(err, &frame) {
			c.WriteJSON(TypeRefuse, 0, Refusal{Code: CodeProtocol, Reason: err.Error()})
		}
		return h, fmt.Errorf("welcome peer: %w", err)
	}
	refuse := func(code Code, reason string) (Hello, error) {
		c.WriteJSON(TypeRefuse, 0, Refusal{Code: code, Reason: reason})
		return h, fmt.Errorf("welcome peer: %s", reason)
	}
	if h.Magic != magic {
		return refuse(CodeProtocol, "not an xlft peer")
	}
	if h.VersionMin > VersionMax || h.VersionMax < VersionMin || h.VersionMin > h.VersionMax {
		return refuse(CodeVersion, fmt.Sprintf("peer (%.40q) speaks protocol %d to %d, this host %d to %d: update the older one",
			h.Software, h.VersionMin, h.VersionMax, VersionMin, VersionMax))
	}
	switch h.Kind {
	case KindControl, KindData, KindDisk:
		if len(h.Session) != 32 {
			return refuse(CodeProtocol, "session id is not 32 hex digits")
		}
	case KindQuery:
	default:
		return refuse(CodeProtocol, fmt.Sprintf("unknown connection kind %.20q", h.Kind))
	}
	v := min(h.VersionMax, VersionMax)
	common := slices.DeleteFunc(slices.Clone(h.Features), func(f string) bool { return !slices.Contains(features, f) })
	if err := c.WriteJSON(TypeHello, 0, Hello{Magic: magic, VersionMin: v, VersionMax: v, Features: common, Software: software, Kind: h.Kind, Session: h.Session}); err != nil {
		return h, fmt.Errorf("welcome peer: %w", err)
	}
	return h, nil
}
